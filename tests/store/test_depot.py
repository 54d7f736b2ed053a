"""Bytes at a URL: lost answers, older versions that a bucket keeps, what killed writers leave."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from s3t.audit.audit import audit
from s3t.errors import UnavailableError
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.store import Depot, NodeStore, open_depot
from s3t.store.nodes import STALE
from s3t.training.work.train import train
from tests.support.small_nodes import META, OTHER, TENSORS
from tests.support.small_runs import dead_keys, forget, small_configs

NAME = f"{META.key}.safetensors"


@pytest.fixture(params=["memory", "file"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Depot]:
    MemoryFileSystem.store.clear()
    yield open_depot("memory://depot" if request.param == "memory" else str(tmp_path / "depot"))
    MemoryFileSystem.store.clear()


def test_what_is_there_already_is_put_if_it_is_the_same(depot: Depot) -> None:
    assert depot.create("a", b"ours")
    assert depot.create("a", b"ours"), "the answer to the first may have been lost"
    assert not depot.create("a", b"another's")
    assert depot.get("a") == b"ours"


def test_puts_that_meet_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        def __init__(self) -> None:
            self.response = {"Error": {"Code": "ConditionalRequestConflict"}}

    depot, tries = open_depot("memory://meeting"), []
    put = depot.backend.files.pipe_file

    def meeting(at: str, content: bytes, mode: str) -> None:
        tries.append(at)
        if len(tries) < 3:
            raise OSError("conflict") from Refused()
        put(at, content, mode=mode)

    monkeypatch.setattr(depot.backend.files, "pipe_file", meeting)
    assert depot.create("a", b"ours") and len(tries) == 3

    def refused(at: str, content: bytes, mode: str) -> None:
        raise OSError("conflict") from Refused()

    monkeypatch.setattr(depot.backend.files, "pipe_file", refused)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        depot.create("b", b"ours")


class Box:
    """A backend with the methods of ``StoreBackend`` and no others: files in a dict."""

    folder, tells_versions = None, True

    def __init__(self, url: str) -> None:
        self.files: dict[str, bytes] = {}

    def has(self, path: str) -> bool:
        return path in self.files

    def names(self, path: str) -> list[str]:
        start = f"{path}/" if path else ""
        below = [one.removeprefix(start) for one in self.files if one.startswith(start)]
        return [name for name in below if "/" not in name]

    def get(self, path: str, first: int | None) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path][:first]

    def put(self, path: str, content: bytes) -> None:
        self.files[path] = content

    def create(self, path: str, content: bytes) -> None:
        if path in self.files:
            raise FileExistsError(path)
        self.files[path] = content

    def remove(self, path: str) -> None:
        if self.files.pop(path, None) is None:
            raise FileNotFoundError(path)

    def settle(self, path: str) -> None:
        """Nothing."""

    def versions(self, path: str) -> dict[str, list[str]] | None:
        return {}

    def remove_version(self, path: str, version: str) -> None:
        raise FileNotFoundError(path)


def test_another_backend_is_one_row_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3t.store.backend._BACKENDS", {"box": Box})
    depot = open_depot("box://here")
    store = NodeStore(tmp_path / "nodes", depot)
    store.write(META, TENSORS)
    store.path(META.key).unlink()
    assert store.keys() == {META.key} and store.read(META.key)[0].key == META.key
    claims = depot.under("work/claims")
    assert claims.create("a", b"one") and not claims.create("a", b"two")
    assert claims.names() == ["a"] and claims.where("a") == "box://here/work/claims/a"
    assert store.remove([META.key]).files[-1] == f"box://here/{NAME}"
    assert not store.keys() and not store.versions() and claims.get("a") == b"one"


def test_half_written_files_are_swept_in_every_folder(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "nodes", open_depot(str(tmp_path / "depot")))
    half = [
        tmp_path / folder / f".{name}.1.aa.tmp"
        for folder, name in (
            ("nodes", NAME),
            ("depot", NAME),
            ("depot/work/claims", META.key),
            ("depot/work/beats", "0-1"),
            ("depot/run/deletions", "1.json"),
        )
    ]
    for path in half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert store.sweep() == 2, "others may be at what lies beside the nodes"
    assert [path.exists() for path in half] == [False, False, True, True, True]
    for path in half[2:]:
        os.utime(path, (time.time() - STALE - 60,) * 2)
    assert store.sweep(STALE) == 3
    assert not any(path.exists() for path in half)


# ── a bucket that keeps versions ─────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that speaks S3, with an empty bucket that keeps versions; its client."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    server = pytest.importorskip("moto.server", reason="there is no moto: pip install moto[server]")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    from s3fs import S3FileSystem

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # it is the process's
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    yield client
    running.stop()
    S3FileSystem.clear_instance_cache()


def versions(client: Any, name: str = NAME) -> int:
    """Versions and delete markers of an object of a run."""
    found = client.list_object_versions(Bucket="bucket", Prefix=f"run/{name}")
    return len(found.get("Versions", ())) + len(found.get("DeleteMarkers", ()))


@pytest.mark.slow
def test_older_versions_go_with_a_node(bucket: Any, tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "nodes", open_depot("s3://bucket/run"))
    for meta in (META, META, OTHER, OTHER):
        store.write(meta, TENSORS)
    assert versions(bucket) == 2 and store.versions() == {META.key, OTHER.key}
    removal = store.remove([META.key])
    assert len(removal.files) == 2 and not removal.left
    assert versions(bucket) == 0 and store.versions() == {OTHER.key}
    assert store.read(OTHER.key)[0].key == OTHER.key
    # one that only its marker hides, as a plain client leaves it
    store.write(META, TENSORS)
    bucket.delete_object(Bucket="bucket", Key=f"run/{NAME}")
    assert not store.has(META.key) and META.key in (store.versions() or ())
    store.remove([META.key])
    assert versions(bucket) == 0


@pytest.mark.slow
def test_versions_that_a_store_holds_are_told(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = NodeStore(tmp_path / "nodes", open_depot("s3://bucket/run"))
    store.write(META, TENSORS)
    depot = store.depot
    assert depot is not None
    call = depot.backend.files.call_s3

    def locked(method: str, **words: Any) -> Any:
        if method == "delete_object" and "VersionId" in words:
            raise PermissionError("Access Denied because object protected by object lock.")
        return call(method, **words)

    with monkeypatch.context() as held:
        held.setattr(depot.backend.files, "call_s3", locked)
        assert "object lock" in store.remove([META.key]).left[META.key]

    def hidden(method: str, **words: Any) -> Any:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as held:
        held.setattr(depot.backend.files, "call_s3", hidden)
        assert store.versions() is None
    assert store.versions() == {META.key}
    assert not store.remove([META.key]).left and not store.versions()


@pytest.mark.heavy
def test_a_purge_reaches_older_versions_and_the_audit_names_what_it_did_not(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    call = S3FileSystem.call_s3

    def locked(self: Any, method: str, **words: Any) -> Any:
        if "VersionId" in words:
            raise PermissionError("object lock")
        return call(self, method, **words)

    def hidden(self: Any, method: str, **words: Any) -> Any:
        raise PermissionError("Access Denied")

    config = small_configs(tmp_path)("run", store={"url": "s3://bucket/run"})
    train(config)
    forget(config, "p03")
    dead = dead_keys(config)
    with monkeypatch.context() as held:
        held.setattr(S3FileSystem, "call_s3", locked)
        found = purge(RunDir(config.run_dir))
    assert not dead & set(found.nodes) and "older versions of 3 of them are left" in str(found)
    assert sum(versions(bucket, f"{key}.safetensors") for key in dead) == 2 * len(dead) == 6
    assert not dead & RunDir(config.run_dir).store.keys()
    e7 = audit(config.run_dir)["E7"]
    assert e7.status == "broken" and "an older version of node" in str(e7.problems)
    found = purge(RunDir(config.run_dir))
    assert dead <= set(found.nodes) and "are left" not in str(found)
    assert sum(versions(bucket, f"{key}.safetensors") for key in dead) == 0
    assert audit(config.run_dir)["E7"].status == "holds"
    with monkeypatch.context() as held:
        held.setattr(S3FileSystem, "call_s3", hidden)
        assert "does not let us see older versions" in str(purge(RunDir(config.run_dir)))
        assert audit(config.run_dir)["E7"].status == "broken"
