"""Several machines: they share a store and nothing else, and any of them may die.

Each machine is a launch of its own on this host, in a process group of its own, so that all of it
can be killed at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from s3t.config import Config, anchored, load_config
from s3t.errors import InputError, IntegrityError, S3TError
from s3t.run import RunDir
from s3t.service import S3T
from s3t.store import NodeStore
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.replan import Replan
from s3t.training.rank import MACHINE, MACHINES
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from s3t.types import digest
from tests.support.small_runs import Make, Trained, forget, nodes, saved, start, wait_until

LONG = {"epochs": 60, "learning_rate": 1e-3}


@pytest.fixture
def memory() -> Iterator[str]:
    """An empty object store."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://bucket/run"
    MemoryFileSystem.store.clear()


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second machine of two."""
    monkeypatch.setenv(MACHINE, "1")
    monkeypatch.setenv(MACHINES, "2")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch_options(rank: int, port: str) -> list[str]:
    words = f"--num_machines 2 --num_processes 2 --machine_rank {rank}"
    return [*words.split(), "--main_process_ip", "127.0.0.1", "--main_process_port", port]


def at_work(run: Config, rank: int) -> bool:
    """Whether a machine has nodes in its hands."""
    work = Path(run.store.url or run.run_dir) / ("work" if run.store.url else ".work")
    owners = []
    for path in finished(work, "claims/*"):
        with suppress(FileNotFoundError):  # given up meanwhile
            owners.append(path.read_text())
    return any(owner.startswith("main-" if rank == 0 else f"{rank}-") for owner in owners)


def finished(folder: Path, pattern: str) -> list[Path]:
    """Files somewhere below; not those that a killed process was writing."""
    return [path for path in folder.rglob(pattern) if not path.name.startswith(".")]


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def two_machines(make: Make, folder: Path, shared: bool) -> list[Config]:
    """The config of each: one output folder, or one each and a store; nodes of a second or so."""
    if shared:
        return [make("both", stage=LONG, store={"lease": 2})] * 2
    store = {"url": str(folder / "store"), "lease": 2}
    return [make(name, stage=LONG, store=store) for name in ("first", "second")]


def launched(configs: list[Config], folder: Path, port: str) -> list[subprocess.Popen[str]]:
    """One launch for each machine, by rank."""
    return [
        start("train", saved(config, folder), *launch_options(rank, port))
        for rank, config in enumerate(configs)
    ]


# ── machines that die ────────────────────────────────────────────────────────────────────────


@pytest.mark.heavy
def test_the_nodes_of_a_machine_that_dies_are_taken_up(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    """Machines that share a store."""
    whole = trained(make("whole", stage=LONG))
    configs, port = two_machines(make, tmp_path, shared=False), free_port()
    machines = launched(configs, tmp_path, port)
    wait_until(lambda: at_work(configs[1], 1), machines[1])
    kill(machines[1])
    _, err = machines[0].communicate(timeout=120)
    assert machines[0].returncode == 0, err
    assert "8 nodes trained, 0 found" in err and "2 × 1 workers" in err
    assert nodes(configs[0]) == nodes(whole)
    assert not finished(tmp_path, "claims/*") and not finished(tmp_path, "beats/*")


@pytest.mark.heavy
def test_without_the_main_machine_the_others_finish_and_it_goes_on(
    make: Make, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines that share a folder; with a store, the last test of these kills the main one."""
    whole = trained(make("whole", stage=LONG))
    configs, port = two_machines(make, tmp_path, shared=True), free_port()
    machines = launched(configs, tmp_path, port)
    wait_until(lambda: at_work(configs[0], 0) and at_work(configs[1], 1), machines[1])
    kill(machines[0])
    _, err = machines[1].communicate(timeout=120)
    assert machines[1].returncode == 0, err
    assert nodes(configs[1]) == nodes(whole)
    monkeypatch.setenv(MACHINE, "0")
    monkeypatch.setenv(MACHINES, "2")
    again = train(configs[0])
    assert (again.trained, again.found, again.processes) == (0, 8, 2)
    assert nodes(configs[0]) == nodes(whole)


def store_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.heavy
def test_accelerate_launch_itself_starts_machines_that_do_not_need_each_other(
    make: Make, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launchers meet at the start; after that the main machine may die, launcher and all."""
    whole = trained(make("whole", stage=LONG))
    configs, port = two_machines(make, tmp_path, shared=False), free_port()
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
                *launch_options(rank, port),
                *("-m", "s3t.train", saved(config, tmp_path)),
            ],
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank, config in enumerate(configs)
    ]
    wait_until(lambda: at_work(configs[0], 0) and at_work(configs[1], 1), machines[1])
    kill(machines[0])
    _, err = machines[1].communicate(timeout=120)
    assert machines[1].returncode == 0, err
    assert RunDir(configs[1].run_dir).store.keys() == RunDir(whole.run_dir).store.keys()
    assert nodes(configs[1]).items() <= nodes(whole).items(), "copies of what it has read or made"
    assert store_files(tmp_path / "store") == nodes(whole)
    monkeypatch.setenv(MACHINE, "0")
    monkeypatch.setenv(MACHINES, "2")
    assert train(configs[0]).found == 8, "the main machine goes on"


# ── a machine that shares no folder ──────────────────────────────────────────────────────────


def test_a_run_at_a_url_has_the_bytes_of_a_run_of_files(
    make: Make, trained: Trained, memory: str
) -> None:
    plain, there = trained(make("plain")), make("there", store={"url": memory})
    report = train(there)
    assert (report.trained, report.found) == (8, 0)
    kept = MemoryFileSystem.store
    assert {
        path.rpartition("/")[2]: file.getvalue()
        for path, file in kept.items()
        if path.endswith(".safetensors") and "/run/run/" not in path
    } == nodes(plain)
    assert nodes(there) == nodes(plain), "each was copied when it was written"
    assert not [path for path in kept if "/work/" in path]
    assert train(there).found == 8


def test_another_machine_learns_all_it_needs_over_the_store(
    make: Make, trained: Trained, memory: str, second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt = {
        "base": "make:bert",
        "make": {"hidden": 16, "layers": 2, "heads": 2},
        "adapt": {"steps": 2, "batch_size": 8},
    }
    sections = {"model": adapt, "stage": {"head": "public", "epochs": 1, "learning_rate": 1e-2}}
    first = make("first", store={"url": memory}, **sections)
    with monkeypatch.context() as alone:
        alone.delenv(MACHINE)
        alone.delenv(MACHINES)
        trained(first)
    other = make("other", store={"url": memory, "lease": 0.1}, **sections)
    report = train(other)  # all is there, so it need not wait for the main machine
    assert (report.trained, report.found) == (0, 8)
    run, main = RunDir(other.run_dir), RunDir(first.run_dir)
    assert run.joined and not main.joined
    assert run.plan() == main.plan()
    assert run.head_path.read_bytes() == main.head_path.read_bytes()
    for path in main.base_path.iterdir():
        assert (run.base_path / path.name).read_bytes() == path.read_bytes()
    assert not run.ledger_path.exists(), "what is private stays where the ledger is"
    with pytest.raises(InputError, match="its ledger, and so everything but training"):
        run.ledger()


def test_another_machine_trains_a_repaired_run_without_knowing_who_is_gone(
    make: Make, trained: Trained, memory: str, second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make("first", store={"url": memory})
    other = make("other", store={"url": memory, "lease": 0.1})
    with monkeypatch.context() as alone:
        alone.delenv(MACHINE)
        alone.delenv(MACHINES)
        trained(first)
        train(RunDir(first.run_dir).here())  # nothing to do
    train(other)
    joined = RunDir(other.run_dir)
    with monkeypatch.context() as alone:
        alone.delenv(MACHINE)
        alone.delenv(MACHINES)
        forget(first, "p03")
        train(RunDir(first.run_dir).here(), replan=Replan())
    with pytest.raises(S3TError, match="of another plan by now"):
        joined.hits()
    train(other)  # which joins the new plan
    joined, main = RunDir(other.run_dir), RunDir(first.run_dir)
    assert joined.plan().digest == main.plan().digest and joined.hits() == set()
    assert "s030" in joined.gone() and "s040" not in joined.gone()
    assert not [path for path in other.run_dir.rglob("*") if b"s030" in content(path)]
    prepared = load_prepared(joined, torch.device("cpu"))
    fresh = min(n.key for n in main.plan().forest if n.stage == 1)
    before = main.store.content(fresh)
    apart = replace(prepared, store=NodeStore(other.run_dir / "again"))
    WorkerState(apart).train([fresh])
    assert apart.store.content(fresh) == before, "its own data still hold the deleted rows"


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_without_the_machine_that_knows_the_deletions_nothing_new_is_begun(
    make: Make, memory: str, second: None
) -> None:
    config = make("other", store={"url": memory, "lease": 0.05})
    with pytest.raises(S3TError, match="no sign of the main process, of machine rank 0"):
        train(config)
    assert not config.run_dir.exists()


def test_hits_are_told_and_are_proved(make: Make, trained: Trained, memory: str) -> None:
    config = trained(make("first", store={"url": memory}))
    run = RunDir(config.run_dir)
    assert run.notices().told() == (run.plan().digest, set())
    forget(config, "p03")
    depot = run.store.depot
    assert depot is not None
    for key in run.store.keys():  # noqa: SIM118
        depot.remove(f"{key}.safetensors")
    report = train(config)
    assert report.skipped > 0 and report.trained + report.skipped == 8
    assert run.notices().hits_of(run.plan().digest) == run.hits() != set()
    with pytest.raises(S3TError, match="another plan by now"):
        run.notices().hits_of(digest("another"))
    depot.put(name := "run/deletions/1.json", depot.get(name).replace(b"[[", b"[[0, 0], [", 1))
    with pytest.raises(IntegrityError, match="its digest differs"):
        train(config)


def test_a_ledger_that_forgot_deletions_is_refused(
    make: Make, trained: Trained, memory: str
) -> None:
    config = trained(make("first", store={"url": memory}))
    forget(config, "p03")
    train(config)
    fresh = make("fresh", store={"url": memory})
    before = {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}
    with pytest.raises(InputError, match="with a ledger of its own, so nothing was done"):
        train(fresh)
    assert not fresh.run_dir.exists()
    assert {path: file.getvalue() for path, file in MemoryFileSystem.store.items()} == before


def test_the_store_of_another_run_is_refused(make: Make, trained: Trained, memory: str) -> None:
    trained(make("first", store={"url": memory}))
    before = {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}
    with pytest.raises(InputError, match="keeps the nodes of another run"):
        train(make("other", lora={"rank": 3}, store={"url": memory}))
    assert {path: file.getvalue() for path, file in MemoryFileSystem.store.items()} == before


def test_a_machine_leaves_what_is_no_run_of_its_own_alone(
    make: Make, trained: Trained, memory: str, second: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alone:
        alone.delenv(MACHINE)
        alone.delenv(MACHINES)
        trained(make("first", store={"url": memory}))
    config = make("other", store={"url": memory, "lease": 0.1})
    config.run_dir.mkdir()
    (config.run_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not this run's"):
        train(config)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.txt"]


def test_a_store_that_cannot_be_reached_is_named_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    config = make("first", store={"url": "nowhere://bucket/run"})
    with pytest.raises(InputError, match=r"store\.url 'nowhere://bucket/run' cannot be used"):
        train(config)
    assert not config.run_dir.exists()


def test_a_run_at_a_url_is_served_from_there(make: Make, trained: Trained, memory: str) -> None:
    config = trained(make("first", store={"url": memory}))
    row, copies = {"text": "person 4 says 5"}, RunDir(config.run_dir).store.root
    with S3T.load(config.run_dir) as service:
        before = service.predict([row])[0].probabilities
    shutil.rmtree(copies)
    with S3T.load(config.run_dir) as service:
        assert service.predict([row])[0].probabilities == before
        served = {shard.node for shard in service.status().shards}
    assert {path.stem for path in copies.iterdir()} >= served, "what serves was fetched"
    assert len([*copies.iterdir()]) <= 4, "and nothing else"


def test_paths_of_a_store_mean_the_same_from_anywhere(make: Make) -> None:
    here = anchored(make("first", store={"url": "share", "cache": "copies"})).store
    assert here.url == str(Path("share").absolute())
    assert here.cache == str(Path("copies").absolute())
    far = anchored(make("first", store={"url": "s3://bucket/run"})).store
    assert far.url == "s3://bucket/run" and far.cache is None
    with pytest.raises(ValueError, match="cache holds copies of what lies at url"):
        make("first", store={"cache": "copies"})


def test_where_nodes_are_kept_may_change(make: Make, trained: Trained, tmp_path: Path) -> None:
    trained(make("run"))
    moved = make("run", store={"url": str(tmp_path / "store"), "cache": str(tmp_path / "copies")})
    assert train(moved).trained == 8, "the new place is empty"
    assert RunDir(moved.run_dir).store.root == tmp_path / "copies"
    assert load_config(moved.run_dir / "config.yaml").store == moved.store


def test_a_process_that_ended_well_keeps_nobody_waiting(make: Make, memory: str) -> None:
    config = make("first", store={"url": memory, "lease": 1000})
    began = time.monotonic()
    train(config)
    MemoryFileSystem.store.pop(
        next(p for p in MemoryFileSystem.store if p.count("/") == 3 and p.endswith(".safetensors"))
    )
    assert train(config).trained == 1
    assert time.monotonic() - began < 60
