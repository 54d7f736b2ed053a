"""Removal: files gone, data keys destroyed, and backups that forget as well."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from s3t.errors import DamagedNodeError, IntegrityError, S3TError
from s3t.store import Depot, FileKeyRing, NodeStore, Removal, open_depot
from tests.support.small_nodes import META, OTHER, SAID, TENSORS, meta_of, sealed_store

DEAD, ALIVE, NEVER = META, OTHER, meta_of("never trained")
NAME = f"{DEAD.key}.safetensors"
NAMES = (f"{DEAD.key}.evidence", NAME)


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "run.keys"


@pytest.fixture(params=["here", "memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Depot | None]:
    """Where nodes lie: in the run, in an object store, in a folder that machines share."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    urls = {"here": None, "memory": "memory://bucket/run", "file": f"file://{tmp_path}/shared"}
    url = urls[request.param]
    yield None if url is None else open_depot(url)
    MemoryFileSystem.store.clear()


def filled(store: NodeStore) -> NodeStore:
    for meta in (DEAD, ALIVE):
        store.write(meta, TENSORS, SAID)
    return store


def files_of(store: NodeStore) -> dict[str, bytes]:
    """All files of a store, by path or URL."""
    found = {str(path): path.read_bytes() for path in sorted(store.root.glob("*"))}
    if store.depot is not None:
        found |= {store.depot.where(name): store.depot.get(name) for name in store.depot.names()}
    return found


def restore(store: NodeStore, backup: dict[str, bytes]) -> None:
    for where, content in backup.items():
        if "://" in where and store.depot is not None:
            store.depot.put(where.rpartition("/")[2], content)
        else:
            Path(where).write_bytes(content)


# ── what is removed ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sealed", [False, True])
def test_it_removes_those_named_here_and_at_the_url(
    place: Depot | None, tmp_path: Path, ring: Path, sealed: bool
) -> None:
    root = tmp_path / "nodes"
    store = filled(sealed_store(root, ring, place) if sealed else NodeStore(root, place))
    expected = [str(root / name) for name in NAMES]
    expected += [place.where(name) for name in NAMES if place]
    removal = store.remove([DEAD.key, NEVER.key])
    assert removal.files == tuple(sorted(expected))
    assert removal.unknown == ({NEVER.key} if sealed else frozenset())
    assert not any(DEAD.key in where for where in files_of(store))
    assert store.keys() == {ALIVE.key} and store.read(ALIVE.key)[0].key == ALIVE.key
    assert store.traces() == store.evidence_keys() == {ALIVE.key}
    assert store.remove([DEAD.key]) == Removal((), frozenset()), "again: there is nothing left"


def test_a_store_that_holds_nothing_stays_as_it_is(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "nodes", open_depot(str(tmp_path / "shared")))
    assert store.remove([DEAD.key]) == Removal((), frozenset())
    assert store.strays() == []
    assert list(tmp_path.iterdir()) == []


def test_a_restored_backup_of_dead_nodes_cannot_be_opened(
    place: Depot | None, tmp_path: Path, ring: Path
) -> None:
    store = filled(sealed_store(tmp_path / "nodes", ring, place))
    backup = files_of(store)
    store.remove([DEAD.key])
    for path in store.root.glob("*"):
        path.unlink()
    restore(store, backup)
    fresh = sealed_store(tmp_path / "nodes", ring, place)
    assert fresh.keys() == {DEAD.key, ALIVE.key}
    for read in (fresh.read, fresh.meta, fresh.content, fresh.read_evidence):
        with pytest.raises(DamagedNodeError, match="its data key was destroyed"):
            read(DEAD.key)
    assert fresh.read(ALIVE.key)[0].key == ALIVE.key
    assert fresh.remove([DEAD.key]).files, "and what was restored is removed again"
    assert files_of(fresh).keys() == {where for where in backup if DEAD.key not in where}


def test_copies_of_another_machine_cannot_be_opened(tmp_path: Path, ring: Path) -> None:
    url = str(tmp_path / "shared")
    store = filled(sealed_store(tmp_path / "nodes", ring, open_depot(url)))
    other = sealed_store(tmp_path / "machine", ring, open_depot(url))
    for meta in (DEAD, ALIVE):
        other.read(meta.key)
    store.remove([DEAD.key])
    assert other.path(DEAD.key).is_file(), "it is out of reach"
    with pytest.raises(DamagedNodeError):
        other.read(DEAD.key)
    assert other.read(ALIVE.key)[0].key == ALIVE.key


def test_a_restored_ring_is_purged_again(tmp_path: Path, ring: Path) -> None:
    store = filled(sealed_store(tmp_path / "nodes", ring))
    backup, old = files_of(store), ring.read_bytes()
    store.remove([DEAD.key])
    ring.write_bytes(old)
    restore(store, backup)
    assert store.read(DEAD.key)[0].key == DEAD.key, "as the module's header says"
    store.remove([DEAD.key])
    restore(store, backup)
    with pytest.raises(DamagedNodeError):
        store.read(DEAD.key)


# ── kills between its steps ──────────────────────────────────────────────────────────────────

STEPS = ("unlink", "remove", "replace", "fsync", "open")


def killed_after(steps: int, act: Callable[[], object]) -> bool:
    """Run ``act`` in a process that dies before it changes anything for the n-th time.

    Returns:
        whether it died.
    """
    child = os.fork()
    if child == 0:
        left = steps
        code = 1
        try:

            def counting(name: str) -> None:
                inner = getattr(os, name)

                def step(*args: object, **words: object) -> object:
                    nonlocal left
                    if left == 0:
                        os._exit(9)
                    left -= 1
                    return inner(*args, **words)

                setattr(os, name, step)

            for name in STEPS:
                counting(name)
            act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), "it failed rather than died"
    return code == 9


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_killed_removal_is_finished_by_the_next(
    tmp_path: Path, sealed: bool, shared: bool
) -> None:
    died = 0
    for steps in range(100):
        folder = tmp_path / str(steps)
        depot = open_depot(str(folder / "shared")) if shared else None
        ring = folder / "keys" / "run.keys"
        root = folder / "nodes"
        store = filled(sealed_store(root, ring, depot) if sealed else NodeStore(root, depot))
        backup = files_of(store)
        killed = killed_after(steps, lambda store=store: store.remove([DEAD.key]))  # type: ignore[misc]
        died += killed
        assert store.read(ALIVE.key)[0].key == ALIVE.key, "whatever was done until then"
        if not killed:
            assert not any(DEAD.key in where for where in files_of(store))
            break
        store.remove([DEAD.key])
        assert not any(DEAD.key in where for where in files_of(store))
        assert store.read(ALIVE.key)[0].key == ALIVE.key
        if sealed:
            assert not list(ring.parent.glob("*.tmp")), "no older ring lies about"
            restore(store, backup)
            with pytest.raises(DamagedNodeError, match="its data key was destroyed"):
                store.read(DEAD.key)
        shutil.rmtree(folder)
    assert died >= (3 + 3 * shared + 4 * sealed), "it was killed at each of its steps"


def test_data_keys_go_before_files_and_folders_are_synced(
    tmp_path: Path, ring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(sealed_store(tmp_path / "nodes", ring, open_depot(str(tmp_path / "shared"))))
    done: list[str] = []
    sync, replace, unlink, remove = os.fsync, os.replace, os.unlink, os.remove

    def note(act: Callable[..., None], what: str) -> Callable[..., None]:
        def noted(path: object, *rest: object, **words: object) -> None:
            at = Path(f"/proc/self/fd/{path}").resolve() if what == "sync" else Path(str(path))
            done.append(f"{what} {at.parent.name if at.is_file() else at.name}")
            act(path, *rest, **words)

        return noted

    monkeypatch.setattr(os, "fsync", note(sync, "sync"))
    monkeypatch.setattr(os, "replace", note(replace, "replace"))
    monkeypatch.setattr(os, "unlink", note(unlink, "unlink"))
    monkeypatch.setattr(os, "remove", note(remove, "unlink"))
    store.remove([DEAD.key])
    steps = ["sync keys", "replace keys", "sync keys", "unlink nodes", "unlink nodes", "sync nodes"]
    assert [step for step in done if ".tmp" not in step] == [
        *steps,
        "unlink shared",
        "unlink shared",
        "sync shared",
    ]


# ── what it refuses ──────────────────────────────────────────────────────────────────────────


def test_files_under_another_ring_are_not_reported_as_forgotten(
    place: Depot | None, tmp_path: Path, ring: Path
) -> None:
    store = filled(sealed_store(tmp_path / "nodes", ring, place))
    before = files_of(store)
    other = sealed_store(tmp_path / "nodes", tmp_path / "other.keys", place)
    with pytest.raises(IntegrityError, match=r"other\.keys is missing"):
        other.remove([DEAD.key])
    FileKeyRing(tmp_path / "other.keys").create(NEVER.key)
    with pytest.raises(IntegrityError, match=f"{DEAD.key} is sealed under a key ring that"):
        other.remove([DEAD.key])
    with pytest.raises(IntegrityError, match=r"with store\.encrypt=true"):
        NodeStore(tmp_path / "nodes", place).remove([DEAD.key])
    assert files_of(store) == before
    for where in [where for where in before if DEAD.key in where]:  # by hand, as the message says
        name = where.rpartition("/")[2]
        Path(where).unlink() if place is None or "://" not in where else place.remove(name)
    assert other.remove([DEAD.key]) == Removal((), frozenset({DEAD.key}))


def test_a_plain_file_among_sealed_ones_can_be_removed(tmp_path: Path, ring: Path) -> None:
    store = filled(sealed_store(tmp_path / "nodes", ring))
    plain = NodeStore(tmp_path / "plain")
    plain.write(NEVER, TENSORS)
    plain.path(NEVER.key).rename(store.path(NEVER.key))
    assert store.remove([NEVER.key]).files == (str(store.path(NEVER.key)),)


def test_what_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    store = NodeStore(tmp_path / "nodes")
    store.path(DEAD.key).mkdir(parents=True)
    with pytest.raises(S3TError, match=f"{NAME} cannot be removed .*run the same command again"):
        store.remove([DEAD.key])


# ── what is no node ──────────────────────────────────────────────────────────────────────────


def test_strays_are_what_is_neither_node_nor_half_written(
    place: Depot | None, tmp_path: Path
) -> None:
    store = filled(NodeStore(tmp_path / "nodes", place))
    assert store.strays() == []
    (store.root / f".{NAME}.4711.abcd.tmp").write_bytes(b"half")
    ours = {"old.safetensors", f"{NAME}.bak", "export", "notes.txt", "work"}
    for name in ours:
        (store.root / name).mkdir() if name == "export" else (store.root / name).write_bytes(b"?")
    expected = {str(store.root / name) for name in ours}
    if place is not None:
        for name in ("run/plan.json", "work/claims/a"):
            place.put(name, b"of the run")
        for name in (f"{NAME}.0123456789abcdef.tmp", "exported.safetensors"):
            place.put(name, b"?")
            expected.add(place.where(name))
        if place.folder is not None:
            (place.folder / f".{NAME}.4711.abcd.tmp").write_bytes(b"half")
    assert store.strays() == sorted(expected)
