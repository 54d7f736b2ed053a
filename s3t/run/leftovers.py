"""Files that still hold or name deleted samples, and are the user's to change.

Invariant: they are read, and never written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from s3t.config import Config
from s3t.data import private_origins
from s3t.data.files import resolve
from s3t.errors import InputError
from s3t.ledger import Gone, Ledger
from s3t.run.files.contents import written

__all__ = ["files_naming", "own_files"]


def own_files(config: Config, gone: Gone) -> Iterator[tuple[str, int]]:
    """The user's files that still hold rows of deleted samples, with the number of those: all that
    the data are read from, whole, and the images and metadata that rows name."""
    if not len(gone):
        return
    source = config.data.private
    if source.format == "rows":
        return  # given as Python objects
    if source.files is None or source.format == "imagefolder":
        name = f"data.private ({source.name or source.files or f'the embedded {source.format}'})"
        folders = {"split": re.split(r"[\[+]", source.split)[0]} if source.files else {}
        yield from _rows_in(name, _reading(config, **folders), gone)
        return
    for pattern in [source.files] if isinstance(source.files, str) else source.files:
        try:
            names = resolve(pattern)
        except InputError as error:
            yield f"{pattern} (cannot be read: {error})", 0
            continue
        for name in names:
            yield from _rows_in(name, _reading(config, files=name, split="train"), gone)


def _rows_in(name: str, config: Config, gone: Gone) -> Iterator[tuple[str, int]]:
    """Rows of deleted samples that a source of its own holds, by file."""
    try:
        rows = [origin for one, origin in private_origins(config) if one in gone]
    except InputError as error:
        yield f"{name} (cannot be read: {error})", 0
        return
    if rows and config.data.private.format != "imagefolder":  # it is no file of its own
        yield name, len(rows)
    yield from sorted(Counter(file for origin in rows for file in origin).items())


def _reading(config: Config, **changes: str) -> Config:
    private = config.data.private.model_copy(update=changes)
    return config.model_copy(update={"data": config.data.model_copy(update={"private": private})})


def files_naming(files: Collection[Path], ledger: Ledger, gone: Gone) -> list[str]:
    """Files that name deleted samples, or the persons of some."""
    if not files or not len(gone):
        return []
    with ledger.tables() as tables:
        marked = (row.subject for row in tables.samples() if row.deleted_view is not None)
        hashes = {tables.hashed(subject) for subject in marked if subject is not None}
        hashes |= {row.subject for row in tables.forgotten()} - {None}
        people = Gone(gone.secret, frozenset(hashes))
    found = []
    for path in files:
        with suppress(FileNotFoundError):  # a training's signs of life come and go
            names = written(path.read_bytes().decode(errors="replace"))
            if any(name in gone or name in people for name in names):
                found.append(str(path))
    return found
