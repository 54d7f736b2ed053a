"""Where answers go: to standard output as text or JSON, and to files, whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from s3t.errors import InputError, is_full, unavailable
from s3t.system.progress import quiet_libraries, tell

__all__ = ["print_json", "quiet", "show", "telling", "write"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries' output off standard output while the block runs.

    Progress bars and advice are switched off. Whatever is printed all the same, by Python or by
    native code, goes to standard error, so that standard output holds the command's answer alone.
    """
    quiet_libraries()
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what calls what in a later version
            yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def telling(quietly: bool, as_json: bool) -> None:
    """Say how long work of this command tells how far it is: by default in lines, or a bar."""
    tell("quiet" if quietly else "json" if as_json else "lines")


def print_json(value: Any) -> None:
    """Print one JSON document on one line."""
    print(json.dumps(value, ensure_ascii=False))


def show(document: Any | None, lines: Iterable[str]) -> None:
    """Print an answer: the JSON document where one is given, else the lines of text."""
    if document is not None:
        print_json(document)
        return
    for line in lines:
        print(line)


def make_folder(path: Path, option: str) -> None:
    """Make the folder that a file is to be written to, before what takes time.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be written ({error.strerror})") from None


def write(path: Path, content: bytes, option: str) -> None:
    """Write a file whole or not at all.

    Args:
        option: the option that named the file, for the message of an error.

    Raises:
        InputError: the file cannot be written.
        UnavailableError: the disk is full.
    """
    from s3t.store import write_durably

    try:
        write_durably(path, content)
    except OSError as error:
        if is_full(error):
            raise unavailable(error) or error from None
        raise InputError(f"{option} {path} cannot be written ({error})") from None
