"""Key rings: one data key for each node, for all who ask, until it is destroyed for good."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3t.errors import InputError, IntegrityError, S3TError
from s3t.store import FileKeyRing, KeyRing, MissingKeyError, NodeStore, Sealer, open_ring
from s3t.types import NodeKey, digest
from tests.support.small_nodes import META, TENSORS

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO, THREE = (NodeKey(digest(name)) for name in ("one", "two", "three"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "run.keys"


@pytest.fixture
def ring(path: Path) -> FileKeyRing:
    return FileKeyRing(path)


def bytes_beside(path: Path) -> bytes:
    """All that lies in the folder of a ring."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


# ── making and destroying ────────────────────────────────────────────────────────────────────


def test_a_data_key_is_made_once_and_is_the_nodes_own(ring: FileKeyRing, path: Path) -> None:
    one, two = ring.create(ONE), ring.create(TWO)
    assert len(one) == len(two) == 32 and one != two
    again = FileKeyRing(path)
    assert again.get(ONE) == again.create(ONE) == ring.create(ONE) == one
    assert isinstance(ring, KeyRing)


def test_nobody_else_can_read_it_whatever_the_umask(ring: FileKeyRing, path: Path) -> None:
    before = os.umask(0)
    try:
        ring.create(ONE)
        ring.create(TWO)
    finally:
        os.umask(before)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_what_is_destroyed_is_not_in_the_file_and_the_rest_is(
    ring: FileKeyRing, path: Path
) -> None:
    gone, kept = ring.create(ONE), ring.create(TWO)
    assert ring.destroy([ONE]) == frozenset()
    assert gone.hex().encode() not in bytes_beside(path)
    assert ring.get(TWO) == FileKeyRing(path).get(TWO) == kept
    for found in (ring, FileKeyRing(path)):
        with pytest.raises(MissingKeyError, match=f"was destroyed in key ring {path}"):
            found.get(ONE)


def test_another_process_sees_at_once_what_was_destroyed(ring: FileKeyRing, path: Path) -> None:
    other = FileKeyRing(path)
    ring.create(ONE)
    other.get(ONE)
    ring.destroy([ONE])
    with pytest.raises(MissingKeyError):
        other.get(ONE)


def test_destroying_again_is_no_error_and_tells_who_was_never_here(ring: FileKeyRing) -> None:
    ring.create(ONE)
    assert ring.destroy([ONE, TWO]) == {TWO}
    assert ring.destroy([ONE, TWO]) == {TWO}, "what was destroyed is known to have been here"
    assert ring.destroy([]) == frozenset()
    with pytest.raises(MissingKeyError, match="never was in key ring"):
        ring.get(TWO)


def test_a_node_that_is_trained_again_gets_another_data_key(ring: FileKeyRing) -> None:
    before = ring.create(ONE)
    ring.destroy([ONE])
    assert ring.create(ONE) != before
    assert ring.get(ONE) == ring.create(ONE)


def test_what_a_killed_writer_left_goes_with_the_next_change(ring: FileKeyRing, path: Path) -> None:
    secret = ring.create(ONE)
    left = path.with_name(f".{path.name}.4711.abcd.tmp")
    left.write_bytes(path.read_bytes())
    other = path.with_name(".another.keys.4711.abcd.tmp")
    other.write_bytes(b"not ours")
    ring.destroy([ONE])
    assert not left.exists() and other.exists()
    assert secret.hex().encode() not in bytes_beside(path)


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    ring = FileKeyRing(link)
    secret = ring.create(ONE)
    ring.destroy([ONE])
    assert link.is_symlink() and path.is_file()
    assert secret.hex() not in path.read_text()


# ── what cannot be used ──────────────────────────────────────────────────────────────────────


def test_a_missing_ring_is_not_taken_for_an_empty_one(ring: FileKeyRing, path: Path) -> None:
    for ask in (lambda: ring.get(ONE), lambda: ring.destroy([ONE])):
        with pytest.raises(IntegrityError, match=f"{path} is missing: mount or restore") as caught:
            ask()
        assert not isinstance(caught.value, MissingKeyError)
    assert not path.parent.exists(), "nothing was made"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o777])
def test_a_ring_that_others_can_read_or_write_is_refused(
    ring: FileKeyRing, path: Path, mode: int
) -> None:
    ring.create(ONE)
    path.chmod(mode)
    before = path.read_bytes()
    asks: tuple[Callable[[], object], ...] = (
        lambda: ring.get(ONE),
        lambda: ring.create(TWO),
        lambda: ring.destroy([ONE]),
    )
    for ask in asks:
        with pytest.raises(IntegrityError, match=f"by others .*{mode:o}.*chmod 600"):
            ask()
    assert path.read_bytes() == before


def test_a_ring_with_a_second_name_is_refused(
    ring: FileKeyRing, path: Path, tmp_path: Path
) -> None:
    ring.create(ONE)
    os.link(path, tmp_path / "copy")
    with pytest.raises(IntegrityError, match="2 hard links"):
        ring.destroy([ONE])
    (tmp_path / "copy").unlink()
    ring.destroy([ONE])


def damages(sound: bytes) -> Iterator[bytes]:
    yield b""
    yield sound[:-1]
    yield sound[: len(sound) // 2]
    yield b"[]"
    yield b"null"
    yield b"{}"
    yield b"[" * 100_000
    yield b"\xff" * 64
    body = json.loads(sound)
    yield json.dumps(body | {"destroyed": [TWO]}).encode()
    yield json.dumps(body | {"keys": {ONE: "00" * 32}}).encode()
    rest = {name: body[name] for name in ("keys", "destroyed")} | {"format": 2}
    yield json.dumps(rest | {"check": digest(rest)}).encode()
    yield sound.replace(ONE[:8].encode(), TWO[:8].encode())


def test_a_damaged_ring_is_refused_and_left_as_it_is(ring: FileKeyRing, path: Path) -> None:
    secret = ring.create(ONE).hex()
    for content in damages(path.read_bytes()):
        path.write_bytes(content)
        for ask in (FileKeyRing(path).get, FileKeyRing(path).create, FileKeyRing(path).destroy):
            with pytest.raises(IntegrityError, match=f"key ring {path} cannot be used") as caught:
                ask(ONE)
            assert secret not in str(caught.value) and not isinstance(caught.value, MissingKeyError)
        assert path.read_bytes() == content


def test_every_flipped_bit_of_a_ring_is_found(ring: FileKeyRing, path: Path) -> None:
    ring.create(ONE)
    sound = path.read_bytes()
    body = json.loads(sound)
    for at in range(len(sound)):
        content = sound[:at] + bytes([sound[at] ^ 1 << at % 7]) + sound[at + 1 :]
        path.write_bytes(content)
        try:
            FileKeyRing(path).get(ONE)
        except IntegrityError:
            continue
        assert json.loads(content) == body, f"byte {at}"  # a blank between two values


def test_a_change_that_fails_leaves_what_was_there(
    ring: FileKeyRing, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError("no space left on device")

    ring.create(ONE)
    before = bytes_beside(path)
    monkeypatch.setattr(os, "fsync", broken)
    for ask in (lambda: ring.create(TWO), lambda: ring.destroy([ONE])):
        with pytest.raises(InputError, match=r"cannot be written .*no space.*store\.keys"):
            ask()
    assert bytes_beside(path) == before


def test_a_folder_is_no_ring(tmp_path: Path) -> None:
    for ask in (FileKeyRing(tmp_path).get, FileKeyRing(tmp_path).create):
        with pytest.raises(IntegrityError, match=r"cannot be read .*store\.keys"):
            ask(ONE)


# ── several processes ────────────────────────────────────────────────────────────────────────

CREATES = """
import sys, time
from pathlib import Path
from s3t.store import FileKeyRing
from s3t.types import digest
ring, start = FileKeyRing(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
for name in sys.argv[3:]:
    print(ring.create(digest(name)).hex())
"""


def creating(path: Path, start: Path, names: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CREATES, str(path), str(start), *names]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_that_ask_at_once_get_the_same_data_keys(path: Path, tmp_path: Path) -> None:
    start, shared = tmp_path / "start", [f"node {number}" for number in range(25)]
    own = [[*shared, f"of {number}"] for number in range(4)]
    processes = [creating(path, start, names) for names in own]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start.touch()
    got = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len({tuple(secrets[:25]) for secrets in got}) == 1
    ring = FileKeyRing(path)
    for names, secrets in zip(own, got, strict=True):
        assert [ring.get(NodeKey(digest(name))).hex() for name in names] == secrets


def test_destroying_beside_others_who_create_loses_nothing(path: Path, tmp_path: Path) -> None:
    start, ring = tmp_path / "start", FileKeyRing(path)
    old = [NodeKey(digest(f"old {number}")) for number in range(30)]
    for key in old:
        ring.create(key)
    process = creating(path, start, [f"new {number}" for number in range(30)])
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    start.touch()
    for key in old:
        assert ring.destroy([key]) == frozenset()
    secrets = process.communicate(timeout=60)[0].split()
    assert [ring.get(NodeKey(digest(f"new {n}"))).hex() for n in range(30)] == secrets
    assert json.loads(path.read_text())["destroyed"] == sorted(old)


def test_a_writer_that_is_killed_leaves_a_ring_and_no_lock(path: Path, tmp_path: Path) -> None:
    start, ring = tmp_path / "start", FileKeyRing(path)
    start.touch()
    secret = ring.create(ONE)
    for number in range(3):
        process = creating(path, start, [f"{number} {name}" for name in range(10_000)])
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.013 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert FileKeyRing(path).get(ONE) == secret
    ring.destroy([ONE])
    assert secret.hex().encode() not in bytes_beside(path)


# ── what store.keys names ────────────────────────────────────────────────────────────────────


def test_a_ring_where_backups_of_the_run_come_from_is_refused(tmp_path: Path) -> None:
    run, far = tmp_path / "run", tmp_path / "far"
    (tmp_path / "link").symlink_to(run)
    for keys in (run / "keys", run / "deep" / "keys", far / "keys", tmp_path / "link" / "keys"):
        with pytest.raises(InputError, match=f"store.keys {keys} lies in"):
            open_ring(str(keys), "run", [run, far])
    with pytest.raises(InputError, match="so a backup of the run would hold"):
        open_ring(str(run / "keys"), "run", [tmp_path / "link"])
    beside = open_ring(str(tmp_path / "run.keys"), "run", [run, far])
    assert isinstance(beside, FileKeyRing) and beside.path == tmp_path / "run.keys"


HOOK = """
import s3t.store
class Service:
    def __init__(self, run):
        self.run, self.held, self.honest, self.lost = run, {}, True, None
    def get(self, key):
        if self.lost:
            raise self.lost
        if key not in self.held:
            raise s3t.store.MissingKeyError("the service has no such key")
        return self.held[key]
    def create(self, key):
        return self.held.setdefault(key, key[:32].encode())
    def destroy(self, keys):
        unknown = {key for key in keys if key not in self.held}
        for key in keys:
            self.honest and self.held.pop(key, None)
        return unknown
def strange(run):
    return object()
def broken(run):
    raise RuntimeError("no such region")
"""


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's own with a key service."""
    (tmp_path / "lib" / "vault_of_tests").mkdir(parents=True)
    (tmp_path / "lib" / "vault_of_tests" / "service.py").write_text(HOOK)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    return "python:vault_of_tests.service"


def test_a_hook_is_called_with_the_run_and_keeps_its_data_keys(hooks: str, tmp_path: Path) -> None:
    ring = open_ring(f"{hooks}:Service", "s3://bucket/run", [tmp_path])
    assert vars(ring)["run"] == "s3://bucket/run"
    store = NodeStore(tmp_path / "nodes", None, Sealer(ring, f"{hooks}:Service"))
    store.write(META, TENSORS)
    assert store.read(META.key)[0].key == META.key
    backup = store.path(META.key).read_bytes()
    assert store.remove([META.key]).unknown == frozenset()
    store.path(META.key).write_bytes(backup)
    with pytest.raises(IntegrityError, match="the service has no such key"):
        store.read(META.key)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (":strange", "gave a object, which lacks get"),
        (":broken", "RuntimeError: no such region"),
        (":nothing", "has no attribute 'nothing'"),
        (".nowhere:Service", "No module named"),
    ],
)
def test_a_hook_that_cannot_be_used_is_bad_input(hooks: str, name: str, why: str) -> None:
    with pytest.raises(InputError, match=f"store.keys '{hooks}{name}'.*{why}"):
        open_ring(f"{hooks}{name}", "run", [])


def test_a_hook_that_fails_is_neither_damage_nor_silence(hooks: str, tmp_path: Path) -> None:
    ring = open_ring(f"{hooks}:Service", "run", [])
    store = NodeStore(tmp_path / "nodes", None, Sealer(ring, "the vault"))
    store.write(META, TENSORS)
    vars(ring)["lost"] = TimeoutError("no answer")
    for ask in (store.read, store.meta, store.content, lambda key: store.remove([key])):
        with pytest.raises(S3TError, match=r"the vault failed \(TimeoutError: no answer") as caught:
            ask(META.key)
        assert not isinstance(caught.value, IntegrityError)
    assert store.has(META.key), "what may not be forgotten is not reported as if it were"


def test_a_hook_that_does_not_do_as_it_says_is_found(hooks: str, tmp_path: Path) -> None:
    ring = open_ring(f"{hooks}:Service", "run", [])
    store = NodeStore(tmp_path / "nodes", None, Sealer(ring, "the vault"))
    store.write(META, TENSORS)
    vars(ring)["honest"] = False
    with pytest.raises(IntegrityError, match=f"the vault still gives the data key of {META.key}"):
        store.remove([META.key])
    assert store.has(META.key)
    vars(ring)["held"][META.key] = b"short"
    with pytest.raises(IntegrityError, match="gave something else than 32 bytes"):
        store.read(META.key)
