"""A folder of small JSON documents that outlive the process: what was accepted and is not done yet.

    put ─► RUN/jobs/NAME/<digest of the key>.json ─► whoever holds .lock works it off ─► remove

Invariant: a document is there whole, on the disk, once ``put`` has returned, and readable by the
owner alone. Its bytes are overwritten before the file is removed, since they may name samples.
Processes that share the folder may all put; one of them works at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from s3t.errors import IntegrityError
from s3t.store import sync_folder, write_durably

__all__ = ["Spool"]

_FRESH = 60.0
"""Seconds for which a half-written file is taken for one that is being written."""


class Spool:
    """One such folder; it is made when the first document is put.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[bytes] | None = None
        self._inside = threading.Lock()
        self._damaged: set[Path] = set()

    def put(self, key: str, document: Mapping[str, Any]) -> None:
        """Write a document, in place of the one of the same key.

        Raises:
            OSError: it is not there durably; an older one of the key still is.
        """
        self._make()
        path = self._path(key)
        replaced = path.exists()
        if replaced:  # its bytes go too, once the new one is durable
            old = os.open(path, os.O_WRONLY)
        try:
            write_durably(path, json.dumps({"key": key, **document}).encode(), 0o600)
            if replaced:
                _overwrite(old)
        finally:
            if replaced:
                os.close(old)

    def get(self, key: str) -> dict[str, Any] | None:
        """The document of a key, or None.

        Raises:
            IntegrityError: its file is damaged.
        """
        return _read(self._path(key))

    def remove(self, key: str) -> None:
        """Remove a document durably, its bytes first."""
        path = self._path(key)
        try:
            file = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            return
        try:
            _overwrite(file)
        finally:
            os.close(file)
        path.unlink(missing_ok=True)
        sync_folder(self.folder)

    def oldest(self, complain: Callable[[str], object]) -> Iterator[dict[str, Any]]:
        """All documents, those first that were written first, each read when it is asked for.

        Args:
            complain: told, once, of each file that is damaged; the others are given all the same.
        """
        for path in sorted(self._files(), key=_written):
            try:
                document = _read(path)
            except IntegrityError as error:
                if path not in self._damaged:
                    self._damaged.add(path)
                    complain(str(error))
                continue
            if document is not None:
                yield document

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep out whoever else is in here, of this process or another: to look and then to put."""
        self._make()
        with self._inside:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
            finally:
                os.close(folder)

    def __len__(self) -> int:
        return len(self._files())

    def hold(self) -> bool:
        """Whether this process is the one that works the folder off, from now until ``leave``."""
        if self._lock is None and self.folder.is_dir():
            file = (self.folder / ".lock").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return False
            self._lock = file
            self._sweep()
        return self._lock is not None

    def leave(self) -> None:
        """Let another process work it off."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _sweep(self) -> None:
        """Remove what killed writers left half-written."""
        for path in self.folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > _FRESH:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _path(self, key: str) -> Path:
        # a digest, so that no key can name another file
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _make(self) -> None:
        if not self.folder.is_dir():
            self.folder.parent.mkdir(mode=0o700, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.folder.parent)
            sync_folder(self.folder.parent.parent)


def _written(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name


def _overwrite(file: int) -> None:
    os.pwrite(file, b"\0" * os.fstat(file).st_size, 0)
    os.fsync(file)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    if not text.strip(b"\0"):
        return None  # overwritten, and about to be removed
    try:
        document: dict[str, Any] = json.loads(text)
        if hashlib.sha256(document["key"].encode()).hexdigest()[:32] == path.stem:
            return document
        why = "it is of another key"
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = type(error).__name__
    raise IntegrityError(f"{path} cannot be used ({why}): somebody has changed it; look at it")
