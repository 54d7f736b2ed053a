"""What a place for shared files must be able to do, and which place a URL names.

    store.url ─► protocol ─► row of ``_BACKENDS`` ─► backend
                 file, local, none                    a folder that all machines see
                 s3, gs, sftp, memory, …              whatever fsspec can reach

Another way of sharing files between machines is one module with the methods of ``StoreBackend``
and one row of the table. Names, messages and repeated requests are the business of ``Depot``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from s3t.errors import InputError
from s3t.store.folder import FolderBackend
from s3t.store.objects import ObjectBackend

__all__ = ["StoreBackend", "open_backend"]


class StoreBackend(Protocol):
    """A place for files, by paths relative to its root, such as ``work/claims/a``; "" is the root.

    A method may raise any error of its library: ``Depot`` makes one ``UnavailableError`` of it.
    Only the three errors named below have a meaning of their own.
    """

    @property
    def folder(self) -> Path | None:
        """The root as a folder of this machine's file systems; None if it is none."""
        ...

    @property
    def tells_versions(self) -> bool:
        """Whether ``versions`` tells of all older versions that the place keeps."""
        ...

    def has(self, path: str) -> bool:
        """Whether a file lies there now; never answered from a cache."""
        ...

    def names(self, path: str) -> list[str]:
        """Names of files and folders in a folder, in any order; never answered from a cache.

        Raises:
            FileNotFoundError, NotADirectoryError: there is no such folder.
        """
        ...

    def get(self, path: str, first: int | None) -> bytes:
        """What lies there, or only its ``first`` bytes.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        ...

    def put(self, path: str, content: bytes) -> None:
        """Put a whole file there, durably; readers see what was there before, or all of this."""
        ...

    def create(self, path: str, content: bytes) -> None:
        """The same, unless a file lies there. Of several callers one succeeds.

        Raises:
            FileExistsError: a file lies there.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file.

        Raises:
            FileNotFoundError: nothing lies there.
        """
        ...

    def settle(self, path: str) -> None:
        """Make removals from a folder durable, if they are not yet."""
        ...

    def versions(self, path: str) -> dict[str, list[str]] | None:
        """Ids of older versions and delete markers of the files in a folder, by name; {} where
        none are kept, None where they may not be seen."""
        ...

    def remove_version(self, path: str, version: str) -> None:
        """Remove a version that ``versions`` told of.

        Raises:
            PermissionError: it is held there (an object lock).
        """
        ...


_BACKENDS: Mapping[str, Callable[[str], StoreBackend]] = {
    "": FolderBackend,
    "file": FolderBackend,
    "local": FolderBackend,
}
"""Protocol of a URL → what opens it; all others are fsspec's."""


def open_backend(url: str) -> StoreBackend:
    """The backend of a URL.

    Args:
        url: ``s3://bucket/run``, ``file:///share/run``, or the path of a folder.

    Raises:
        InputError: the URL cannot be used: a package is missing, or no backend knows it.
    """
    protocol, found, _ = url.partition("://")
    opened = _BACKENDS.get(protocol if found else "", ObjectBackend)
    try:
        return opened(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"store.url {url!r} cannot be used ({error}): install what it needs, or give "
            "another, such as s3://BUCKET/RUN or a folder that all machines share"
        ) from None
