"""Node files: whole and proved, or an error. Nothing in between is ever read."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from s3t.errors import DamagedNodeError, InputError, IntegrityError, S3TError
from s3t.plan.lineage import node_key
from s3t.store import Depot, NodeStore, open_depot, tensors_digest, write_durably
from s3t.types import Digest, digest
from tests.support.small_nodes import BASE, ENVIRONMENT, META, RECIPE, TENSORS, meta_of


@pytest.fixture
def store(tmp_path: Path) -> NodeStore:
    return NodeStore(tmp_path / "nodes")


@pytest.fixture
def written(store: NodeStore) -> NodeStore:
    store.write(META, TENSORS)
    return store


def header_of(path: Path) -> tuple[int, dict[str, object]]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


def put_entry(path: Path, entry: object) -> None:
    """Replace the metadata of a node file, with a digest that fits them, and keep its tensors."""
    if isinstance(entry, dict):
        rest = {key: value for key, value in entry.items() if key != "check"}
        entry = rest | {"check": digest(rest)}
    stop, header = header_of(path)
    tensors = path.read_bytes()[stop:]
    header["__metadata__"] = {"s3t": json.dumps(entry)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)


def entry_of(path: Path) -> dict[str, object]:
    metadata = header_of(path)[1]["__metadata__"]
    assert isinstance(metadata, dict)
    entry: dict[str, object] = json.loads(metadata["s3t"])
    return entry


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_read_back_bit_by_bit(written: NodeStore) -> None:
    meta, tensors = written.read(META.key)
    assert meta == replace(META, weights=tensors_digest(TENSORS))
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name].view(torch.int32), tensor.view(torch.int32)), name
    assert written.meta(META.key) == meta
    assert written.has(META.key)
    assert written.keys() == {META.key}


def test_an_empty_store_has_nothing_and_makes_nothing(store: NodeStore) -> None:
    assert store.keys() == frozenset()
    assert not store.has(META.key)
    assert store.sweep() == 0
    assert not store.root.exists()


def test_bytes_depend_neither_on_the_order_nor_on_the_memory_of_tensors(
    written: NodeStore, tmp_path: Path
) -> None:
    other = NodeStore(tmp_path / "other")
    turned = {n: t.mT.contiguous().mT if t.ndim > 1 else t for n, t in reversed(TENSORS.items())}
    other.write(META, {name: tensor.requires_grad_() for name, tensor in turned.items()})
    assert other.path(META.key).read_bytes() == written.path(META.key).read_bytes()


@pytest.mark.parametrize("seed", [pytest.param("1", marks=pytest.mark.heavy), "4711"])
def test_bytes_do_not_depend_on_the_process(written: NodeStore, tmp_path: Path, seed: str) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.support.small_nodes import META, TENSORS\n"
        "from s3t.store import NodeStore; NodeStore(Path(sys.argv[1])).write(META, TENSORS)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / seed)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=True,
    )
    there = NodeStore(tmp_path / seed).path(META.key)
    assert there.read_bytes() == written.path(META.key).read_bytes()


def test_the_digest_tells_names_types_shapes_and_bytes_apart() -> None:
    weight = torch.zeros(2, 3)
    alike: list[dict[str, Tensor]] = [
        {"a": weight},
        {"b": weight},
        {"a": weight.reshape(3, 2)},
        {"a": weight.int()},
        {"a": weight.to(torch.bfloat16)},
        {"a": weight.neg()},  # -0.0 equals 0.0 and is other bytes
        {"a": weight, "b": weight[:0]},
        {},
    ]
    assert len({tensors_digest(tensors) for tensors in alike}) == len(alike)


def test_a_write_that_fails_leaves_what_was_there(
    written: NodeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written.path(META.key).read_bytes()

    def broken(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        written.write(META, {"other": torch.ones(3)})
    assert written.path(META.key).read_bytes() == before
    assert [path.name for path in written.root.iterdir()] == [f"{META.key}.safetensors"]


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace_ = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        folder = Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path.resolve()
        done.append("sync folder" if folder else "sync file")
        sync(descriptor)

    def rename(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"whole"
        done.append("rename")
        replace_(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_durably(tmp_path / "file", b"whole")
    assert done == ["sync file", "rename", "sync folder"]


def test_sweep_removes_half_written_files_alone(written: NodeStore) -> None:
    stale = written.root / f".{META.key}.safetensors.4711.tmp"
    stale.write_bytes(b"half")
    assert written.keys() == {META.key}, "a half-written node is no node"
    assert written.sweep() == 1
    assert not stale.exists()
    assert written.has(META.key)


def test_a_reader_sees_the_old_or_the_new_file_and_never_half(written: NodeStore) -> None:
    def write() -> None:
        while True:
            written.write(META, TENSORS)

    writer = get_context("fork").Process(target=write, daemon=True)
    writer.start()
    first = written.path(META.key).stat().st_ino
    reads = 0
    try:
        while writer.is_alive() and reads < 50:
            written.read(META.key)
            reads += written.path(META.key).stat().st_ino != first
    finally:
        writer.kill()  # as hard as kill -9
        writer.join()
    assert reads == 50
    written.read(META.key)


# ── reading what is not sound ────────────────────────────────────────────────────────────────


def test_a_missing_node_is_damaged(store: NodeStore) -> None:
    for read in (store.read, store.meta):
        with pytest.raises(DamagedNodeError, match=f"node {META.key} is missing"):
            read(META.key)
    assert issubclass(DamagedNodeError, IntegrityError)
    assert DamagedNodeError.exit_code == 4


def test_every_flipped_byte_is_found(written: NodeStore) -> None:
    path = written.path(META.key)
    sound = path.read_bytes()
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << at % 8]) + sound[at + 1 :])
        with pytest.raises(DamagedNodeError) as caught:
            written.read(META.key)
        assert caught.value.key == META.key


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -100, -5, -1])
def test_a_truncated_file_is_found(written: NodeStore, kept: int) -> None:
    path = written.path(META.key)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedNodeError):
        written.read(META.key)


def test_bytes_at_the_end_are_found(written: NodeStore) -> None:
    path = written.path(META.key)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamagedNodeError):
        written.read(META.key)


def test_swapped_files_are_found(written: NodeStore) -> None:
    other = meta_of("two")
    written.write(other, {"head.bias": torch.ones(2)})
    one, two = written.path(META.key), written.path(other.key)
    kept = one.rename(one.with_suffix(".kept"))
    two.rename(one)
    kept.rename(two)
    for key in (META.key, other.key):
        for read in (written.read, written.meta):
            with pytest.raises(DamagedNodeError, match="another lineage than its name says"):
                read(key)


def test_tensors_of_another_node_are_found(written: NodeStore) -> None:
    other = meta_of("two")
    written.write(other, {name: tensor + 1 for name, tensor in TENSORS.items()})
    one, two = written.path(META.key), written.path(other.key)
    stop, _ = header_of(one)
    start, _ = header_of(two)
    one.write_bytes(one.read_bytes()[:stop] + two.read_bytes()[start:])
    with pytest.raises(DamagedNodeError, match="tensors that its digest does not match"):
        written.read(META.key)


@pytest.mark.parametrize("field", ["key", "parent", "base", "recipe", "slices"])
def test_another_lineage_is_found(written: NodeStore, field: str) -> None:
    path = written.path(META.key)
    other = [digest("other")] if field == "slices" else digest("other")
    put_entry(path, entry_of(path) | {field: other})
    with pytest.raises(DamagedNodeError, match="another lineage"):
        written.meta(META.key)
    with pytest.raises(DamagedNodeError, match="another lineage"):
        written.read(META.key)


@pytest.mark.parametrize(
    ("field", "value"), [("score", 0.7500001), ("prefix", [3]), ("shard", 0), ("weights", "")]
)
def test_edited_metadata_are_found(written: NodeStore, field: str, value: object) -> None:
    path = written.path(META.key)
    text = path.read_bytes()
    entry = entry_of(path)
    old, new = (
        json.dumps(json.dumps({field: v}, separators=(",", ":")))[2:-2]
        for v in (entry[field], value)
    )
    assert old.encode() in text
    edited = text.replace(old.encode(), new.encode())
    grown = len(edited) - len(text)
    edited = struct.pack("<Q", struct.unpack("<Q", text[:8])[0] + grown) + edited[8:]
    path.write_bytes(edited)
    with pytest.raises(DamagedNodeError, match="metadata are not what was written"):
        written.meta(META.key)


def test_slices_in_another_order_are_another_lineage(store: NodeStore) -> None:
    slices = (digest("one"), digest("two"))
    parent = node_key(BASE, RECIPE, None, slices[:1], ENVIRONMENT)
    key = node_key(BASE, RECIPE, parent, slices, ENVIRONMENT)
    store.write(replace(META, key=key, parent=parent, slices=slices, prefix=(2, 0)), TENSORS)
    store.read(key)
    put_entry(store.path(key), entry_of(store.path(key)) | {"slices": slices[::-1]})
    with pytest.raises(DamagedNodeError, match="another lineage"):
        store.read(key)


def test_another_digest_of_the_tensors_is_found(written: NodeStore) -> None:
    path = written.path(META.key)
    put_entry(path, entry_of(path) | {"weights": digest("other")})
    with pytest.raises(DamagedNodeError, match="digest does not match"):
        written.read(META.key)


def test_another_format_is_found(written: NodeStore) -> None:
    path = written.path(META.key)
    put_entry(path, entry_of(path) | {"format": 1})
    with pytest.raises(DamagedNodeError, match="has format 1, not 2"):
        written.read(META.key)


@pytest.mark.parametrize(
    "entry", [None, [], ["key"], "text", 3, {}, {"key": META.key}, asdict(META) | {"unknown": 1}]
)
def test_metadata_that_are_none_are_found(written: NodeStore, entry: object) -> None:
    put_entry(written.path(META.key), entry)
    with pytest.raises(DamagedNodeError, match="cannot be read"):
        written.read(META.key)


def test_files_of_other_kinds_are_found(written: NodeStore) -> None:
    path = written.path(META.key)
    deep = b"[" * 100_000
    for content in (
        pickle.dumps(TENSORS),
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", len(deep)) + deep,
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedNodeError, match="cannot be read"):
            written.read(META.key)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedNodeError):
        written.read(META.key)


def test_no_module_of_s3t_unpickles_a_file(repo_root: Path) -> None:
    own = repo_root / "s3t" / "system" / "pinned.py"  # what a child of this process answers
    for path in sorted({*(repo_root / "s3t").rglob("*.py")} - {own}):
        text = path.read_text(encoding="utf-8")
        for word in ("import pickle", "torch.load(", "torch.save(", "joblib", "dill"):
            assert word not in text, f"{path} holds {word}"


def test_a_node_that_was_not_proved_has_no_digest() -> None:
    assert META.weights == Digest(""), "it follows from the tensors when the node is written"


# ── at a URL ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An object store, and a folder that machines share."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/shared"
    MemoryFileSystem.store.clear()


@pytest.fixture
def far(url: str, tmp_path: Path) -> NodeStore:
    store = NodeStore(tmp_path / "copies", open_depot(url))
    store.write(META, TENSORS)
    return store


def depot_of(store: NodeStore) -> Depot:
    assert store.depot is not None
    return store.depot


def test_at_a_url_lie_the_bytes_of_a_file(far: NodeStore, written: NodeStore, url: str) -> None:
    name = f"{META.key}.safetensors"
    assert depot_of(far).get(name) == written.path(META.key).read_bytes()
    assert depot_of(far).names() == [name]
    assert far.keys() == {META.key} and far.has(META.key)
    assert far.path(META.key).read_bytes() == written.path(META.key).read_bytes()


def test_another_machine_reads_proves_and_copies(far: NodeStore, url: str, tmp_path: Path) -> None:
    other = NodeStore(tmp_path / "other", open_depot(url))
    assert other.keys() == {META.key} and other.has(META.key)
    assert other.meta(META.key) == far.meta(META.key)
    assert not other.path(META.key).exists(), "metadata alone are no reason to copy"
    meta, tensors = other.read(META.key)
    assert tensors_digest(tensors) == meta.weights == tensors_digest(TENSORS)
    assert other.path(META.key).read_bytes() == far.path(META.key).read_bytes()
    depot_of(far).remove(f"{META.key}.safetensors")
    assert other.read(META.key)[0] == meta, "from the copy"
    assert not other.has(META.key) and other.keys() == frozenset(), "but what counts is the URL"


@pytest.mark.parametrize("kept", [0, 9, -1])
def test_a_damaged_copy_is_fetched_again(far: NodeStore, kept: int) -> None:
    path = far.path(META.key)
    sound = path.read_bytes()
    path.write_bytes(sound[:kept] if kept else b"\0" * len(sound))
    assert far.meta(META.key).key == META.key
    assert far.read(META.key)[0].key == META.key
    assert path.read_bytes() == sound
    path.unlink()
    assert far.content(META.key) == sound and not path.exists()


def test_damage_at_the_url_is_an_error_that_names_it(
    far: NodeStore, url: str, tmp_path: Path
) -> None:
    name = f"{META.key}.safetensors"
    sound = depot_of(far).get(name)
    depot_of(far).put(name, sound[:-1] + bytes([sound[-1] ^ 1]))
    other = NodeStore(tmp_path / "other", open_depot(url))
    with pytest.raises(DamagedNodeError, match=f"digest does not match .*{url}/{name}"):
        other.read(META.key)
    assert not other.path(META.key).exists(), "what is not sound is not kept"
    depot_of(far).put(name, sound[:9])
    for read in (other.read, other.meta):
        with pytest.raises(DamagedNodeError, match="cannot be read"):
            read(META.key)
    depot_of(far).remove(name)
    for read in (other.read, other.meta):
        with pytest.raises(DamagedNodeError, match="is missing"):
            read(META.key)


def test_metadata_longer_than_a_first_look_are_read_whole(far: NodeStore, tmp_path: Path) -> None:
    many = {f"layers.{number:03d}.q.lora_A": torch.ones(1) for number in range(400)}
    long = meta_of("long")
    far.write(long, many)
    far.path(long.key).unlink()
    assert len(depot_of(far).get(f"{long.key}.safetensors")) > 16 * 2**10
    assert far.meta(long.key).weights == tensors_digest(many)


def test_a_url_that_fails_is_no_damage(far: NodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> bytes:
        raise OSError("the line is cut")

    monkeypatch.setattr(type(depot_of(far).backend), "get", broken)
    far.path(META.key).unlink()
    for read in (far.read, far.meta):
        with pytest.raises(S3TError, match=r"cannot be reached .*the line is cut") as caught:
            read(META.key)
        assert not isinstance(caught.value, IntegrityError)


def test_a_name_is_created_once(url: str) -> None:
    depot = open_depot(url).under("work")
    assert depot.create("claims/a", b"one") and not depot.create("claims/a", b"two")
    assert depot.get("claims/a") == b"one"
    depot.put("claims/a", b"three")
    assert depot.get("claims/a", first=2) == b"th"
    assert depot.names("claims") == ["a"] and depot.names("nothing") == []
    depot.remove("claims/a")
    depot.remove("claims/a")
    assert not depot.has("claims/a") and depot.create("claims/a", b"four")


def test_a_put_that_fails_leaves_what_was_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    depot = open_depot(url)
    depot.put("name", b"before")
    if depot.folder is None:
        pytest.skip("an object is put whole by its store")

    def broken(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(S3TError, match="no space left"):
        depot.put("name", b"after")
    assert depot.get("name") == b"before" and depot.names() == ["name"]


def test_where_objects_appear_in_parts_they_are_moved_into_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As sftp or hdfs, which s3t knows nothing of."""
    depot = open_depot("memory://slow/run")
    depot.backend.whole = False
    put, seen = MemoryFileSystem.pipe_file, []

    def pipe_file(self: MemoryFileSystem, path: str, value: bytes, **words: object) -> None:
        seen.append(path)
        put(self, path, value, **words)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    depot.put("name", b"one")
    depot.put("name", b"two")
    assert depot.names() == ["name"] and depot.get("name") == b"two"
    assert len(seen) == 2 and not any(path.endswith("/name") for path in seen)


@pytest.mark.parametrize("bad", ["nowhere://bucket/run", "s3n//x://y"])
def test_a_url_that_nothing_understands_is_bad_input(bad: str) -> None:
    with pytest.raises(InputError, match=r"store\.url .* cannot be used"):
        open_depot(bad)


def test_half_written_files_of_others_are_left_alone(written: NodeStore) -> None:
    stale = written.root / f".{META.key}.safetensors.4711.tmp"
    stale.write_bytes(b"half")
    assert written.sweep(seconds=3600) == 0
    os.utime(stale, (0, 0))
    assert written.sweep(seconds=3600) == 1


def test_half_written_files_of_a_shared_folder_are_swept(far: NodeStore) -> None:
    folder = depot_of(far).folder
    if folder is None:
        pytest.skip("an object is put whole by its store")
    stale = folder / f".{META.key}.safetensors.4711.tmp"
    stale.write_bytes(b"half")
    assert far.keys() == {META.key}
    assert far.sweep() == 1 and not stale.exists() and far.has(META.key)
