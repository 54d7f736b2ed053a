"""Tries with two processes whether file locks work on a file system.

    this process    takes every lock that a run relies on ────┐              ─ frees them ─┐
    a second one    tries the same ──────────── all refused? ─┘   all granted? ────────────┘

Some network and user-space file systems grant every lock, or support only some kinds. On those two
processes would train a run at once, SQLite would lose commits, and deletions would not wait for
answers under way.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from s3t.errors import InputError
from s3t.system.durable import fresh_beside

__all__ = ["file_lock", "is_unlocked", "prove_locks"]

_SECONDS = 30.0
"""Seconds after which a file system that does not answer is refused."""

_LOCK = "hhqqi0q"
"""``struct flock``: kind, whence, start, length, process; the last is 0 for locks of open files."""


def file_lock(kind: int, start: int = 0, length: int = 0) -> bytes:
    """What ``fcntl`` takes for a lock of an open file (``F_OFD_SETLK``, ``F_OFD_GETLK``).

    Args:
        kind: ``F_RDLCK``, ``F_WRLCK`` or ``F_UNLCK``.
        start: first byte.
        length: bytes; 0 for all from there on.
    """
    return struct.pack(_LOCK, kind, os.SEEK_SET, start, length, 0)


def is_unlocked(found: bytes) -> bool:
    """Whether ``F_OFD_GETLK`` found no lock in the way."""
    return bool(struct.unpack(_LOCK, found)[0] == fcntl.F_UNLCK)


_WHOLE = file_lock(fcntl.F_WRLCK)

_KINDS: dict[str, Callable[[int], object]] = {
    "flock": lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "POSIX": lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB),  # SQLite's
    "open file": lambda file: fcntl.fcntl(file, fcntl.F_OFD_SETLK, _WHOLE),
}
"""The kinds of locks; each is tried on its own file, since the last two exclude each other."""

_OTHER = """
import fcntl, sys
whole, *paths = sys.argv[1:]
tries = (
    lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
    lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
    lambda file: fcntl.fcntl(file, fcntl.F_OFD_SETLK, bytes.fromhex(whole)),
)
for number, (path, lock) in enumerate(zip(paths, tries, strict=True)):
    with open(path, "r+b") as file:
        try:
            lock(file)
        except OSError:
            continue
        print(number)
"""
"""The second process: it prints the numbers of the locks that it was granted."""


def prove_locks(folder: Path) -> None:
    """Refuse a folder where locks do not keep other processes out, or are not freed.

    Raises:
        InputError: says what is wrong with the file system.
    """
    path = fresh_beside(folder / "locks")
    paths = [path.with_name(f"{path.name}{number}.tmp") for number in range(len(_KINDS))]
    try:
        files = [
            os.open(one, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) for one in paths
        ]
        try:
            for kind, file in zip(_KINDS, files, strict=True):
                _take(folder, kind, file)
            for kind in _granted(folder, paths):
                raise _refusal(folder, f"grants one {kind} lock to two processes at once")
        finally:
            for file in files:
                os.close(file)
        free = _granted(folder, paths)
        for kind in _KINDS:
            if kind not in free:
                raise _refusal(folder, f"does not give a {kind} lock free when its file is closed")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): give a directory that this user can "
            "write"
        ) from None
    finally:
        for one in paths:
            with suppress(OSError):
                one.unlink()


def _take(folder: Path, kind: str, file: int) -> None:
    try:
        _KINDS[kind](file)
    except OSError as error:
        raise _refusal(folder, f"has no {kind} locks ({error.strerror})") from None


def _granted(folder: Path, paths: list[Path]) -> list[str]:
    """The kinds of locks that a second process is granted now."""
    words = [sys.executable, "-I", "-S", "-c", _OTHER, _WHOLE.hex(), *map(str, paths)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"whether locks hold in {folder} cannot be tried with a second process ({error}): "
            "see that this Python can start another"
        ) from None
    kinds = list(_KINDS)
    return [kinds[int(number)] for number in done.stdout.split()]


def _refusal(folder: Path, what: str) -> InputError:
    return InputError(
        f"{folder} lies on a file system that {what}, so a deletion there would not keep other "
        "processes from answering: keep the run on a local disk, or where locks hold"
    )
