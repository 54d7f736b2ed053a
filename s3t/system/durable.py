"""Files that are replaced whole and durably, or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3t.errors import InputError

__all__ = [
    "create_durably",
    "fresh_beside",
    "held_folder",
    "other_names",
    "remove_whole",
    "sync_folder",
    "write_durably",
]


def fresh_beside(path: Path) -> Path:
    """A name in the same folder that no other writer uses, on this machine or another."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``content`` atomically and durably.

    Args:
        path: the file.
        content: all of it.
        mode: who may do what with the file, from its first byte on; the process's umask takes away.
    """
    with _written_beside(path, content, mode) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


def create_durably(path: Path, content: bytes) -> None:
    """Make ``path`` with all its content at once, durably.

    Raises:
        FileExistsError: there is a file of that name, or NFS has lost the answer to our making it.
    """
    with _written_beside(path, content, 0o666) as temporary:
        os.link(temporary, path)
    sync_folder(path.parent)


@contextmanager
def _written_beside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """A file of the content in the same folder, on the disk; it is gone when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_beside(path)
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Remove a file, a folder with all that it holds, or a link but not what it leads to."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def other_names(path: Path) -> str | None:
    """Where the bytes of a file stay when this name of it is removed; None if nowhere."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISLNK(found.st_mode):
        return f"{path} is a link to {os.readlink(path)}"
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        return f"{path} has {found.st_nlink - 1} more hard links (inode {found.st_ino})"
    return None


def sync_folder(path: Path) -> None:
    """Make durable what was put into a folder, and what was taken out of it."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same folder out, without leaving a file behind.

    The system lets go of it when the holder dies.

    Raises:
        InputError: there is no such folder, or it may not be read.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror})") from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
