"""The lock file beside a ledger of SQLite: one writer at a time, and what the last one has done.

SQLite reads a write-ahead log up to the first frame whose checksum is wrong, and reports nothing: a
changed bit would undo the deletions behind it. So the last entry of our log that a writer was
through with is written here, synced before it is acknowledged.

Invariant: an acknowledged entry is never replaced by an earlier one.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from s3t.errors import IntegrityError, S3TError, UnavailableError, unavailable
from s3t.ledger.database import backend

__all__ = ["FileIdentity", "LockFile", "identity"]

_TURN_SECONDS = 0.002
"""How often a writer looks whether the one before it is done."""

_LAST = b"%020d %s\n"
_TOLD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")
"""The lock file: number and digest of an entry, of one length, so that it is written over whole."""

FileIdentity = tuple[int, int]
"""Device and inode."""


class LockFile:
    """Held by one writer of all threads and processes; made by the first.

    Args:
        path: of the lock file.
        ledger: path of the ledger, for messages.
    """

    def __init__(self, path: Path, ledger: str) -> None:
        self._path, self._ledger = path, ledger
        self._mine = threading.Lock()

    def clear(self) -> None:
        """Forget the last entry of another ledger that was here."""
        os.truncate(self._path, 0)

    def acknowledged(self) -> tuple[int, str] | None:
        """Number and digest of the last entry of our log that a writer was through with.

        Raises:
            IntegrityError: the lock file holds something else.
            UnavailableError: a writer did not finish in 30 s.
        """
        limit = time.monotonic() + backend.BUSY_SECONDS
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unread(error) from None
        try:
            while (content := _content(file)) != _content(file):
                pass  # a writer was in the middle of it
            with suppress(IntegrityError):  # else half written: a writer is waited for
                return self._told(content)
            self._wait_for(file, fcntl.LOCK_SH, limit)
            return self._told(_content(file))
        except OSError as error:
            raise self._unread(error) from None
        finally:
            os.close(file)

    @contextmanager
    def alone(self) -> Iterator[IO[bytes]]:
        """Hold the lock file, for this thread of this process."""
        limit = time.monotonic() + backend.BUSY_SECONDS
        if not self._mine.acquire(timeout=backend.BUSY_SECONDS):
            raise self.locked()
        try:
            with self._held(limit) as file:
                yield file
        finally:
            self._mine.release()

    def _held(self, limit: float) -> IO[bytes]:
        """The lock file, locked: the one that others find under its name."""
        while True:
            file = self._open()
            try:
                self._wait_for(file.fileno(), fcntl.LOCK_EX, limit)
                found = os.fstat(file.fileno())
                if identity(self._path) == (found.st_dev, found.st_ino):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # it was removed or replaced a moment ago

    def _wait_for(self, file: int, how: int, limit: float) -> None:
        while not _locks(file, how):
            if time.monotonic() > limit:
                raise self.locked()
            time.sleep(_TURN_SECONDS)

    def acknowledge(self, file: IO[bytes], last: tuple[int, str] | None) -> None:
        """Write the last entry of our log down, durably; never an earlier one than is told.

        Args:
            file: as ``alone`` gave it.
            last: number and digest of the entry; None if there is none.
        """
        told = self._told(_content(file.fileno()))
        if last is not None and (told is None or last[0] > told[0]):
            try:
                os.pwrite(file.fileno(), _LAST % (last[0], last[1].encode()), 0)
                os.fdatasync(file.fileno())
            except OSError as error:
                cause = unavailable(error)
                raise UnavailableError(
                    f"{self._path} cannot be written ({error}), so it is not known whether "
                    "what was done will last: repeat it, with the same request id if it was a "
                    "deletion; what was done is not done twice",
                    UnavailableError.code if cause is None else cause.code,
                ) from None

    def locked(self) -> UnavailableError:
        """The error of a writer that waited in vain."""
        return UnavailableError(
            f"{self._ledger} was locked for {backend.BUSY_SECONDS:g} s, nothing was changed: wait "
            "for the other s3t process, or end it if it hangs, and repeat",
            "ledger_locked",
        )

    def _unread(self, error: OSError) -> S3TError:
        return unavailable(error) or S3TError(
            f"{self._path} cannot be read ({error}): let it be read"
        )

    def _told(self, content: bytes) -> tuple[int, str] | None:
        if not content:
            return None
        found = _TOLD.fullmatch(content)
        if found is None:
            raise IntegrityError(
                f"{self._path} does not hold the last entry of the ledger's log: if it is "
                f"known that {self._ledger} is the newest, remove it, and start again"
            )
        return int(found[1]), found[2].decode()

    def _open(self) -> IO[bytes]:
        try:
            return os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise unavailable(error) or S3TError(
                f"{self._path} cannot be opened ({error}): nothing was changed"
            ) from None


def identity(path: Path) -> FileIdentity | None:
    """Device and inode of a file; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _content(file: int) -> bytes:
    """What a lock file holds."""
    return os.pread(file, 99, 0)


def _locks(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
