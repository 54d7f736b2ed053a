"""Bytes under names at a URL: a shared folder, an object store.

    open_depot(url) ─► Depot: names, messages, repeated requests ─► StoreBackend: the place itself

Invariant: a name holds the whole of what was put under it, or nothing. Listings are never cached.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3t.errors import S3TError, UnavailableError, unavailable
from s3t.store.backend import StoreBackend, open_backend
from s3t.system.durable import remove_whole

__all__ = ["Depot", "open_depot"]


def open_depot(url: str) -> Depot:
    """The depot at a URL.

    Args:
        url: ``s3://bucket/run``, ``file:///share/run``, or the path of a folder.

    Raises:
        InputError: the URL cannot be used.
    """
    return Depot(url if url.endswith("://") else url.rstrip("/"), open_backend(url))


class Depot:
    """A folder at a URL.

    Args:
        url: where it is, for messages.
        backend: reaches the URL.
        below: path of the folder under the backend's root; "" for the root.

    Attributes:
        url: as given.
        folder: the same as a path, where it is a folder of this machine's file systems.
    """

    def __init__(self, url: str, backend: StoreBackend, below: str = "") -> None:
        self.url, self.backend, self._below = url, backend, below
        root = backend.folder
        self.folder: Path | None = None if root is None else root / below

    def under(self, folder: str) -> Depot:
        """A folder of this one."""
        return Depot(self.where(folder), self.backend, self._at(folder))

    def where(self, name: str) -> str:
        """The URL of a name."""
        return f"{self.url}{'' if self.url.endswith('://') else '/'}{name}"

    def has(self, name: str) -> bool:
        """Whether a file lies under the name.

        Raises:
            UnavailableError: the URL cannot be reached, as of all methods here.
        """
        with self._reached(name):
            return self.backend.has(self._at(name))

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted, by one listing; none if there is no such folder.

        What is half-written at that moment has no name yet.
        """
        with self._reached(folder), suppress(FileNotFoundError, NotADirectoryError):
            names = self.backend.names(self._at(folder))
            return sorted(n for n in names if not (n.startswith(".") and n.endswith(".tmp")))
        return []

    def get(self, name: str, first: int | None = None) -> bytes:
        """What was put, or only its ``first`` bytes.

        Raises:
            FileNotFoundError: nothing was.
        """
        with self._reached(name):
            return self.backend.get(self._at(name), first)

    def put(self, name: str, content: bytes) -> None:
        """Put it there whole, in place of what was there."""
        with self._reached(name):
            self.backend.put(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Put it there unless something else is there; returns whether it lies there now.

        A request that is repeated because its answer was lost finds its own file there. So a file
        with this very content counts as put, by this caller or by another one. Where the file
        system has no such operation two callers may both be told that theirs was.
        """
        try:
            with self._reached(name):
                self.backend.create(self._at(name), content)
            return True
        except FileExistsError:
            with suppress(FileNotFoundError):  # it was there, and is gone
                return self.get(name) == content
        return False

    def remove(self, name: str) -> None:
        """Remove it if it is there."""
        with self._reached(name), suppress(FileNotFoundError):
            self.backend.remove(self._at(name))

    def remove_all(self, names: Iterable[str]) -> list[str]:
        """Remove those that are there, durably; returns the URLs of those that were."""
        there, gone = {*self.names()}, []
        for name in names:
            if name in there:
                self.remove(name)
                gone.append(self.where(name))
        with self._reached(""):
            self.backend.settle(self._below)
        return gone

    def tidy(self, folders: tuple[str, ...]) -> None:
        """Remove folders that are empty; only file systems that know empty folders have any."""
        if self.folder is not None:
            for folder in folders:
                with suppress(OSError):
                    (self.folder / folder).rmdir()

    @property
    def tells_versions(self) -> bool:
        """Whether ``versions`` tells of all older versions that the place keeps."""
        return self.backend.tells_versions

    def versions(self) -> dict[str, list[str]] | None:
        """What lies here and no listing shows: by name, ids of older versions and delete markers.

        Only S3 is asked; None where it does not let us see them.
        """
        with self._reached(""):
            return self.backend.versions(self._below)

    def remove_versions(self, names: Collection[str]) -> dict[str, str]:
        """Remove what ``versions`` shows of some names.

        Returns:
            by name, why something of it is left: the store does not let us, or holds it (a lock).
        """
        left: dict[str, str] = {}
        for name, versions in sorted((self.versions() or {}).items()):
            for version in versions if name in names else ():
                with self._reached(name):
                    try:
                        self.backend.remove_version(self._at(name), version)
                    except PermissionError as error:
                        left[name] = str(error)
        return left

    def sweep(self, before: float) -> int:
        """Remove what killed writers left half-written in this folder; returns how many.

        Nothing where a store shows an object only when it is whole; elsewhere than on file systems
        they cannot be told from others.

        Args:
            before: seconds since the epoch; younger files are left alone, as is what just ended.
        """
        swept = 0
        for path in () if self.folder is None else self.folder.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime <= before:
                    remove_whole(path)
                    swept += 1
        return swept

    def _at(self, name: str) -> str:
        return f"{self._below}/{name}" if self._below and name else self._below or name

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
