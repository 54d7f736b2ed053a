"""Atomic and durable writes: after a crash a file has its old or its new content, never a part."""

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
    """A path in the same folder with a name that no other process uses, on any machine."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def write_durably(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace ``path`` by ``content`` atomically and durably.

    Args:
        path: the file.
        content: the whole new content.
        mode: permissions of the file from its first byte on, less the process's umask.
    """
    with _written_beside(path, content, mode) as temporary:
        os.replace(temporary, path)
    sync_folder(path.parent)


def create_durably(path: Path, content: bytes) -> None:
    """Create ``path`` with its whole content, atomically and durably.

    Raises:
        FileExistsError: the file exists; or it was created, and NFS lost the reply.
    """
    with _written_beside(path, content, 0o666) as temporary:
        os.link(temporary, path)
    sync_folder(path.parent)


@contextmanager
def _written_beside(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """A temporary file with the content in the same folder, synced; removed when the block ends."""
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
    """Remove a file, a folder with its content, or a link (not its target)."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def other_names(path: Path) -> str | None:
    """A sentence that says where a file's bytes stay after this path is removed; None if nowhere.

    They stay at the target of a link, and under other hard links.
    """
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
    """Make new and removed names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder; other callers of this function wait.

    No file is left behind, and the system frees the lock when the process dies.

    Raises:
        InputError: the folder does not exist or may not be read.
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
