"""The folder of what was accepted: whole, private, gone without a trace, one worker at a time."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from s3t.errors import IntegrityError
from s3t.server.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "jobs" / "deletions")


def test_what_is_put_is_there_for_the_owner_alone(spool: Spool) -> None:
    spool.put("one", {"ids": ["a"]})
    (path,) = spool.folder.glob("*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.folder.parent.stat().st_mode) == 0o700
    assert spool.get("one") == {"key": "one", "ids": ["a"]}
    assert spool.get("two") is None and len(spool) == 1


def test_it_is_on_the_disk_before_put_returns(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    spool.put("one", {"ids": ["a"]})
    assert any(name.startswith(f"{spool.folder}/.") for name in synced)  # the file
    folders = [spool.folder.parent.parent, spool.folder.parent, spool.folder]
    assert {str(folder) for folder in folders} <= set(synced)


def test_what_is_removed_leaves_no_bytes(spool: Spool, tmp_path: Path) -> None:
    spool.put("one", {"ids": ["secret-id"]})
    (path,) = spool.folder.glob("*.json")
    os.link(path, tmp_path / "other name")  # keeps the blocks that the file had
    spool.remove("one")
    assert not path.exists() and spool.get("one") is None
    assert set((tmp_path / "other name").read_bytes()) == {0}
    spool.remove("one")  # again is nothing


def test_what_is_replaced_leaves_no_bytes_either(spool: Spool, tmp_path: Path) -> None:
    spool.put("one", {"ids": ["secret-id"]})
    (path,) = spool.folder.glob("*.json")
    os.link(path, tmp_path / "other name")
    spool.put("one", {"ids": []})
    assert set((tmp_path / "other name").read_bytes()) == {0}
    assert spool.get("one") == {"key": "one", "ids": []}


@pytest.mark.parametrize("key", ["../../escape", "/etc/passwd", "", "a\0b", "x" * 10_000, "\u202e"])
def test_no_key_names_another_file(spool: Spool, key: str) -> None:
    spool.put(key, {})
    assert spool.get(key) == {"key": key}
    assert {path.parent for path in spool.folder.parent.rglob("*.json")} == {spool.folder}


def test_a_damaged_file_is_told_once_and_stops_nobody(spool: Spool) -> None:
    spool.put("one", {})
    spool.put("two", {})
    (path,) = (p for p in spool.folder.glob("*.json") if json.loads(p.read_text())["key"] == "one")
    path.write_text('{"key": "other"}')
    told: list[str] = []
    for _ in range(3):
        assert [document["key"] for document in spool.oldest(told.append)] == ["two"]
    assert len(told) == 1 and str(path) in told[0]
    with pytest.raises(IntegrityError):
        spool.get("one")


def test_the_oldest_come_first(spool: Spool) -> None:
    for number in range(5):
        spool.put(str(number), {})
        time.sleep(0.002)
    assert [document["key"] for document in spool.oldest(print)] == list("01234")


def test_one_process_works_it_off(spool: Spool) -> None:
    other = Spool(spool.folder)
    assert not spool.hold()  # there is nothing yet
    spool.put("one", {})
    assert spool.hold() and spool.hold()
    assert not other.hold()
    spool.leave()
    assert other.hold()


def test_half_written_files_of_killed_processes_go(spool: Spool) -> None:
    spool.put("one", {})
    old, new = (spool.folder / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("ids")
    os.utime(old, (0, 0))
    assert spool.hold()
    assert not old.exists() and new.exists()
