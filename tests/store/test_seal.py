"""Sealed nodes: the same plain bytes to whoever has the data key, and nothing to all others."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from s3t.errors import DamagedNodeError, IntegrityError
from s3t.store import FileKeyRing, NodeStore, Sealer, open_depot, tensors_digest
from s3t.types import NodeKey
from tests.support.small_nodes import META, OTHER, TENSORS, meta_of, sealed_store

FRAME = 24
"""Bytes before the sealed head: magic, version, two lengths."""


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "run.keys"


@pytest.fixture
def store(tmp_path: Path, ring: Path) -> NodeStore:
    sealed = sealed_store(tmp_path / "nodes", ring)
    sealed.write(META, TENSORS)
    return sealed


@pytest.fixture
def plain(tmp_path: Path) -> NodeStore:
    store = NodeStore(tmp_path / "plain")
    store.write(META, TENSORS)
    return store


def parts(path: Path) -> tuple[bytes, bytes, bytes]:
    """Frame, sealed head and sealed body of a file."""
    content = path.read_bytes()
    (head,) = struct.unpack_from("<Q", content, 8)
    return content[:FRAME], content[FRAME : FRAME + head], content[FRAME + head :]


# ── writing and reading ──────────────────────────────────────────────────────────────────────


def test_plain_bytes_are_those_of_a_plain_store(store: NodeStore, plain: NodeStore) -> None:
    assert store.content(META.key) == plain.path(META.key).read_bytes()
    meta, tensors = store.read(META.key)
    assert meta == store.meta(META.key) == plain.meta(META.key)
    assert tensors_digest(tensors) == tensors_digest(TENSORS)
    assert store.has(META.key) and store.keys() == {META.key}


def test_nothing_of_a_node_can_be_seen_in_its_file(store: NodeStore, plain: NodeStore) -> None:
    sealed, open_ = store.path(META.key).read_bytes(), plain.path(META.key).read_bytes()
    for word in (b"lora_A", b"head", META.base.encode(), META.key.encode(), b"score"):
        assert word in open_ and word not in sealed
    for at in range(0, len(open_) - 16):
        assert open_[at : at + 16] not in sealed
    assert len(sealed) == len(open_) + FRAME + 2 * 28


def test_sealed_bytes_are_other_ones_each_time(store: NodeStore) -> None:
    before, there = store.content(META.key), store.path(META.key).read_bytes()
    store.write(META, TENSORS)
    again = store.path(META.key).read_bytes()
    assert store.content(META.key) == before
    alike = sum(a == b for a, b in zip(again[FRAME:], there[FRAME:], strict=True))
    assert alike < len(again) / 32, "nonces, and with them all bytes, are drawn again"


def test_metadata_are_had_without_the_weights(store: NodeStore) -> None:
    path = store.path(META.key)
    frame, head, body = parts(path)
    path.write_bytes(frame + head + b"\0" * len(body))
    assert store.meta(META.key).key == META.key
    with pytest.raises(DamagedNodeError, match="the seal of its body is broken"):
        store.read(META.key)
    path.write_bytes(frame + head)
    assert store.meta(META.key).key == META.key
    with pytest.raises(DamagedNodeError, match=f"has {FRAME + len(head)} bytes, not"):
        store.read(META.key)


def test_metadata_longer_than_a_first_look_are_read_whole(store: NodeStore) -> None:
    many = {f"layers.{number:03d}.q.lora_A": torch.ones(1) for number in range(400)}
    store.write(OTHER, many)
    assert len(parts(store.path(OTHER.key))[1]) > 16 * 2**10
    assert store.meta(OTHER.key) == store.read(OTHER.key)[0]
    assert store.meta(OTHER.key).weights == tensors_digest(many)


def test_a_node_without_tensors_can_be_sealed(store: NodeStore) -> None:
    none: dict[str, Tensor] = {}
    store.write(OTHER, none)
    assert store.read(OTHER.key)[1] == {}


# ── what is not sound ────────────────────────────────────────────────────────────────────────


def test_every_flipped_byte_is_found(store: NodeStore) -> None:
    path = store.path(META.key)
    sound = path.read_bytes()
    head = FRAME + len(parts(path)[1])
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        for read in (store.read, store.content):
            with pytest.raises(DamagedNodeError) as caught:
                read(META.key)
            assert caught.value.key == META.key
        if at < 16 or FRAME <= at < head:
            with pytest.raises(DamagedNodeError):
                store.meta(META.key)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 23, 24, 25, 60, -100, -17, -1])
def test_a_truncated_file_is_found(store: NodeStore, kept: int) -> None:
    path = store.path(META.key)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedNodeError, match="cannot be read"):
        store.read(META.key)


def test_bytes_at_the_end_are_found(store: NodeStore) -> None:
    path = store.path(META.key)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedNodeError, match="cannot be read"):
        store.read(META.key)


@pytest.mark.parametrize("length", [0, 1, 27, 2**26, 2**40, 2**63, 2**64 - 1])
def test_lengths_that_are_none_are_found(store: NodeStore, length: int) -> None:
    path = store.path(META.key)
    _, head, body = parts(path)
    for lengths in ((length, len(body)), (len(head), length), (length, length)):
        path.write_bytes(struct.pack("<7sBQQ", b"S3TSEAL", 1, *lengths) + head + body)
        with pytest.raises(DamagedNodeError, match="cannot be read"):
            store.read(META.key)
    with pytest.raises(DamagedNodeError, match="cannot be read"):
        store.meta(META.key)


def test_another_version_of_the_seal_is_found(store: NodeStore) -> None:
    path = store.path(META.key)
    path.write_bytes(b"S3TSEAL\x02" + path.read_bytes()[8:])
    for read in (store.read, store.meta, store.content):
        with pytest.raises(DamagedNodeError, match="its seal has version 2, not 1"):
            read(META.key)


class OneKey:
    """A ring that gives every node the same data key, so that only what is bound tells them."""

    def get(self, key: NodeKey) -> bytes:
        return b"\x07" * 32

    def create(self, key: NodeKey) -> bytes:
        return b"\x07" * 32

    def destroy(self, keys: Collection[NodeKey]) -> frozenset[NodeKey]:
        return frozenset()


@pytest.mark.parametrize("one_key", [False, True])
def test_swapped_files_are_found(tmp_path: Path, ring: Path, one_key: bool) -> None:
    sealer = Sealer(OneKey() if one_key else FileKeyRing(ring), "ring")
    store = NodeStore(tmp_path / "nodes", None, sealer)
    store.write(META, TENSORS)
    store.write(OTHER, TENSORS)
    one, two = store.path(META.key), store.path(OTHER.key)
    kept = one.rename(one.with_suffix(".kept"))
    two.rename(one)
    kept.rename(two)
    for key in (META.key, OTHER.key):
        for read in (store.read, store.meta, store.content):
            with pytest.raises(DamagedNodeError, match="the seal of its head is broken"):
                read(key)


def test_swapped_parts_are_found(store: NodeStore) -> None:
    path = store.path(META.key)
    _, head, body = parts(path)
    path.write_bytes(struct.pack("<7sBQQ", b"S3TSEAL", 1, len(body), len(head)) + body + head)
    for read in (store.read, store.meta):
        with pytest.raises(DamagedNodeError, match="the seal of its head is broken"):
            read(META.key)


def test_the_body_of_another_node_is_found(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "nodes", None, Sealer(OneKey(), "ring"))
    store.write(META, TENSORS)
    store.write(OTHER, TENSORS)
    frame, head, _ = parts(store.path(META.key))
    store.path(META.key).write_bytes(frame + head + parts(store.path(OTHER.key))[2])
    with pytest.raises(DamagedNodeError, match="the seal of its body is broken"):
        store.read(META.key)


def test_the_right_seal_around_another_lineage_is_found(store: NodeStore) -> None:
    assert store.sealer is not None
    content = store.sealer.seal(OTHER.key, store.content(META.key))
    store.path(OTHER.key).write_bytes(content)
    for read in (store.read, store.meta):
        with pytest.raises(DamagedNodeError, match="another lineage than its name says"):
            read(OTHER.key)


# ── rings ────────────────────────────────────────────────────────────────────────────────────


def test_another_ring_opens_nothing(store: NodeStore, tmp_path: Path) -> None:
    other = sealed_store(store.root, tmp_path / "other.keys")
    with pytest.raises(IntegrityError, match=r"other\.keys is missing: mount or restore"):
        other.read(META.key)
    sealed_store(tmp_path / "elsewhere", tmp_path / "other.keys").write(OTHER, TENSORS)
    with pytest.raises(DamagedNodeError, match=r"data key never was in key ring .*other\.keys"):
        other.read(META.key)
    sealed_store(tmp_path / "elsewhere", tmp_path / "other.keys").write(META, TENSORS)
    with pytest.raises(DamagedNodeError, match=r"sealed under another key ring than .*other\.keys"):
        other.read(META.key)
    assert store.read(META.key)[0].key == META.key


def test_a_node_whose_data_key_was_destroyed_is_damaged(store: NodeStore, ring: Path) -> None:
    FileKeyRing(ring).destroy([META.key])
    for read in (store.read, store.meta, store.content):
        with pytest.raises(DamagedNodeError, match="its data key was destroyed in key ring"):
            read(META.key)
    store.write(META, TENSORS)
    assert store.read(META.key)[0].key == META.key, "trained again, it has another data key"


def test_a_plain_file_among_sealed_ones_is_refused(store: NodeStore, plain: NodeStore) -> None:
    store.path(META.key).write_bytes(plain.path(META.key).read_bytes())
    for read in (store.read, store.meta, store.content):
        with pytest.raises(DamagedNodeError, match=r"it is not sealed, and store\.encrypt is on"):
            read(META.key)


def test_a_sealed_file_among_plain_ones_is_refused(store: NodeStore, plain: NodeStore) -> None:
    plain.path(META.key).write_bytes(store.path(META.key).read_bytes())
    for read in (plain.read, plain.meta, plain.content):
        with pytest.raises(DamagedNodeError, match=r"is sealed, and store\.encrypt is off: turn"):
            read(META.key)


# ── at a URL ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An object store, and a folder that machines share."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/shared"
    MemoryFileSystem.store.clear()


def test_the_url_and_the_copies_hold_sealed_bytes(
    url: str, tmp_path: Path, ring: Path, plain: NodeStore
) -> None:
    depot, name = open_depot(url), f"{META.key}.safetensors"
    store = sealed_store(tmp_path / "copies", ring, depot)
    store.write(META, TENSORS)
    assert depot.get(name) == store.path(META.key).read_bytes()
    assert depot.get(name)[:7] == b"S3TSEAL"
    other = sealed_store(tmp_path / "machine", ring, open_depot(url))
    assert other.meta(META.key) == plain.meta(META.key) and not other.root.exists()
    assert other.content(META.key) == plain.content(META.key)
    other.read(META.key)
    assert other.path(META.key).read_bytes() == depot.get(name)


def test_a_copy_that_is_damaged_or_plain_is_fetched_again(
    url: str, tmp_path: Path, ring: Path, plain: NodeStore
) -> None:
    store = sealed_store(tmp_path / "copies", ring, open_depot(url))
    store.write(META, TENSORS)
    path = store.path(META.key)
    sealed = path.read_bytes()
    for content in (sealed[:40], sealed[:-1] + b"?", plain.path(META.key).read_bytes()):
        path.write_bytes(content)
        assert store.meta(META.key).key == META.key
        assert store.read(META.key)[0].key == META.key
        assert path.read_bytes() == sealed


def test_what_is_plain_at_the_url_is_refused(url: str, tmp_path: Path, ring: Path) -> None:
    NodeStore(tmp_path / "plain", open_depot(url)).write(META, TENSORS)
    store = sealed_store(tmp_path / "copies", ring, open_depot(url))
    store.write(meta_of("three"), TENSORS)
    for read in (store.read, store.meta, store.content):
        with pytest.raises(DamagedNodeError, match=f"it is not sealed.*{url}"):
            read(META.key)
    assert not store.path(META.key).exists()
