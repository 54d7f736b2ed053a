"""Data given as Python objects: lent to the processes that need them, and kept nowhere.

    S3T.train(data={"private": rows, …}) ─► private rows ─► a scratch folder, while the call lasts
                                        └─► public rows  ─► RUN/public/*.jsonl, as any public file

Invariant E7: the run's config says ``format: rows`` of private rows given so and holds none of
them; the file in the scratch folder is the owner's alone, and goes with the call. What needs the
rows later is given them again, or refuses.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3t.data.files import Row, json_rows
from s3t.data.given import is_table, records
from s3t.errors import DataError, InputError
from s3t.system.durable import write_durably
from s3t.system.scratch import scratch

__all__ = ["borrowed", "lent", "taken_out"]

_FILE = "S3T_ROWS"
"""Environment variable that names the file with the private rows, for this and new processes."""

_lock = threading.Lock()
_PARTS = ("adapt", "validation", "test", "rows")


def is_rows(given: Any) -> bool:
    """Whether it is rows, and no section of a config that tells where rows are."""
    return is_table(given) or isinstance(given, list | tuple)


@contextmanager
def lent(rows: Any) -> Iterator[None]:
    """Let this process, and those that it starts meanwhile, read private rows.

    Args:
        rows: a table or a list of dicts; None lends nothing.

    Raises:
        InputError: they are no rows, or hold a value that JSON has no form for.
    """
    if rows is None:
        yield
        return
    lines = _lines(records(rows), "data.private")
    with _lock, scratch() as folder:
        path = folder / "rows.jsonl"
        path.write_bytes(lines)
        os.environ[_FILE] = str(path)
        try:
            yield
        finally:
            del os.environ[_FILE]


def borrowed() -> list[Row]:
    """The private rows that are lent.

    Raises:
        DataError: none are.
    """
    if _FILE not in os.environ:
        problem = (
            "rows were given as Python objects, and no copy is kept: give them again, as "
            "S3T.repair(run, data=rows), S3T.add(run, data=rows) or S3T.audit(run, data=rows)"
        )
        raise DataError([problem])
    return json_rows([os.environ[_FILE]])


def taken_out(data: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Any]:
    """A config's section ``data`` without the rows in it; and its private rows, None if it names
    where they are.

    Args:
        data: the section. Rows may stand in ``private``, in ``public``, or in a part of that.
        folder: where public rows are written, as JSON lines.

    Raises:
        InputError: rows that are none, or hold a value that JSON has no form for.
    """
    found, private = dict(data), None
    if is_rows(found.get("private")):
        private, found["private"] = found["private"], {"format": "rows"}
    public = found.get("public")
    if is_rows(public):
        found["public"] = _written(public, "data.public", folder / "rows.jsonl")
    elif isinstance(public, Mapping):
        found["public"] = {
            name: _written(value, f"data.public.{name}", folder / f"{name}.jsonl")
            if name in _PARTS and is_rows(value)
            else value
            for name, value in public.items()
        }
    return found, private


def _written(rows: Any, where: str, path: Path) -> dict[str, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, _lines(records(rows), where))
    return {"format": "json", "files": str(path.absolute())}


def _lines(rows: list[Row], where: str) -> bytes:
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(json.dumps(row, ensure_ascii=False, default=_written_out))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}, row {number}: {error}: give texts, numbers, lists and dicts"
            ) from None
    return "".join(f"{line}\n" for line in lines).encode()


def _written_out(value: Any) -> Any:
    """Moments of pandas and datetime as text, arrays as lists."""
    for name in ("isoformat", "tolist"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(f"a {type(value).__name__} has no form in JSON")
