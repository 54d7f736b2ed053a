"""Bytes under names at any fsspec URL: a shared folder, an object store. The one door to fsspec.

    file, local           temporary ─► fsync ─► rename            exclusive: a hard link
    s3, gs, memory, …     one put of the whole object             exclusive: a conditional put
    sftp, hdfs, …         temporary ─► move                       exclusive: looked for, then put

Invariant: a name holds the whole of what was put under it, or nothing. Listings are never cached.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

from s3t.errors import InputError, S3TError, UnavailableError, unavailable
from s3t.store.durable import fresh_beside, sync_folder, write_durably

__all__ = ["Depot"]

_WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "obs", "r2"}
"""Protocols that show an object only when all of it was sent."""


class Depot:
    """A folder at an fsspec URL.

    Args:
        url: ``s3://bucket/run``, ``file:///share/run``, or the path of a folder.

    Attributes:
        url: where it is.
        folder: the same as a path, where it is a folder of this machine's file systems.

    Raises:
        InputError: nothing here knows how to reach such a URL.
    """

    def __init__(self, url: str) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.url = url if url.endswith("://") else url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"store.url {url!r} cannot be used ({error}): install what it needs, or give "
                "another, such as s3://BUCKET/RUN or a folder that all machines share"
            ) from None
        self._root = self._root.rstrip("/")
        self.folder = Path(self._root) if isinstance(self._files, LocalFileSystem) else None
        protocols = self._files.protocol
        named = {protocols} if isinstance(protocols, str) else {*protocols}
        self._whole = bool(named & _WHOLE)

    def under(self, folder: str) -> Depot:
        """A folder of this one."""
        below = copy(self)
        below.url, below._root = self.where(folder), self._at(folder)
        below.folder = None if self.folder is None else self.folder / folder
        return below

    def where(self, name: str) -> str:
        """The URL of a name."""
        return f"{self.url}{'' if self.url.endswith('://') else '/'}{name}"

    def has(self, name: str) -> bool:
        """Whether anything lies under the name."""
        with self._reached(name):
            self._files.invalidate_cache()
            return bool(self._files.isfile(self._at(name)))

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted, by one listing; none if there is no such folder.

        What is half-written at that moment has no name yet.
        """
        with self._reached(folder), suppress(FileNotFoundError, NotADirectoryError):
            self._files.invalidate_cache()
            found = self._files.ls(self._at(folder), detail=False)
            names = (path.rstrip("/").rpartition("/")[2] for path in found)
            return sorted(n for n in names if not (n.startswith(".") and n.endswith(".tmp")))
        return []

    def get(self, name: str, first: int | None = None) -> bytes:
        """What was put, or only its ``first`` bytes.

        Raises:
            FileNotFoundError: nothing was.
            S3TError: the URL cannot be reached.
        """
        with self._reached(name):
            content: bytes = self._files.cat_file(self._at(name), start=None, end=first)
            return content

    def put(self, name: str, content: bytes) -> None:
        """Put it there whole, in place of what was there."""
        at = self._at(name)
        with self._reached(name):
            if self.folder is not None:
                write_durably(Path(at), content)
            elif self._whole:
                self._files.pipe_file(at, content)
            else:
                temporary = f"{at}.{secrets.token_hex(8)}.tmp"
                self._files.makedirs(at.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(temporary, content)
                self._files.mv(temporary, at)

    def create(self, name: str, content: bytes) -> bool:
        """Put it there unless something is there; returns whether it was put.

        Where the file system has no such operation two callers may both be told that it was.
        """
        at = self._at(name)
        with self._reached(name), suppress(FileExistsError):
            if self.folder is not None:
                _link(Path(at), content)
            else:
                self._files.pipe_file(at, content, mode="create")
            return True
        return False

    def remove(self, name: str) -> None:
        """Take it away if it is there."""
        with self._reached(name), suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    def remove_all(self, names: Iterable[str]) -> list[str]:
        """Take away those that are there, durably; returns the URLs of those that were."""
        there, gone = {*self.names()}, []
        for name in names:
            if name in there:
                self.remove(name)
                gone.append(self.where(name))
        if self.folder is not None and self.folder.is_dir():
            sync_folder(self.folder)
        return gone

    def tidy(self, folders: tuple[str, ...]) -> None:
        """Remove folders that are empty; only file systems that know empty folders have any."""
        if self.folder is not None:
            for folder in folders:
                with suppress(OSError):
                    Path(self._at(folder)).rmdir()

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reached(self, name: str) -> Iterator[None]:
        """What a client library raises for a URL that does not answer, in our words."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, NotADirectoryError, S3TError):
            raise
        except Exception as error:  # botocore, google and others have error trees of their own
            known = unavailable(error) if isinstance(error, OSError) else None
            raise UnavailableError(
                f"{self.where(name)} cannot be reached ({type(error).__name__}: {error}): see "
                "store.url and its credentials, then run the same command again",
                "store_unreachable" if known is None else known.code,
            ) from error


def _link(path: Path, content: bytes) -> None:
    """Make a file with all its content at once, if there is none of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_beside(path)
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
