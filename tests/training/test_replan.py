"""Repair and additions: what is trained again, what is served meanwhile, and to which bytes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3t.audit.audit import audit
from s3t.config import Config
from s3t.errors import InputError, S3TError
from s3t.ledger import Ledger, Witnessed
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.prepare.replan import Replan
from s3t.training.retrain import from_scratch, retrain
from s3t.training.work.train import Report, train
from tests.support.small_runs import (
    Make,
    Rows,
    Trained,
    dead_keys,
    forget,
    nodes,
    person_rows,
    stamps,
    start,
    wait_until,
    write_csv,
)

Never = Callable[..., Config]
"""``never("p03")``: the same run without a person."""

QUESTIONS = [{"text": "person 4 says 5"}, {"text": "person 7 says 1"}]


def repair(config: Config) -> Report:
    return train(config, replan=Replan())


def add(config: Config, *files: Path) -> Report:
    found = RunDir(config.run_dir).config()
    return train(found, replan=Replan(True, tuple(map(str, files))))


def prefixes(config: Config) -> list[tuple[int, ...]]:
    with S3T.load(config.run_dir) as service:
        return [shard.prefix for shard in service.status().shards]


@pytest.fixture
def never(make: Make, trained: Trained, tmp_path: Path) -> Never:
    """A run that was trained from the start on rows without those of some persons."""

    def run(*persons: str, more: Rows | None = None) -> Config:
        rows = [row for row in person_rows() + (more or []) if row["who"] not in persons]
        name = "-".join(["never", *persons])
        write_csv(tmp_path / f"{name}.csv", rows)
        return trained(make(name, private=f"{name}.csv"))

    return run


def test_a_repaired_run_is_a_run_that_never_saw_the_sample(
    make: Make, trained: Trained, never: Never
) -> None:
    one, other = trained(make("one")), never("p03")
    forget(one, "p03")
    dead, before, times = dead_keys(one), nodes(one), stamps(one)
    report = repair(one)
    assert (report.trained, report.found) == (len(dead), len(before) - len(dead))
    assert nodes(one) == nodes(other), "byte for byte, and nothing else on disk"
    kept = {name: at for name, at in times.items() if name[:64] not in dead}
    assert kept.items() <= stamps(one).items(), "what survived was not written again"
    run = RunDir(one.run_dir)
    assert run.plan().forest == RunDir(other.run_dir).plan().forest
    with run.ledger() as ledger:
        state = ledger.plans.in_force()
        assert (state.generation, state.hits) == (1, ())
        assert [g.in_force is not None for g in ledger.plans.all()] == [True, True]
        metas = [run.store.meta(node.key) for node in run.plan().forest]
        assert ledger.plans.nodes() == {
            meta.key: Witnessed(
                meta.weights, meta.score, meta.rows, run.store.read_evidence(meta.key).digest
            )
            for meta in metas
        }
    # deleted again, and repaired again
    forget(one, "p04")
    repair(one)
    with run.ledger() as ledger:
        assert ledger.plans.in_force().generation == 2
    assert nodes(one) == nodes(never("p03", "p04"))


@pytest.mark.heavy
def test_workers_and_a_retraining_give_the_bytes_of_a_repair(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    config = trained(make())
    forget(config, "p03")
    repair(config)
    run = RunDir(config.run_dir)
    assert from_scratch(run, tmp_path / "scratch", {"workers": 2}).equal
    keys = [node.key for node in run.plan().forest]
    assert all(retrain(run, keys, tmp_path / "again").values())


def test_an_unrepaired_run_lacks_what_it_lost(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    forget(config, "p03")
    compared = from_scratch(RunDir(config.run_dir), tmp_path / "scratch")
    dead = dead_keys(config)
    assert not compared.equal and not compared.different
    assert set(compared.only_here) == dead and len(compared.only_there) == len(dead)


def test_nothing_to_repair_changes_nothing(make: Make, trained: Trained) -> None:
    config = trained(make())
    with RunDir(config.run_dir).ledger() as ledger:
        view, log = ledger.view(), list(ledger.log())
    times = stamps(config)
    report = repair(config)
    assert (report.trained, report.found) == (0, 8)
    with RunDir(config.run_dir).ledger() as ledger:
        assert (ledger.view(), list(ledger.log())) == (view, log)
    assert stamps(config) == times


def test_a_slice_that_is_empty_is_left_out(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    with run.ledger() as ledger:
        people = {str(entry.subject) for entry in ledger.samples(slot=(0, 1))}
        others = {str(entry.subject) for entry in ledger.samples(slot=(1, 0))}
    forget(config, *sorted(people))
    repair(config)
    assert run.plan().sizes[0][1] == 0
    assert run.plan().sequences[0] == ((0,),)
    assert prefixes(config)[0] == (0,)
    assert from_scratch(run, tmp_path / "scratch").equal
    forget(config, *sorted(others))
    with run.ledger() as ledger:
        rest = {str(entry.subject) for entry in ledger.samples(slot=(1, 1))}
    forget(config, *sorted(rest))
    repair(config)
    assert run.plan().sequences[1] == ()
    assert prefixes(config) == [(0,), ()]
    with S3T.load(config.run_dir) as service:
        assert service.predict(QUESTIONS), "the other shard answers"


def test_all_samples_gone_is_told(make: Make, trained: Trained) -> None:
    config = trained(make())
    forget(config, *sorted({str(row["who"]) for row in person_rows()}))
    before = RunDir(config.run_dir).plan_path.read_bytes()
    with pytest.raises(InputError, match="no private sample is left"):
        repair(config)
    assert RunDir(config.run_dir).plan_path.read_bytes() == before


def test_who_serves_goes_on_and_takes_up_new_nodes(make: Make, trained: Trained) -> None:
    config = trained(make())
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=["p03"])
        hit = service.predict(QUESTIONS)
        short = [shard.prefix for shard in service.status().shards]
        repair(config)
        repaired = service.predict(QUESTIONS)
        whole = [shard.prefix for shard in service.status().shards]
        assert sum(map(len, whole)) > sum(map(len, short))
        assert repaired[0].view > hit[0].view
        assert repaired[0].probabilities != hit[0].probabilities
        with S3T.load(config.run_dir) as fresh:
            assert [one.probabilities for one in fresh.predict(QUESTIONS)] == [
                one.probabilities for one in repaired
            ]
        receipt = service.deactivate(subjects=["p05"])
        assert receipt.nodes_dead and not {*receipt.nodes_dead} & dead_of(service)


def dead_of(service: S3T) -> set[str]:
    return {shard.node for shard in service.status().shards if shard.node is not None}


def test_a_deletion_while_it_is_repaired_is_kept_out(
    make: Make, trained: Trained, never: Never, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.training.work import train as walk

    config = trained(make())
    forget(config, "p03")
    replan_run = walk.replan_run

    def and_then(*arguments: Any) -> Any:
        found = replan_run(*arguments)
        forget(config, "p04")  # after the plan was made, before a node is trained
        return found

    monkeypatch.setattr(walk, "replan_run", and_then)
    report = repair(config)
    assert report.skipped > 0
    assert not dead_keys(config) & {name[:64] for name in nodes(config)}, "purged or never trained"
    monkeypatch.undo()
    repair(config)
    assert nodes(config) == nodes(never("p03", "p04"))


@pytest.mark.heavy
def test_killed_at_work_a_repair_goes_on(make: Make, trained: Trained, tmp_path: Path) -> None:
    """At the steps before its first node: the next test."""
    stage = {"epochs": 16, "learning_rate": 1e-3}
    alone = {"workers": 1, "group_bytes": 1}
    config = trained(make("one", stage=stage, training=alone))
    forget(config, "p03")
    run, finished = RunDir(config.run_dir), stamps(config)
    before = len(finished)
    process = start("repair", str(config.run_dir))
    wait_until(lambda: generation(run) == 1, process)
    wait_until(lambda: len(run.store.keys()) >= before + 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    now = stamps(config)
    assert finished.items() <= now.items(), "a finished node was written again, or is lost"
    finished = now
    assert prefixes(config), "whatever moment it was, the run opens"
    left = {node.key for node in run.plan().forest} - run.store.keys()
    assert left, "it was killed before it was done"
    assert repair(config).trained == len(left)
    now = stamps(config)
    assert all(finished[name] == at for name, at in now.items() if name in finished)
    assert from_scratch(run, tmp_path / "scratch").equal


def test_between_any_two_steps_of_a_new_plan_the_run_is_whole(
    make: Make, trained: Trained, never: Never, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained(make())
    forget(config, "p03")
    run, before = RunDir(config.run_dir), prefixes(config)

    def die(*arguments: Any) -> None:
        raise S3TError("killed")

    for name, killed in (
        ("s3t.ledger.planning.Planning.propose", die),
        ("s3t.ledger.planning.Planning.put_in_force", die),
        ("s3t.training.prepare.replan.put_in_force", put_in_force_and_die),
    ):
        with monkeypatch.context() as patched, pytest.raises(S3TError, match="killed"):
            patched.setattr(name, killed)
            repair(config)
        assert prefixes(config) == before, name
        assert run.plan().digest and run.trained_plan().digest, name
        assert not [claim for claim in audit(run.root).claims if claim.status == "broken"], name
        purge(run)
    train(config)
    assert prefixes(config), "a plain training goes on with what there is"
    repair(config)
    assert nodes(config) == nodes(never("p03"))
    assert audit(run.root).holds and not run.plans.others()


def put_in_force_and_die(run: RunDir, ledger: Ledger, plan: Plan) -> None:
    ledger.plans.put_in_force(ledger.plans.newest().generation)
    raise S3TError("killed")


def generation(run: RunDir) -> int:
    with run.ledger() as ledger:
        return ledger.plans.in_force().generation


# ── additions ────────────────────────────────────────────────────────────────────────────────


def new_rows() -> Rows:
    return [
        {
            "id": f"n{number}",
            "who": f"n{number // 2}",
            "text": f"newcomer {number} writes",
            "label": label,
        }
        for number, label in enumerate(["good", "bad", "good", "bad"])
    ]


def test_added_samples_are_those_of_a_run_with_them_from_the_start(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    write_csv(tmp_path / "more.csv", new_rows())
    write_csv(tmp_path / "all.csv", [*person_rows(), *new_rows()])
    config, whole = trained(make("one")), trained(make("whole", private="all.csv"))
    before = nodes(config)
    report = add(config, tmp_path / "more.csv")
    assert report.added == 4
    assert nodes(config) == nodes(whole)
    untouched = nodes(whole).keys() & before.keys()
    assert report.trained == 8 - len(untouched)
    with S3T.load(config.run_dir) as service:
        assert service.status().samples == 52
        assert service.deactivate(["n0"]).nodes_dead
    repair(RunDir(config.run_dir).config())
    assert from_scratch(RunDir(config.run_dir), tmp_path / "scratch").equal
    again = add(config, tmp_path / "more.csv")
    assert (again.added, again.trained) == (0, 0), "what was deleted never comes in again"


def test_new_rows_without_add_are_refused(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    before = nodes(config)
    write_csv(tmp_path / "private.csv", [*person_rows(), *new_rows()])
    with pytest.raises(InputError, match=r"new or changed: 'n0', 'n1', 'n2' and more.*s3t add"):
        repair(config)
    assert nodes(config) == before
    assert add(config).added == 4
    assert train(config).trained == 0


def test_changed_rows_are_no_addition(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    rows = person_rows()
    rows[0] = rows[0] | {"text": "another text"}
    write_csv(tmp_path / "private.csv", [*rows, *new_rows()])
    with pytest.raises(InputError, match="changed: 's000'"):
        add(config)
    with RunDir(config.run_dir).ledger() as ledger:
        assert ledger.counts.totals()["samples"] == 48 and len(ledger.plans.all()) == 1


def test_until_it_is_trained_the_run_serves_what_it_did(
    make: Make,
    trained: Trained,
    never: Never,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from s3t.training.work import train as walk

    config = trained(make())
    write_csv(tmp_path / "private.csv", [*person_rows(), *new_rows()])

    def die(*arguments: Any) -> None:
        raise S3TError("killed")

    monkeypatch.setattr(walk.Scheduler, "train", die)
    with S3T.load(config.run_dir) as service:
        before = service.predict(QUESTIONS)
        with pytest.raises(S3TError, match="killed"):
            add(config)
        assert service.predict(QUESTIONS) == before
        receipt = service.deactivate(subjects=["p03"])
        assert receipt.nodes_dead
    monkeypatch.undo()
    run = RunDir(config.run_dir)
    assert len(run.plans.others()) == 1 and run.plan().digest != run.trained_plan().digest
    with pytest.raises(InputError, match="finish that with s3t add"):
        retrain(run, [], tmp_path / "again")
    report = train(config)
    assert report.trained and report.skipped, "a plain training finishes it; the deletion holds"
    assert not run.plans.others() and run.plan().digest == run.trained_plan().digest
    assert not dead_keys(config) & {
        shard.node for shard in S3T.load(config.run_dir).status().shards
    }
    repair(config)
    assert nodes(config) == nodes(never("p03", more=new_rows()))


def test_files_that_cannot_be_added(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    before = RunDir(config.run_dir).config_path.read_bytes()
    with pytest.raises(InputError, match="there is no file"):
        add(config, tmp_path / "nowhere.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="columns differ"):
        add(config, tmp_path / "other.csv")
    assert RunDir(config.run_dir).config_path.read_bytes() == before


@pytest.mark.parametrize("encrypt", [pytest.param(False, marks=pytest.mark.heavy), True])
def test_what_was_added_and_deleted_leaves_the_run_of_before(
    make: Make, trained: Trained, tmp_path: Path, encrypt: bool
) -> None:
    """Nodes that were purged when samples came are wanted again, under the same keys."""
    store = {"encrypt": True, "keys": str(tmp_path / "keys" / "ring")} if encrypt else {}
    write_csv(tmp_path / "more.csv", new_rows())
    config = trained(make(store=store))
    run = RunDir(config.run_dir)
    before = {key: run.store.content(key) for key in run.store.keys()}  # noqa: SIM118
    add(config, tmp_path / "more.csv")
    assert run.store.keys() != before.keys()
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=["n0", "n1"])
    repair(run.here())
    assert {key: run.store.content(key) for key in run.store.keys()} == before  # noqa: SIM118
    assert audit(config.run_dir, retrain=2).holds
