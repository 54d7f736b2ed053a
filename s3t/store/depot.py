"""Bytes under names at any fsspec URL: a shared folder, an object store. The one door to fsspec.

    file, local           temporary ─► fsync ─► rename            exclusive: a hard link
    s3, gs, memory, …     one put of the whole object             exclusive: a conditional put
    sftp, hdfs, …         temporary ─► move                       exclusive: looked for, then put

Invariant: a name holds the whole of what was put under it, or nothing. Listings are never cached.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path

from s3t.errors import InputError, S3TError, UnavailableError, unavailable
from s3t.system.durable import create_durably, remove_whole, sync_folder, write_durably

__all__ = ["Depot"]

_WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "obs", "r2"}
"""Protocols that show an object only when all of it was sent."""

_TRIES = 5


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
            UnavailableError: the URL cannot be reached.
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
        """Put it there unless something else is there; returns whether it lies there now.

        Asked again after the answer was lost, a store says that something is there already: so what
        is the very content counts as put, by us or by another who put the same. Where the file
        system has no such operation two callers may both be told that theirs was.
        """
        at = self._at(name)
        try:
            with self._reached(name):
                if self.folder is not None:
                    create_durably(Path(at), content)
                else:
                    self._created(at, content)
            return True
        except FileExistsError:
            with suppress(FileNotFoundError):  # it was there, and is gone
                return self.get(name) == content
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

    def versions(self) -> dict[str, list[str]] | None:
        """What lies here and no listing shows: by name, ids of older versions and delete markers.

        Only S3 is asked; None where it does not let us see them.
        """
        if not self.is_s3:
            return {}
        bucket, _, prefix = self._root.partition("/")
        prefix = f"{prefix}/" if prefix else ""
        found: dict[str, list[str]] = {}
        marker: dict[str, str] = {}
        with self._reached(""):
            while True:
                try:
                    page = self._files.call_s3(
                        "list_object_versions",
                        Bucket=bucket,
                        Prefix=prefix,
                        Delimiter="/",
                        **marker,
                    )
                except PermissionError:
                    return None
                except Exception as error:
                    if _code(error) == "NotImplemented":  # so it keeps none
                        return {}
                    raise
                older = [one for one in page.get("Versions", ()) if not one["IsLatest"]]
                for one in (*older, *page.get("DeleteMarkers", ())):
                    found.setdefault(one["Key"].removeprefix(prefix), []).append(one["VersionId"])
                if not page.get("IsTruncated"):
                    return found
                marker = {
                    own: page[theirs]
                    for own, theirs in (
                        ("KeyMarker", "NextKeyMarker"),
                        ("VersionIdMarker", "NextVersionIdMarker"),
                    )
                    if page.get(theirs)
                }

    def remove_versions(self, names: Collection[str]) -> dict[str, str]:
        """Remove what ``versions`` shows of some names.

        Returns:
            by name, why something of it is left: the store does not let us, or holds it (a lock).
        """
        bucket, _, prefix = self._root.partition("/")
        left: dict[str, str] = {}
        for name, ids in sorted((self.versions() or {}).items()):
            if name not in names:
                continue
            key = f"{prefix}/{name}" if prefix else name
            for version in ids:
                with self._reached(name):
                    try:
                        self._files.call_s3(
                            "delete_object", Bucket=bucket, Key=key, VersionId=version
                        )
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

    @property
    def is_s3(self) -> bool:
        """Whether it speaks S3, of which versions of objects are known."""
        return hasattr(self._files, "call_s3")

    def _created(self, at: str, content: bytes) -> None:
        """A conditional put; two at the same moment may both be refused, and are to try again."""
        for _ in range(_TRIES):
            try:
                self._files.pipe_file(at, content, mode="create")
                return
            except OSError as error:
                if _code(error) != "ConditionalRequestConflict":
                    raise
                conflict = error
            time.sleep(secrets.randbelow(200) / 1000)
        raise conflict

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


def _code(error: BaseException) -> str:
    """S3's own name of an error, however it was translated; empty if it has none."""
    response = getattr(error.__cause__ or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
