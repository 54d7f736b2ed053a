"""What a store is told: every deletion, before it is effective and before anything is purged; and
by one ledger alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from s3t.audit.audit import audit
from s3t.config import Config
from s3t.errors import InputError, IntegrityError, UnavailableError
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.store import open_depot
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.replan import Replan
from s3t.training.rank import MACHINE, MACHINES, Rank
from s3t.training.work.node_leases import DepotLeases
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from tests.conftest import Run
from tests.support.small_runs import Make, dead_keys, forget, small_configs

STORE = {"url": "memory://bucket/run", "lease": 0.4}
Cut = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict[str, bytes]]:
    """A run at a store: its config, a copy of its directory, and what lies at the store."""
    empty()
    config = small_configs(folder := tmp_path_factory.mktemp("notices"))("first", store=STORE)
    train(config)
    return config, Path(shutil.copytree(config.run_dir, folder / "kept")), stored()


@pytest.fixture
def config(trained: tuple[Config, Path, dict[str, bytes]]) -> Iterator[Config]:
    """Of that run, as it was after its training, where it was."""
    config, kept, objects = trained
    shutil.rmtree(config.run_dir, ignore_errors=True)
    shutil.copytree(kept, config.run_dir)
    empty()
    for path, content in objects.items():
        MemoryFileSystem().pipe_file(path, content)
    yield config
    empty()


@pytest.fixture
def make(trained: tuple[Config, Path, dict[str, bytes]], tmp_path: Path) -> Make:
    """Configs over the same data, with outputs of their own."""
    configs = small_configs(trained[1].parent)

    def made(output: str, **sections: Any) -> Config:
        return configs(str(tmp_path / output), name=output, **sections)

    return made


def empty() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """Keeps everything from the folder of deletions meanwhile."""
    put = MemoryFileSystem.pipe_file

    def refused(self: MemoryFileSystem, path: str, *words: Any, **more: Any) -> None:
        if "/deletions/" in path:
            raise PermissionError("Access Denied")
        put(self, path, *words, **more)

    @contextmanager
    def broken() -> Iterator[None]:
        monkeypatch.setattr("s3t.run.notifier._PATIENCE", 0.0)
        with monkeypatch.context() as context:
            context.setattr(MemoryFileSystem, "pipe_file", refused)
            yield

    return broken


def stored() -> dict[str, bytes]:
    return {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def told(config: Config) -> list[int]:
    return RunDir(config.run_dir).notices().views()


# ── a deletion is told ───────────────────────────────────────────────────────────────────────


def test_a_deletion_is_told_before_it_is_effective(config: Config) -> None:
    run, service = RunDir(config.run_dir), S3T.load(config.run_dir)
    with service:
        for number, person in enumerate(("p03", "p05"), 1):
            receipt = service.deactivate(subjects=[person])
            assert receipt.effective_at is not None and receipt.untold is None
            assert told(config) == [*range(1, number + 1)]
            assert service.status().untold is None
        again = service.deactivate(subjects=["p05"], request_id="again")
        assert again.effective_at is not None and told(config) == [1, 2]
    fresh = RunDir(config.run_dir)
    assert fresh.notices().told() == (run.plan().digest, run.hits())
    assert "s030" in fresh.notices().gone() and "s050" in fresh.notices().gone()
    assert "s040" not in fresh.notices().gone() and len(fresh.notices().gone()) == 6
    assert not [path for path, content in stored().items() if b"s030" in content]


def test_an_older_copy_that_deletes_the_same_person_last_is_found_out(
    config: Config, trained: tuple[Config, Path, dict[str, bytes]]
) -> None:
    with S3T.load(config.run_dir) as service:
        for person in ("p03", "p05"):
            service.deactivate(subjects=[person])
    shutil.rmtree(config.run_dir)
    shutil.copytree(trained[1], config.run_dir)
    for person in ("p07", "p05"):  # the last is the same, and another was before
        with S3T.load(config.run_dir) as service:
            assert "older copy" in (service.deactivate(subjects=[person]).untold or "")
    assert told(config) == [1, 2]
    assert "older copy" in str(audit(config.run_dir)["E7"].problems)


def test_plans_that_were_replaced_leave_the_store(config: Config) -> None:
    plans, before = open_depot(config.store.url or "").under("run/plans"), set[str]()
    for person in ("p03", "p05"):
        with S3T.load(config.run_dir) as service:
            service.deactivate(subjects=[person])
        before |= {*plans.names()}
        kept = {name: plans.get(name) for name in plans.names()}
        train(config, replan=Replan())  # which purges at its end
        assert plans.names() == [f"{RunDir(config.run_dir).plan().digest}.json"]
    assert len(before) == 2 and not before & {*plans.names()}
    assert not audit(config.run_dir)["E7"].problems
    for name, content in kept.items():  # as a machine that was paused
        plans.put(name, content)
    assert "keeps 1 plans that were replaced" in str(audit(config.run_dir)["E7"].problems)
    assert "plans" in {one.name for one in purge(RunDir(config.run_dir)).stores if one.purged}
    assert not audit(config.run_dir)["E7"].problems


def test_a_dry_run_tells_nothing(config: Config) -> None:
    with S3T.load(config.run_dir) as service:
        assert service.deactivate(subjects=["p03"], dry_run=True).untold is None
    assert told(config) == []


def test_a_deletion_that_cannot_be_told_is_durable_and_not_effective(
    config: Config, cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    with S3T.load(config.run_dir) as service:
        with cut():
            receipt = service.deactivate(subjects=["p03"], request_id="r")
            assert receipt.untold is not None and "Access Denied" in receipt.untold
            assert receipt.effective_at is None and len(receipt.deleted) == 3
            assert service.receipt("r").effective_at is None
            assert "Access Denied" in (service.status().untold or "")
            assert caplog.text.count("store not told yet") == 1
        assert told(config) == []
        assert service.receipt("r").effective_at is not None, "asked again, it is told"
        assert told(config) == [1] and service.status().untold is None


def test_the_next_command_tells_what_another_could_not(
    config: Config, cut: Cut, s3t: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with cut():
        said = s3t("deactivate", config.run_dir, "--subjects", "p03", "--request-id", "r")
        assert said.code == 5
        assert "3 samples" in said.out and "store not told yet" in said.out
        assert caplog.text.count("Access Denied") == 1
        said = s3t("status", config.run_dir)
        assert said.code == 0 and "nothing can be purged" in said.out
        found = s3t("deactivate", config.run_dir, "--subjects", "p04", "--json")
        assert found.code == 5 and "Access Denied" in json.loads(found.out)["untold"]
        before = stored()
        for _ in range(2):
            said = s3t("purge", config.run_dir)
            assert said.code == 5 and "Access Denied" in said.err
        assert stored() == before, "nothing is purged before it is told"
    said = s3t("status", config.run_dir)
    assert said.code == 0 and "not told" not in said.out and told(config) == [1, 2]
    with RunDir(config.run_dir).ledger() as ledger:
        assert ledger.receipt("r").effective_at is not None
        assert not ledger.replicas.pending()
    assert s3t("purge", config.run_dir).code == 0
    assert not dead_keys(config) & RunDir(config.run_dir).store.keys()


def test_a_purge_tells_first(config: Config) -> None:
    forget(config, "p03")  # in the ledger alone, as by a process that was killed then
    assert told(config) == []
    purge(RunDir(config.run_dir), dry_run=True)
    assert told(config) == []
    assert purge(RunDir(config.run_dir)).nodes
    assert told(config) == [1]
    train(config)
    assert told(config) == [1], "what was purged is the same deletion"


def test_a_replica_tells_what_another_process_could_not(config: Config, cut: Cut) -> None:
    with S3T.load(config.run_dir) as replica:
        with cut():
            replica.join("a", 0.4)
            with S3T.load(config.run_dir) as other:
                assert other.deactivate(subjects=["p03"], request_id="r").untold is not None
            time.sleep(0.4)
            assert replica.receipt("r").effective_at is None, "nor does the replica settle it"
        limit = time.monotonic() + 20
        while replica.receipt("r").effective_at is None:
            assert time.monotonic() < limit
            time.sleep(0.05)
    assert told(config) == [1]


def test_several_tell_at_the_same_time(config: Config) -> None:
    for person in ("p01", "p02", "p03", "p04"):
        forget(config, person)
    problems: list[BaseException] = []

    def tell() -> None:
        try:
            RunDir(config.run_dir).tell_store()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=tell) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and told(config) == [1, 2, 3, 4]
    assert len(RunDir(config.run_dir).notices().gone()) == 12


@pytest.mark.parametrize("harm", ["removed", "renamed"])
def test_a_deletion_that_left_the_store_is_missed(config: Config, harm: str) -> None:
    for person in ("p01", "p02"):
        forget(config, person)
    run = RunDir(config.run_dir)
    run.tell_store()
    depot = run.store.depot
    assert depot is not None
    if harm == "renamed":
        depot.put("run/deletions/7.json", depot.get("run/deletions/1.json"))
    depot.remove("run/deletions/1.json")
    with pytest.raises(IntegrityError, match="does not hold all deletions up to view"):
        RunDir(config.run_dir).notices().told()


# ── one ledger alone ─────────────────────────────────────────────────────────────────────────


def test_a_fresh_ledger_cannot_claim_a_store_by_purging_or_deleting(
    config: Config, make: Make
) -> None:
    other = make("other")
    train(other)
    path = RunDir(other.run_dir).config_path
    path.write_text(path.read_text().replace("url: null", f"url: {STORE['url']}"))
    before = stored()
    with pytest.raises(InputError, match="keeps the nodes of another run"):
        purge(RunDir(other.run_dir))
    with S3T.load(other.run_dir) as service:
        receipt = service.deactivate(subjects=["p03"])
        assert "keeps the nodes of another run" in (receipt.untold or "")
    with pytest.raises(InputError, match="keeps the nodes of another run"):
        train(RunDir(other.run_dir).here())
    assert stored() == before


def test_a_copy_is_refused_while_the_run_is_there_and_a_moved_run_goes_on(
    config: Config, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(config.run_dir, copy)
    before = stored()
    with pytest.raises(InputError, match=r"is a copy of the run whose ledger is .*first/ledger.db"):
        purge(RunDir(copy))
    with pytest.raises(InputError, match="is a copy of the run"):
        train(RunDir(copy).here())
    assert stored() == before
    shutil.rmtree(config.run_dir)
    forget(RunDir(copy).here(), "p03")
    assert purge(RunDir(copy)).nodes
    moved = RunDir(copy).here()
    assert told(moved) == [1] and train(moved).trained == 0


def test_an_older_copy_of_the_ledger_is_refused(config: Config, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(config.run_dir, older)
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=["p03"])
    shutil.rmtree(config.run_dir)
    shutil.copytree(older, config.run_dir)
    before = stored()
    for person in (None, "p04"):  # behind, and at the same view with another deletion
        if person is not None:
            forget(config, person)
        with pytest.raises(IntegrityError, match="tells of a deletion that the ledger of"):
            purge(RunDir(config.run_dir))
    with pytest.raises(IntegrityError, match="so that is an older copy"):
        train(config)
    assert stored() == before


def test_a_store_of_no_known_ledger_is_refused(config: Config, make: Make) -> None:
    open_depot("memory://bucket/run").remove("run/ledger.json")
    for run in (config, make("other", store=STORE)):
        with pytest.raises(InputError, match="keeps the nodes of another run"):
            train(run)


# ── who trains ───────────────────────────────────────────────────────────────────────────────


def test_a_purge_refuses_while_another_machine_trains(config: Config) -> None:
    forget(config, "p03")
    run = RunDir(config.run_dir)
    orphan = DepotLeases(run.work(), Rank(1, 2, 0, 1), 0.4)
    orphan.open()
    before = run.store.keys()
    with pytest.raises(UnavailableError, match=r"is being trained at memory://.*/beats"):
        purge(run)
    assert run.store.keys() == before and told(config) == [1], "told, so that it stops"
    assert purge(run, dry_run=True).nodes
    orphan.close()
    assert purge(run).nodes


def test_a_purge_outwaits_a_machine_that_died(config: Config) -> None:
    forget(config, "p03")
    run = RunDir(config.run_dir)
    dead = DepotLeases(run.work(), Rank(1, 2, 0, 1), 0.4)
    dead.open()
    dead._end.set()
    dead._thread.join()
    sign = json.loads(run.work().get(f"beats/{dead.name}")) | {"host": "another"}
    run.work().put(f"beats/{dead.name}", json.dumps(sign).encode())
    began = time.monotonic()
    assert purge(run).nodes
    assert 0.4 <= time.monotonic() - began < 10
    assert run.work().names("beats") == []


def test_a_purge_sees_at_once_that_a_process_of_this_machine_is_gone(config: Config) -> None:
    forget(config, "p03")
    run = RunDir(config.run_dir)
    run.config_path.write_text(run.config_path.read_text().replace("lease: 0.4", "lease: 1000"))
    dead = DepotLeases(run.work(), Rank(1, 2, 0, 1), 1000)
    dead.open()
    dead._end.set()
    dead._thread.join()
    sign = json.loads(run.work().get(f"beats/{dead.name}")) | {"began": "1"}
    run.work().put(f"beats/{dead.name}", json.dumps(sign).encode())
    began = time.monotonic()
    assert purge(run).nodes and time.monotonic() - began < 10


def test_a_purge_refuses_while_the_main_machine_trains(config: Config) -> None:
    forget(config, "p03")
    run = RunDir(config.run_dir)
    before = run.store.keys()
    with run.training_lock(), pytest.raises(UnavailableError, match="is being trained"):
        purge(RunDir(config.run_dir))
    assert run.store.keys() == before


def test_a_machine_that_lost_the_main_one_publishes_nothing_dead(
    config: Config, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make("other", store=STORE)
    with monkeypatch.context() as second:
        second.setenv(MACHINE, "1")
        second.setenv(MACHINES, "2")
        train(other)
    orphan = RunDir(other.run_dir)
    state = WorkerState(load_prepared(orphan, torch.device("cpu")))
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=["p03"])
        dead = dead_keys(config)
        service.purge()
    roots = [node for node in orphan.plan().forest if node.parent is None and node.key in dead]
    assert roots and not dead & orphan.store.keys()
    state.train([roots[0].key])
    assert not dead & orphan.store.keys()
    assert state.trainable([roots[0].key]) == []


# ── the audit ────────────────────────────────────────────────────────────────────────────────


def test_the_audit_names_deletions_that_were_not_told(config: Config) -> None:
    def said() -> str:
        return json.dumps(audit(config.run_dir).to_dict())

    assert "not told of the deletions" not in said()
    forget(config, "p03")
    assert "was not told of the deletions at views [1]" in said()
    RunDir(config.run_dir).tell_store()
    assert "not told of the deletions" not in said()
    forget(config, "p04")
    forget(config, "p05")
    run = RunDir(config.run_dir)
    run.tell_store()
    depot = run.store.depot
    assert depot is not None
    depot.put("run/deletions/9.json", depot.get("run/deletions/2.json"))
    assert "was told of deletions at views [9] that the ledger" in said()
