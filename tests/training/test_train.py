"""The walk: same bytes however it is spread or interrupted; nothing dead is trained."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t.audit.audit import audit
from s3t.config import Config
from s3t.errors import ConfigError, DamagedNodeError, DataError, InputError, S3TError
from s3t.model.adapters.peft import to_peft
from s3t.model.loading import load_model
from s3t.run import RunDir
from s3t.service import S3T
from s3t.serving.predictor import Predictor
from s3t.training.prepare.checks import check_run
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.preview import preview
from s3t.training.retrain import retrain
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState, steps_of
from s3t.types import NodeKey
from tests.support.small_runs import (
    Make,
    Trained,
    children,
    dead_keys,
    everything,
    forget,
    group_lives,
    nodes,
    person_rows,
    saved,
    stamps,
    start,
    wait_until,
    write_csv,
)

# ── a plain run ──────────────────────────────────────────────────────────────────────────────


def test_every_node_of_the_plan_is_trained_and_proved(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make()
    report = train(config)
    assert "step" not in capfd.readouterr().err, "no progress is shown in a log"
    run = RunDir(config.run_dir)
    plan = run.plan()
    assert (report.nodes, report.trained, report.found, report.skipped) == (8, 8, 0, 0)
    assert "8 nodes trained, 0 found" in report.sentence()
    assert run.store.keys() == {node.key for node in plan.forest.nodes}
    for node in plan.forest.nodes:
        meta, tensors = run.store.read(node.key)
        assert (meta.parent, meta.shard, meta.prefix) == (node.parent, node.shard, node.prefix)
        layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
        assert layers == ({"001"} if node.stage == 1 else {"000", "001"}), "block 1 is the top one"
        assert {"head.weight", "head.bias"} <= tensors.keys(), "E4: the head is part of the node"
    stored = stamps(config)
    again = train(config)
    assert (again.trained, again.found) == (0, 8)
    assert stamps(config) == stored


def test_a_lineage_serves_with_the_head_of_its_last_stage(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    child = next(node for node in run.plan().forest.nodes if node.stage == 2)
    assert child.parent is not None
    head, parents = (run.store.read(key)[1]["head.weight"] for key in (child.key, child.parent))
    assert not torch.equal(head, parents)
    prepared = load_prepared(run, torch.device("cpu"))
    assignment = WorkerState(prepared)._assignment(child)
    assert torch.equal(assignment.inherited["head.weight"], parents)
    assert torch.equal(assignment.rows, assignment.rows.sort().values), "in the order of the ids"
    assert len(assignment.rows) == child.samples


def test_snapshots_carry_whole_adapters_and_may_have_more_slices_than_layers(make: Make) -> None:
    config = make(
        partition={"shards": 1, "slices": 3, "salt": "walk", "subject": "who"},
        sequences={"budget": 1},
        stage={"isolation": "snapshot", "epochs": 1, "learning_rate": 1e-2},
    )
    assert train(config).trained == 3
    run = RunDir(config.run_dir)
    for node in run.plan().forest.nodes:
        tensors = run.store.read(node.key)[1]
        layers = {name.split(".")[1] for name in tensors if name.startswith("layers.")}
        assert layers == {"000", "001"}
    child = next(node for node in run.plan().forest.nodes if node.stage == 2)
    assert child.parent is not None
    inherited = WorkerState(load_prepared(run, torch.device("cpu")))._inherited(child)
    parent = run.store.read(child.parent)[1]
    assert inherited.keys() == parent.keys()
    assert all(torch.equal(inherited[name], parent[name]) for name in parent)


FIRST: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("stage", "layers", "ranks"),
    [
        ({"isolation": "layers"}, {"000"}, {2}),
        ({"isolation": "nested"}, {"000", "001"}, {2}),
        ({"isolation": "residual"}, {"000", "001"}, {2, 4}),
        ({"isolation": "residual", "span": "up"}, {"000", "001"}, {2, 4}),
        ({"isolation": "residual", "slices": "current"}, {"000", "001"}, {2, 4}),
    ],
)
def test_a_prefix_serves_what_the_next_stage_begins_with(
    make: Make, stage: dict[str, Any], layers: set[str], ranks: set[int]
) -> None:
    """From the files alone: which of them serve, how they add up, and what peft makes of that."""
    config = make(stage=FIRST | stage, sequences={"budget": 1})
    train(config)
    run, isolation = RunDir(config.run_dir), stage["isolation"]
    child = next(node for node in run.plan().forest.nodes if node.stage == 2)
    own, parents = (run.store.read(key)[1] for key in (child.key, child.parent))
    assert {name.split(".")[1] for name in own if name.startswith("layers.")} == layers
    if isolation == "layers":
        expected = parents | own
    elif isolation == "nested":
        expected = own
    else:
        expected = {**own}
        for name in own:
            half = parents.get(name, torch.zeros_like(own[name]))
            if name.endswith("lora_A"):
                expected[name] = torch.cat([half, own[name]])
            elif name.endswith("lora_B"):
                expected[name] = torch.cat([half, own[name]], dim=1)
    predictor = Predictor(run, config, run.plan())
    (member,) = predictor.members([child], run.plan())
    assert member.tensors.keys() == expected.keys()
    assert all(torch.equal(member.tensors[name], expected[name]) for name in expected)
    assert member.rank == max(ranks)
    one = predictor.ensemble([child], run.plan())
    assert one is not None
    rows = predictor.encode(["person 1 says 8", "person 2 says 9"])
    untouched = load_model(config).model
    alpha = config.lora.scale * member.rank
    adapted = to_peft(untouched, predictor.base.targets, expected, member.rank, alpha)
    with torch.no_grad():
        hidden = adapted(input_ids=rows.values, attention_mask=rows.mask).last_hidden_state[:, 0]
    logits = hidden @ expected["head.weight"].t() + expected["head.bias"]
    torch.testing.assert_close(one.probabilities(rows), logits.softmax(1), atol=1e-5, rtol=0)


def test_current_slices_train_on_the_last_slice_alone(make: Make, trained: Trained) -> None:
    config = trained(make(stage=FIRST | {"slices": "current"}, sequences={"budget": 1}))
    run = RunDir(config.run_dir)
    plan = run.plan()
    state = WorkerState(load_prepared(run, torch.device("cpu")))
    for node in plan.forest.nodes:
        assert len(state._assignment(node).rows) == plan.sizes[node.shard][node.last]


def test_each_stage_takes_its_own_epochs(make: Make, trained: Trained) -> None:
    config = trained(make(stage=FIRST | {"epochs": [3, 1]}, sequences={"budget": 1}))
    run = RunDir(config.run_dir)
    plan, state = run.plan(), WorkerState(load_prepared(run, torch.device("cpu")))
    assert plan.epochs == (3, 1), "as the file gives them back"
    for node in plan.forest.nodes:
        epochs = 3 if node.stage == 1 else 1
        assert node.passes == epochs * node.samples
        batches = state.trainer.batches(state._assignment(node))
        assert batches.steps == epochs * -(-node.samples // config.stage.step_rows)
        assert batches.steps == steps_of(node, config.stage)
    forget(config, "p03")
    assert audit(run.root, from_scratch=True)["E3"].status == "holds"


# ── E2: how it is spread, and how it is interrupted ──────────────────────────────────────────


@pytest.mark.heavy
def test_two_processes_of_accelerate_change_no_byte(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    one, two = trained(make("one")), make("two")
    process = start("train", saved(two, tmp_path), "--num_processes", "2", "--cpu")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "2 × 1 workers" in out + err, "accelerate started another number of processes"
    assert err.count("nodes trained") + out.count("nodes trained") == 1, "one of them speaks"
    assert nodes(two) == nodes(one)


@pytest.mark.heavy
def test_a_problem_under_accelerate_is_said_once_and_ends_all(make: Make, tmp_path: Path) -> None:
    shape = {"shards": 2, "slices": 3, "subject": "who"}
    config = make("one", partition=shape, stage={"isolation": "layers"})
    process = start("train", saved(config, tmp_path), "--num_processes", "2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.count("partition.slices 3 is over the 2 layers") == 1
    assert not (tmp_path / "one").exists()


@pytest.mark.heavy
def test_killed_at_any_moment_workers_go_on_to_the_bytes_of_one_process(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    stage = {"epochs": 40, "learning_rate": 1e-3}
    whole, killed = make("whole", stage=stage), make("killed", stage=stage, training={"workers": 2})
    path, run = saved(killed, tmp_path), RunDir(killed.run_dir)
    finished: dict[str, int] = {}
    for many in (0, 2):
        process = start("train", path)
        wait_until(run.config_path.exists, process)
        wait_until(lambda many=many: len(run.store.keys()) >= many, process)
        if many:
            process.kill()  # the workers must end by themselves
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        limit = time.monotonic() + 60
        while group_lives(process.pid):
            assert time.monotonic() < limit, "a worker outlives its parent"
            time.sleep(0.02)
        now = stamps(killed)
        assert finished.items() <= now.items(), "a finished node was written again"
        finished = now
    assert 2 <= len(finished) < 8, "it was killed before it was done"
    assert all(run.store.read(key) for key in run.store.keys()), "what was published is whole"  # noqa: SIM118
    report = train(killed)
    assert (report.found, report.workers) == (len(finished), 2)
    assert not (killed.run_dir / "trunk").exists(), "hidden states of private rows are left"
    assert finished.items() <= stamps(killed).items()
    assert not list(run.store.root.glob(".*.tmp"))
    assert nodes(killed) == nodes(trained(whole))
    assert run.plan_path.read_bytes() == RunDir(whole.run_dir).plan_path.read_bytes()


def test_a_removed_node_is_trained_again_to_the_same_bytes(make: Make, trained: Trained) -> None:
    config = trained(make())
    before = nodes(config)
    run = RunDir(config.run_dir)
    middle = next(node for node in run.plan().forest.nodes if node.stage == 1)
    run.store.path(middle.key).unlink()
    assert train(config).trained == 1
    assert nodes(config) == before


def test_a_damaged_parent_is_never_built_upon(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    child = next(node for node in run.plan().forest.nodes if node.stage == 2)
    assert child.parent is not None
    run.store.path(child.key).unlink()
    path = run.store.path(child.parent)
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DamagedNodeError, match=child.parent):
        train(config)
    assert not run.store.has(child.key)
    path.unlink()
    assert train(config).trained == 2


def test_one_training_at_a_time(make: Make, trained: Trained) -> None:
    config = trained(make())
    with (
        RunDir(config.run_dir).training_lock(),
        pytest.raises(S3TError, match="is being trained by another process"),
    ):
        train(config)
    assert train(config).found == 8


# ── E1, E3: what a node depends on ───────────────────────────────────────────────────────────


def test_the_order_of_the_rows_changes_no_byte(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    write_csv(tmp_path / "turned.csv", person_rows()[::-1])
    one, two = trained(make("one")), make("two", private="turned.csv")
    train(two)
    assert nodes(two) == nodes(one)


def test_without_the_deleted_samples_surviving_nodes_have_the_same_bytes(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    kept = [row for row in person_rows() if row["who"] != "p03"]
    write_csv(tmp_path / "kept.csv", kept)
    one, two = trained(make("one")), trained(make("two", private="kept.csv"))
    forget(one, "p03")
    dead = {f"{key}.safetensors" for key in dead_keys(one)}
    before, without = nodes(one), nodes(two)
    assert 0 < len(dead) < len(before)
    assert {name: before[name] for name in before if name not in dead} == {
        name: without[name] for name in without if name in before
    }
    assert not dead & without.keys(), "a dead key stands for data that are no longer there"
    assert len(without) == len(before), "the slice that was hit was trained on what is left of it"


def deep(make: Make, output: str, sequences: dict[str, Any], **sections: Any) -> Config:
    """A config of 2 × 3 slices over a base of 3 layers."""
    model = {"make": {"hidden": 16, "layers": 3, "heads": 2, "init_scale": 5}}
    partition = {"shards": 2, "slices": 3, "salt": "c"}
    return make(output, model=model, partition=partition, sequences=sequences, **sections)


@pytest.mark.parametrize(
    "unit",
    [
        "slice-passes",
        *(pytest.param(one, marks=pytest.mark.heavy) for one in ("sequences", "bytes")),
    ],
)
def test_a_set_tree_is_trained_served_and_proved_like_sequences(
    make: Make, trained: Trained, unit: str
) -> None:
    cyclic = deep(make, "cyclic", {"strategy": "cyclic"})
    budget = {"sequences": 3, "slice-passes": 10, "bytes": 0}[unit]
    checked = check_run(cyclic)
    plan = checked.plan(checked.base, None)
    whole = len(plan.forest)
    budget = budget or sum(node.bytes for node in plan.forest.of_shard(0)[:5])
    tree = trained(deep(make, "tree", {"strategy": "tree", "unit": unit, "budget": budget}))
    forest = RunDir(tree.run_dir).plan().forest
    sets = [(node.shard, frozenset(node.prefix)) for node in forest]
    assert len(set(sets)) == len(sets) < whole
    assert {f"{node.key}.safetensors" for node in forest} == nodes(tree).keys()
    if unit == "slice-passes":
        assert sum(node.stage for node in forest.of_shard(0)) <= 10
    forget(tree, "p03")
    dead = dead_keys(tree)
    assert dead
    with S3T.load(tree.run_dir) as service:
        status = service.status()
        served = [shard.node for shard in status.shards if shard.node is not None]
        hit = {shard.shard: set(shard.slices_hit) for shard in status.shards}
        for shard in status.shards:
            alive = [n for n in forest.of_shard(shard.shard) if not hit[shard.shard] & {*n.prefix}]
            assert len(shard.prefix) == max((node.stage for node in alive), default=0)
        assert not dead & {*served}
        assert service.predict([{"text": "person 4 says 5"}])[0].label in ("good", "bad")
    assert set(retrain(RunDir(tree.run_dir), served, tree.run_dir.parent / "again").values()) == {
        True
    }


def test_the_tree_depends_on_nothing_private(make: Make, tmp_path: Path) -> None:
    """E3: without the deleted samples the same slices are planned, whatever the unit counts."""
    write_csv(tmp_path / "kept.csv", [row for row in person_rows() if row["who"] != "p03"])
    for unit, budget in (("sample-passes", 90), ("bytes", 9000), ("nodes", 4)):
        words = {"strategy": "tree", "unit": unit, "budget": budget, "samples": 48}
        one = preview(deep(make, "run", words))
        two = preview(deep(make, "run", words, private="kept.csv"))
        assert one["sequences"] == two["sequences"] and one["slice_sizes"] != two["slice_sizes"]


def tiered(make: Make, tmp_path: Path, output: str, without: str = "") -> Config:
    """A config with two risk tiers by date, of the rows but those of one person."""
    rows = [row | {"since": f"20{row['who'][1:]}-05-01"} for row in person_rows()]
    kept = [row for row in rows if row["who"] != without]
    write_csv(tmp_path / f"{output}.csv", kept)
    write_csv(tmp_path / "public.csv", rows)  # its median, 2007-05-01, parts the tiers
    risk = {"column": "since", "as_of": "2020-01-01", "quantiles": [0.5], "rates": [3, 1]}
    return make(output, f"{output}.csv", partition={"risk": risk}, sequences={"budget": 1})


def test_with_risk_tiers_surviving_nodes_have_the_same_bytes(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    one, two = tiered(make, tmp_path, "one"), tiered(make, tmp_path, "two", without="p03")
    notes = [note for note in preview(one)["notes"] if note.startswith("risk tier")]
    assert notes == [
        "risk tier 0 (age in days below 4628): slice 0 of each shard, 24 samples, rate 3",
        "risk tier 1 (age in days from 4628): slice 1 of each shard, 24 samples, rate 1",
    ]
    trained(one)
    with RunDir(one.run_dir).ledger() as ledger:
        assert all(entry.slice == (str(entry.subject) < "p08") for entry in ledger.samples())
    train(two)
    forget(one, "p03")
    dead, before, without = dead_keys(one), nodes(one), nodes(two)
    alive = [name for name in before if NodeKey(name[:64]) not in dead]
    assert 0 < len(alive) < len(before) == len(without)
    assert all(without[name] == before[name] for name in alive)
    again = retrain(RunDir(one.run_dir), [NodeKey(name[:64]) for name in alive], tmp_path / "again")
    assert set(again) == {NodeKey(name[:64]) for name in alive} and all(again.values())


def test_a_tier_that_changed_is_refused(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(tiered(make, tmp_path, "one"))
    run, private = RunDir(config.run_dir), tmp_path / "one.csv"
    run.store.path(next(iter(run.store.keys()))).unlink()
    before, text = everything(config.run_dir), private.read_text(encoding="utf-8")
    private.write_text(text.replace("2003-05-01", "2015-05-01"), encoding="utf-8")
    with pytest.raises(InputError, match="new or changed: 's030', 's031', 's032'"):
        train(config)
    private.write_text(text.replace("2003-05-01", "2015-05-01", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"rows of one person into several tiers .*'p03'"):
        train(config)
    assert everything(config.run_dir) == before
    private.write_text(text.replace("2003-05-01", "2002-05-01"), encoding="utf-8")
    assert train(config).trained == 1, "another value of the same tier shapes nothing"


def test_after_a_deletion_dead_nodes_are_not_trained(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    config = trained(make())
    before = nodes(config)
    forget(config, "p03")
    for path in RunDir(config.run_dir).store.root.iterdir():
        path.unlink()
    # the person's rows may still be there, or be gone from the data
    for rows in (person_rows(), [row for row in person_rows() if row["who"] != "p03"]):
        write_csv(tmp_path / "private.csv", rows)
        report = train(config)
        dead = dead_keys(config)
        assert dead
        assert report.skipped == len(dead)
        alive = {name: before[name] for name in before if NodeKey(name[:64]) not in dead}
        assert nodes(config) == alive
        for path in RunDir(config.run_dir).store.root.iterdir():
            path.unlink()


def test_a_node_that_dies_while_it_is_trained_is_not_published(
    make: Make, trained: Trained
) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    prepared = load_prepared(run, torch.device("cpu"))
    first = [node for node in run.plan().forest.nodes if node.stage == 1]
    for node in first:
        run.store.path(node.key).unlink()
    told = []

    def on_step(steps: int) -> None:
        if not told:
            forget(config, "p03")
        told.append(steps)

    WorkerState(prepared).train([node.key for node in first], on_step)
    dead = dead_keys(config)
    assert {node.key for node in first if run.store.has(node.key)} == {
        node.key for node in first if node.key not in dead
    }
    assert any(node.key in dead for node in first)


def test_a_base_adapted_on_public_data_is_the_same_at_every_run(
    make: Make, trained: Trained
) -> None:
    adapt = {
        "base": "make:bert",
        "make": {"hidden": 16, "layers": 2, "heads": 2},
        "adapt": {"steps": 4, "batch_size": 8},
    }
    one, two = (make(name, model=adapt, aggregation={"on_exhausted": "base"}) for name in "ab")
    torch.manual_seed(1)
    train(one)
    torch.manual_seed(2)
    train(two)
    assert nodes(one) == nodes(two)
    heads = [RunDir(config.run_dir).head_path.read_bytes() for config in (one, two)]
    assert heads[0] == heads[1]
    plain = trained(make("c"))
    plans = [RunDir(config.run_dir).plan() for config in (one, plain)]
    assert plans[0].base != plans[1].base, "the steps were taken"


# ── what is refused, and leaves things as they were ──────────────────────────────────────────


def test_a_changed_row_is_refused(make: Make, trained: Trained, tmp_path: Path) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    run.store.path(next(iter(run.store.keys()))).unlink()
    before = everything(config.run_dir)
    rows = person_rows()
    rows[5]["text"] += "!"
    for changed in (rows, person_rows()[1:], person_rows(17)):
        write_csv(tmp_path / "private.csv", changed)
        with pytest.raises(InputError):
            train(config)
        assert everything(config.run_dir) == before
    write_csv(tmp_path / "private.csv", person_rows())
    assert train(config).trained == 1


def test_a_changed_config_is_refused_with_the_keys(make: Make, trained: Trained) -> None:
    trained(make())
    before = everything(make().run_dir)
    changed = make(lora={"rank": 3}, stage={"epochs": 1, "learning_rate": 1e-2})
    with pytest.raises(InputError) as caught:
        train(changed)
    message = str(caught.value)
    assert "lora.rank was 2, is 3" in message
    assert "stage.epochs was 2, is 1" in message
    assert "output=DIR" in message
    assert everything(make().run_dir) == before
    # how the work is spread, and how answers are combined, shape no node
    free = make(training={"workers": 1, "trunk_cache_mb": 0}, aggregation={"method": "vote"})
    assert train(free).found == 8


def test_a_changed_base_is_refused(make: Make, trained: Trained) -> None:
    config = trained(make())
    run = RunDir(config.run_dir)
    run.store.path(next(iter(run.store.keys()))).unlink()
    weights = run.base_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="no longer the base"):
        train(config)
    assert len(run.store.keys()) == 7


def test_problems_are_reported_together_before_anything_is_written(
    make: Make, tmp_path: Path
) -> None:
    shape = {"shards": 30, "slices": 3, "salt": "walk", "subject": "who"}
    config = make(partition=shape, stage={"isolation": "layers"})
    with pytest.raises(ConfigError) as caught:
        train(config)
    problems = "\n".join(caught.value.problems)
    assert "partition.slices 3 is over the 2 layers" in problems
    assert "slices got none of the 48 samples" in problems
    assert not config.run_dir.exists()


def test_a_foreign_directory_is_refused_and_left_alone(make: Make) -> None:
    config = make()
    config.run_dir.mkdir()
    (config.run_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are no run"):
        train(config)
    assert [path.name for path in config.run_dir.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_run_is_refused(make: Make) -> None:
    config = make()
    config.run_dir.write_text("years of work")
    with pytest.raises(InputError, match="cannot be written"):
        train(config)
    assert config.run_dir.read_text() == "years of work"


def test_divergence_publishes_nothing(make: Make) -> None:
    config = make(stage={"optimizer": "sgd", "learning_rate": 1e30, "epochs": 2})
    with pytest.raises(S3TError, match="diverged"):
        train(config)
    assert not RunDir(config.run_dir).store.keys()


@pytest.mark.heavy
def test_an_error_in_a_worker_is_the_error_of_the_run(make: Make) -> None:
    stage = {"optimizer": "sgd", "learning_rate": 1e30, "epochs": 2}
    config = make(stage=stage, training={"workers": 2})
    with pytest.raises(S3TError, match="diverged"):
        train(config)
    assert not RunDir(config.run_dir).store.keys()


@pytest.mark.heavy
def test_the_nodes_of_a_worker_that_dies_are_taken_up(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    stage = {"epochs": 40, "learning_rate": 1e-3}
    whole, config = make("whole", stage=stage), make("hit", stage=stage, training={"workers": 2})
    process, store = start("train", saved(config, tmp_path)), RunDir(config.run_dir).store
    wait_until(lambda: bool(store.keys()), process)  # both are at work
    workers = children(process.pid, b"s3t.training.work.worker")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "8 nodes trained, 0 found" in out
    assert err.count("ended with exit code -9: the other 1 go on") == 1
    assert nodes(config) == nodes(trained(whole))


@pytest.mark.heavy
def test_when_all_workers_die_there_is_one_error_with_the_next_step(
    make: Make, tmp_path: Path
) -> None:
    config = make(stage={"epochs": 400, "learning_rate": 1e-4}, training={"workers": 2})
    process = start("train", saved(config, tmp_path))
    wait_until(RunDir(config.run_dir).plan_path.exists, process)
    for worker in children(process.pid, b"s3t.training.work.worker"):
        os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("finished nodes are kept, run the same command again") == 1
    assert not (config.run_dir / ".work").exists()
