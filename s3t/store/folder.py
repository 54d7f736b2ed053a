"""A folder that all machines see, such as one on NFS: a backend of ``Depot``.

put      temporary file ─► fsync ─► rename
create   temporary file ─► fsync ─► hard link, which fails if there is a file of that name
"""

from __future__ import annotations

import os
from pathlib import Path

from s3t.system.durable import create_durably, sync_folder, write_durably

__all__ = ["FolderBackend"]


class FolderBackend:
    """Files of a folder of this machine's file systems.

    Args:
        url: ``file:///share/run``, ``local:///share/run``, or a path.

    Attributes:
        folder: its absolute path.
    """

    tells_versions = True

    def __init__(self, url: str) -> None:
        path = url.removeprefix("file://").removeprefix("local://")
        self.folder: Path | None = Path(os.path.abspath(os.path.expanduser(path)))
        self._root = self.folder

    def has(self, path: str) -> bool:
        """See ``StoreBackend.has``."""
        return os.path.isfile(self._root / path)

    def names(self, path: str) -> list[str]:
        """See ``StoreBackend.names``."""
        return os.listdir(self._root / path)

    def get(self, path: str, first: int | None) -> bytes:
        """See ``StoreBackend.get``."""
        with (self._root / path).open("rb") as file:
            return file.read(-1 if first is None else first)

    def put(self, path: str, content: bytes) -> None:
        """See ``StoreBackend.put``."""
        write_durably(self._root / path, content)

    def create(self, path: str, content: bytes) -> None:
        """See ``StoreBackend.create``."""
        create_durably(self._root / path, content)

    def remove(self, path: str) -> None:
        """See ``StoreBackend.remove``."""
        (self._root / path).unlink()

    def settle(self, path: str) -> None:
        """See ``StoreBackend.settle``."""
        if (self._root / path).is_dir():
            sync_folder(self._root / path)

    def versions(self, path: str) -> dict[str, list[str]] | None:
        """See ``StoreBackend.versions``: file systems keep none that a program can ask for."""
        return {}

    def remove_version(self, path: str, version: str) -> None:
        """See ``StoreBackend.remove_version``: there are none."""
        raise FileNotFoundError(f"{path} has no version {version}")
