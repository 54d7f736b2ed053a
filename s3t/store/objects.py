"""Files at any other URL that fsspec can reach: a backend of ``Depot``. The one door to fsspec.

    s3, gs, memory, …   put: one request with the whole object    create: a conditional put
    sftp, hdfs, …       put: temporary file ─► move               create: look, then put

fsspec has no call for versions of objects; of S3's they are asked for through its client. Listings
are never taken from fsspec's cache.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

__all__ = ["ObjectBackend"]

_WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "obs", "r2"}
"""Protocols that show an object only when all of it was sent."""

_TRIES = 5


class ObjectBackend:
    """Files under a URL of fsspec.

    Args:
        url: such as ``s3://bucket/run``.

    Attributes:
        files: fsspec's file system.
        whole: whether an object is seen only when all of it was sent.

    Raises:
        ImportError, ValueError: fsspec cannot reach it.
    """

    folder = None

    def __init__(self, url: str) -> None:
        import fsspec

        self.files, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")
        protocols = self.files.protocol
        named = {protocols} if isinstance(protocols, str) else {*protocols}
        self.whole = bool(named & _WHOLE)

    @property
    def tells_versions(self) -> bool:
        """See ``StoreBackend.tells_versions``: only S3 is asked for versions."""
        return hasattr(self.files, "call_s3")

    def has(self, path: str) -> bool:
        """See ``StoreBackend.has``."""
        self.files.invalidate_cache()
        return bool(self.files.isfile(self._at(path)))

    def names(self, path: str) -> list[str]:
        """See ``StoreBackend.names``."""
        self.files.invalidate_cache()
        found = self.files.ls(self._at(path), detail=False)
        return [one.rstrip("/").rpartition("/")[2] for one in found]

    def get(self, path: str, first: int | None) -> bytes:
        """See ``StoreBackend.get``."""
        content: bytes = self.files.cat_file(self._at(path), start=None, end=first)
        return content

    def put(self, path: str, content: bytes) -> None:
        """See ``StoreBackend.put``."""
        at = self._at(path)
        if self.whole:
            self.files.pipe_file(at, content)
            return
        temporary = f"{at}.{secrets.token_hex(8)}.tmp"
        self.files.makedirs(at.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(temporary, content)
        self.files.mv(temporary, at)

    def create(self, path: str, content: bytes) -> None:
        """See ``StoreBackend.create``. Two callers at the same moment may both be refused, so each
        tries again. Where the file system has no such operation both may succeed."""
        for _ in range(_TRIES):
            try:
                self.files.pipe_file(self._at(path), content, mode="create")
                return
            except OSError as error:
                if _code(error) != "ConditionalRequestConflict":
                    raise
                conflict = error
            time.sleep(secrets.randbelow(200) / 1000)
        raise conflict

    def remove(self, path: str) -> None:
        """See ``StoreBackend.remove``."""
        self.files.rm_file(self._at(path))

    def settle(self, path: str) -> None:
        """See ``StoreBackend.settle``: what a store has answered is durable."""

    def versions(self, path: str) -> dict[str, list[str]] | None:
        """See ``StoreBackend.versions``; {} for all stores but S3."""
        if not self.tells_versions:
            return {}
        bucket, prefix = self._bucket(f"{self._at(path)}/")
        found: dict[str, list[str]] = {}
        marker: dict[str, str] = {}
        while True:
            try:
                page = self.files.call_s3(
                    "list_object_versions", Bucket=bucket, Prefix=prefix, Delimiter="/", **marker
                )
            except PermissionError:
                return None
            except Exception as error:
                if _code(error) == "NotImplemented":  # the server keeps none
                    return {}
                raise
            older = [one for one in page.get("Versions", ()) if not one["IsLatest"]]
            for one in (*older, *page.get("DeleteMarkers", ())):
                found.setdefault(one["Key"].removeprefix(prefix), []).append(one["VersionId"])
            if not page.get("IsTruncated"):
                return found
            marker = _next_page(page)

    def remove_version(self, path: str, version: str) -> None:
        """See ``StoreBackend.remove_version``."""
        bucket, key = self._bucket(self._at(path))
        self.files.call_s3("delete_object", Bucket=bucket, Key=key, VersionId=version)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    @staticmethod
    def _bucket(path: str) -> tuple[str, str]:
        """Bucket and key of a path."""
        bucket, _, key = path.partition("/")
        return bucket, key


def _next_page(page: dict[str, Any]) -> dict[str, str]:
    """Where S3's next page of versions begins."""
    names = {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
    return {own: page[theirs] for own, theirs in names.items() if page.get(theirs)}


def _code(error: BaseException) -> str:
    """S3's own name of an error, however it was translated; empty if it has none."""
    response = getattr(error.__cause__ or error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
