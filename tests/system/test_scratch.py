"""Scratch folders: gone at the end, by errors and signals, and by the next command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3t.audit.audit import audit
from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.system import scratch as scratch_module
from s3t.system.scratch import FOLDER, scratch, sweep
from tests.conftest import ROOT, Run


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder, the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_it_is_removed_by_an_error(temporary: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"), scratch() as folder:
        (folder / "deep").mkdir()
        assert folder.parent == temporary and folder.stat().st_mode & 0o077 == 0
        raise RuntimeError("broken")
    assert not [*temporary.iterdir()]


def test_that_of_a_run_lies_in_it_and_leaves_no_trace(temporary: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    with scratch(run) as one, scratch(run) as other:
        assert one.parent == other.parent == run / FOLDER and one != other
    assert not [*run.iterdir()] and not [*temporary.iterdir()]
    (run / FOLDER).touch()  # in the way, as a run that cannot be written
    with scratch(run) as folder:
        assert folder.parent == temporary


KILLED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
from s3t.system.scratch import scratch
with scratch(*map(Path, sys.argv[1:])) as folder:
    (folder / "weights").write_text("secret")
    print(folder, flush=True)
    time.sleep(60)
"""

Holder = tuple["subprocess.Popen[str]", Path]


def held(*run: Path) -> Iterator[Holder]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, run)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
def holder(temporary: Path) -> Iterator[Holder]:
    """A process that has made such a folder and sleeps, and the folder."""
    yield from held()


@pytest.fixture
def holder_in_run(small_run: RunDir, temporary: Path) -> Iterator[Holder]:
    yield from held(small_run.root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_is_removed_by_signals(holder: Holder, number: signal.Signals) -> None:
    process, folder = holder
    assert (folder / "weights").is_file()
    process.send_signal(number)
    assert process.wait(30) in (128 + number, -number)
    assert not folder.exists()


def test_that_of_a_killed_process_is_removed_by_the_next(holder: Holder) -> None:
    process, folder = holder
    assert sweep() == (0, 1) and folder.exists(), "its process lives"
    process.kill()
    process.wait()
    assert sweep(remove=False) == (1, 0) and (folder / "weights").is_file()
    with scratch():
        assert not folder.exists()


def test_one_that_was_never_locked_is_removed_in_time(temporary: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="s3t-scratch-"))
    assert sweep() == (0, 1) and folder.exists(), "it is being made"
    os.utime(folder, (time.time() - 600,) * 2)
    assert sweep() == (1, 0) and not folder.exists()


def test_one_that_stays_is_told_of(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **options: Any) -> None:
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        told = pytest.raises(S3TError, match="remove it by hand")
        with told, scratch():
            patch.setattr(scratch_module.shutil, "rmtree", refuse)


def test_purge_and_audit_name_it(holder_in_run: Holder, small_run: RunDir) -> None:
    process, folder = holder_in_run

    def told(dry_run: bool = False) -> tuple[int, int, str]:
        found = purge(small_run, dry_run=dry_run).stores
        one = next(store for store in found if store.name == "temporary runs")
        assert str(small_run.root / FOLDER) in one.where
        return one.found, one.purged, one.note

    assert told() == (1, 0, "1 of processes at work, which remove them at their end")
    assert audit(small_run.root)["E7"].status == "holds"
    process.kill()
    process.wait()
    assert "1 temporary runs or copies" in audit(small_run.root)["E7"].problems[0]
    assert told(dry_run=True) == (1, 0, "") and folder.exists()
    assert told() == (1, 1, "") and not folder.exists()
    assert audit(small_run.root).holds


def test_the_next_command_sweeps(holder_in_run: Holder, small_run: RunDir, s3t: Run) -> None:
    process, folder = holder_in_run
    process.kill()
    process.wait()
    assert s3t("samples", small_run.root).code == 0
    assert not folder.exists()


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_audit_that_is_ended_leaves_nothing(
    number: signal.Signals, small_run: RunDir, temporary: Path, s3t: Run
) -> None:
    words = [sys.executable, "-m", "s3t", "audit", str(small_run.root), "--from-scratch"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not [*small_run.root.glob(".scratch/*/run/nodes/*.safetensors")]:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(60)
    if number == signal.SIGKILL:
        time.sleep(1)  # its workers see it
        said = json.loads(s3t("purge", small_run.root, "--json").out)
        (found,) = [one for one in said["stores"] if one["name"] == "temporary runs"]
        assert found["found"] == found["purged"] <= 1
    assert not (small_run.root / FOLDER).exists() or not [*(small_run.root / FOLDER).iterdir()]
    assert not [*temporary.iterdir()]
