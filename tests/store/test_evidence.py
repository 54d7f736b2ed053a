"""What a node says of public rows, kept beside it: plain, sealed, at a URL; removal has a test file
of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from s3t.errors import DamagedNodeError
from s3t.store import Evidence, NodeStore, open_depot
from s3t.types import digest
from tests.support.small_nodes import ENVIRONMENT, META, OTHER, SAID, TENSORS, sealed_store

ROWS = META.rows
NAME = f"{META.key}.evidence"


@pytest.fixture(params=["here", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """Where nodes lie: in the run, in an object store, in a folder that machines share."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    urls = {"here": None, "memory": "memory://bucket/run", "file": f"file://{tmp_path}/shared"}
    yield urls[request.param]
    MemoryFileSystem.store.clear()


def store_at(root: Path, url: str | None, sealed: bool) -> NodeStore:
    depot = None if url is None else open_depot(url)
    if sealed:
        return sealed_store(root, root.parent / "keys" / "run.keys", depot)
    return NodeStore(root, depot)


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def store(url: str | None, tmp_path: Path, request: pytest.FixtureRequest) -> NodeStore:
    made = store_at(tmp_path / "nodes", url, request.param)
    made.write(META, TENSORS, SAID)
    return made


def test_it_is_read_as_it_was_written(store: NodeStore) -> None:
    said = store.evidence(META.key, ROWS)
    assert said is not None and said.dtype == torch.float32 and torch.equal(said, SAID)
    assert store.read(META.key)[0].key == META.key
    assert store.keys() == store.evidence_keys() == store.traces() == {META.key}
    assert store.strays() == []
    whole = store.read_evidence(META.key)
    assert (whole.key, whole.rows, whole.environment) == (META.key, ROWS, ENVIRONMENT)
    if store.sealer is not None:
        assert b"validation" not in (store.root / NAME).read_bytes()
        assert (store.root / NAME).read_bytes().startswith(b"S3TSEAL")


def test_of_other_rows_there_is_none(store: NodeStore, caplog: pytest.LogCaptureFixture) -> None:
    assert store.evidence(META.key, digest("other rows")) is None
    store.write(OTHER, TENSORS)
    assert store.evidence(OTHER.key, OTHER.rows) is None
    assert store.evidence_keys() == {META.key} and store.keys() == {META.key, OTHER.key}
    assert not caplog.records, "nothing is wrong with either"


def test_its_digest_is_of_all_of_it(store: NodeStore) -> None:
    one = store.read_evidence(META.key)
    others = [
        replace(one, key=OTHER.key),
        replace(one, rows=digest("other rows")),
        replace(one, environment=digest("elsewhere")),
        replace(one, said=one.said + 1),
        replace(one, said=one.said.flatten()),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6
    store.write_evidence(others[1])
    assert store.evidence(META.key, ROWS) is None
    assert store.read_evidence(META.key).digest == others[1].digest


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "the node"])
def test_damage_is_logged_and_never_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = NodeStore(tmp_path / "nodes")
    for meta in (META, OTHER):
        store.write(meta, TENSORS, SAID)
    path = tmp_path / "nodes" / NAME
    sound = path.read_bytes()
    path.write_bytes(
        {
            "cut": sound[:-1],
            "flipped": sound[:-1] + bytes([sound[-1] ^ 1]),
            "empty": b"",
            "foreign": (tmp_path / "nodes" / f"{OTHER.key}.evidence").read_bytes(),
            "the node": store.path(META.key).read_bytes(),
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert store.evidence(META.key, ROWS) is None
    assert f"node {META.key} has evidence that" in caplog.text and "not used" in caplog.text
    with pytest.raises(DamagedNodeError, match="has evidence that"):
        store.read_evidence(META.key)
    assert store.read(META.key)[0].key == META.key, "the node serves all the same"


def test_a_sealed_node_and_its_evidence_cannot_be_swapped(tmp_path: Path) -> None:
    store = store_at(tmp_path / "nodes", None, sealed=True)
    store.write(META, TENSORS, SAID)
    node, evidence = store.path(META.key), store.root / NAME
    node.rename(tmp_path / "node")
    evidence.rename(node)
    (tmp_path / "node").rename(evidence)
    with pytest.raises(DamagedNodeError, match="the seal of its"):
        store.read(META.key)
    with pytest.raises(DamagedNodeError, match="the seal of its"):
        store.read_evidence(META.key)


def test_another_machine_copies_it_and_takes_up_other_rows(url: str, tmp_path: Path) -> None:
    if url is None:
        pytest.skip("there is one machine")
    store, other = (store_at(tmp_path / name, url, sealed=False) for name in ("nodes", "other"))
    store.write(META, TENSORS, SAID)
    said = other.evidence(META.key, ROWS)
    assert said is not None and torch.equal(said, SAID)
    assert (other.root / NAME).read_bytes() == (store.root / NAME).read_bytes()
    assert other.copies() == {META.key}
    store.write_evidence(Evidence(META.key, digest("new rows"), ENVIRONMENT, SAID + 1))
    said = other.evidence(META.key, digest("new rows"))
    assert said is not None and torch.equal(said, SAID + 1), "the copy was of the rows of before"
    (other.root / NAME).write_bytes(b"damaged")
    said = other.evidence(META.key, digest("new rows"))
    assert said is not None and torch.equal(said, SAID + 1), "fetched again"
    assert other.forget_copies([META.key]) == [] and not (other.root / NAME).exists()


def test_it_is_there_before_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = NodeStore(tmp_path / "nodes")
    seen: list[str] = []
    monkeypatch.setattr("s3t.store.nodes.write_durably", lambda path, _: seen.append(path.name))
    store.write(META, TENSORS, SAID)
    assert seen == [NAME, f"{META.key}.safetensors"]
