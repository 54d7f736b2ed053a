"""Processes that train a node together: the bytes of one that takes the parts in turn, or none.

What starts processes is heavy; what they compute is tried here in turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t.config import Config, load_config
from s3t.errors import ConfigError, InputError
from s3t.run import RunDir
from s3t.training.node.assignment import TrainedNode
from s3t.training.node.process_group import InTurn
from s3t.training.node.trainer import StageTrainer
from s3t.training.rank import Rank
from s3t.training.retrain import from_scratch, retrain
from s3t.training.work.train import train
from s3t.types import BatchPart
from tests.support.small_runs import (
    Make,
    Trained,
    children,
    evidence,
    forget,
    nodes,
    saved,
    stamps,
    start,
    wait_until,
)
from tests.support.tiny import tiny_group, tiny_trainer
from tests.training.test_machines import free_port

CASES = [
    pytest.param("vit", False, marks=pytest.mark.heavy),
    ("bert", False),
    ("llama", True),
]
SIZES = (7, 12, 3)
ROUGH = {
    "dropout": 0.2,
    "schedule": "cosine",
    "warmup": 0.25,
    "max_grad_norm": 0.1,
    "weight_decay": 0.1,
}


def close(one: TrainedNode, other: TrainedNode) -> bool:
    return all(
        torch.allclose(one.tensors[name], other.tensors[name], rtol=1e-3, atol=2e-4)
        for name in one.tensors
    )


def same(one: TrainedNode, other: TrainedNode) -> bool:
    return (one.score == other.score and torch.equal(one.said, other.said)) and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def trainers(family: str, language_model: bool, **recipe: Any) -> list[StageTrainer]:
    """For batches whole, in halves and in quarters."""
    return [
        tiny_trainer(family, language_model=language_model, length=32, **recipe, processes=size)
        for size in (1, 2, 4)
    ]


# ── what is divided ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("family", "language_model", "passes"),
    [
        ("bert", False, 1),
        ("llama", True, 3),
        *(pytest.param("vit", False, passes, marks=pytest.mark.heavy) for passes in (1, 3)),
        pytest.param("llama", True, 1, marks=pytest.mark.heavy),
    ],
)
def test_parts_of_a_batch_give_what_the_whole_gives(
    family: str, language_model: bool, passes: int
) -> None:
    """Up to rounding: dropout, clipping, short last batches and lengths of texts included."""
    whole, halves, quarters = trainers(
        family, language_model, **ROUGH, optimizer="sgd", gradient_accumulation=passes
    )
    group = tiny_group(whole, 2, SIZES)
    expected = whole.train((1, 2), group)
    for divided in (halves, quarters):
        for one, other in zip(divided.train((1, 2), group), expected, strict=True):
            assert close(one, other) and abs(one.score - other.score) < 0.05


@pytest.mark.parametrize(("family", "language_model"), CASES)
def test_a_group_of_nodes_changes_no_byte_of_parts(family: str, language_model: bool) -> None:
    _, halves, _ = trainers(family, language_model, **ROUGH)
    group = tiny_group(halves, 2, SIZES)
    alone = {one.key: halves.train((1, 2), [one])[0] for one in group}
    for trained in halves.train((1, 2), group):
        assert same(trained, alone[trained.key])


def test_each_rank_has_rows_of_its_own() -> None:
    rows = list(range(12))
    parts = [rows[BatchPart(rank, 3).of(12)] for rank in range(3)]
    assert parts == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert rows[BatchPart().of(12)] == rows


def test_sums_are_made_in_the_order_of_the_ranks() -> None:
    parts = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    assert float(InTurn(3).summed(parts)) == 0.0
    assert float(InTurn(3).summed(parts[::2] + parts[1:2])) == 1.0


# ── what is refused ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.processes=3"], "batch_size 8 is not a multiple of processes 3"),
        (["stage.parallel=fsdp"], "'fsdp' divides the base among several processes"),
        (["stage.processes=2", "training.workers=3"], "does not fit stage.processes 2"),
        (["stage.processes=2", "training.trunk_cache=disk"], "trunk_cache=disk does not fit stage"),
        (
            ["stage.processes=2", "stage.parallel=fsdp", "model.quantization=4bit"],
            "model.quantization does not fit stage.parallel=fsdp",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    make: Make, tmp_path: Path, overrides: list[str], message: str
) -> None:
    path = saved(make(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_config(path, overrides)


def test_one_process_cannot_be_two(make: Make) -> None:
    config = make(stage={"processes": 2})
    with pytest.raises(InputError, match="s3t train CONFIG --num_processes 2"):
        train(config)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("rank", "size"), [(Rank(0, 3, 0, 3), 2), (Rank(1, 6, 1, 3), 2), (Rank(0, 4, 0, 1), 2)]
)
def test_groups_are_whole_and_of_one_machine(rank: Rank, size: int) -> None:
    with pytest.raises(InputError, match=f"a multiple of {size}"):
        rank.in_groups_of(size)


def test_a_groups_place_is_among_groups() -> None:
    assert Rank(6, 8, 2, 4).in_groups_of(2) == Rank(3, 4, 1, 2)
    assert Rank(7, 8, 3, 4).in_groups_of(2) == Rank(3, 4, 1, 2)
    assert Rank(5, 8, 1, 4).in_groups_of(1) == Rank(5, 8, 1, 4)


# ── one process in turn ──────────────────────────────────────────────────────────────────────


def test_a_run_of_two_can_be_trained_and_audited_by_one(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"sequences": {"budget": 1}}
    plain, config = trained(make("plain", **few)), make("two", stage={"processes": 2}, **few)
    assert train(config, in_turn=True).trained == 4
    run = RunDir(config.run_dir)
    assert run.store.keys().isdisjoint(RunDir(plain.run_dir).store.keys()), "another recipe"
    assert all(retrain(run, sorted(run.store.keys())[:2], tmp_path / "again").values())
    forget(config, "p03")
    assert from_scratch(run, tmp_path / "scratch").different == ()


# ── several processes ────────────────────────────────────────────────────────────────────────


def together(config: Config, folder: Path, processes: int = 2) -> str:
    """What a launch of so many processes says."""
    process = start("train", saved(config, folder), "--num_processes", str(processes))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


ROUGHLY: dict[str, Any] = {
    "stage": {"epochs": 2, "learning_rate": 1e-2, "processes": 2, "max_grad_norm": 0.1},
    "lora": {"rank": 2, "dropout": 0.1},
}


@pytest.mark.heavy
def test_two_processes_give_the_bytes_of_one_that_takes_turns(make: Make, tmp_path: Path) -> None:
    """The base divided among them; whole, the next test has it."""
    rough = ROUGHLY | {"stage": ROUGHLY["stage"] | {"parallel": "fsdp"}}
    config, turns = make("two", **rough), make("turns", **rough)
    said = together(config, tmp_path)
    assert "8 nodes trained, 0 found" in said and "1 × 2 workers" in said
    train(turns, in_turn=True)
    assert nodes(config) == nodes(turns) and evidence(config) == evidence(turns)
    assert len(nodes(config)) == len(evidence(config)) == 8


@pytest.mark.heavy
def test_groups_share_the_nodes_and_a_repair_goes_on(make: Make, tmp_path: Path) -> None:
    config, turns = make("four", **ROUGHLY), make("turns", **ROUGHLY)
    said = together(config, tmp_path, 4)
    assert "8 nodes trained" in said and "2 × 2 workers" in said
    train(turns, in_turn=True)
    assert nodes(config) == nodes(turns) and evidence(config) == evidence(turns)
    assert len(nodes(config)) == len(evidence(config)) == 8
    forget(config, "p03")
    process = start("repair", str(config.run_dir), "--num_processes", "2")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "1 × 2 workers" in said
    run = RunDir(config.run_dir)
    assert all(retrain(run, run.store.keys(), tmp_path / "again").values())


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """Processes of a launch, by rank."""
    found = {}
    for launcher in children(process.pid, b"accelerate"):
        for one in children(launcher, b"s3t.train"):
            said = Path(f"/proc/{one}/environ").read_bytes().split(b"\0")
            found[next(int(word[5:]) for word in said if word.startswith(b"RANK="))] = one
    return [found[rank] for rank in sorted(found)]


@pytest.mark.heavy
def test_a_rank_that_dies_ends_the_group_and_the_same_command_goes_on(
    make: Make, trained: Trained, tmp_path: Path
) -> None:
    """First the one that leads, then the one that follows."""
    stage = {"epochs": 20, "learning_rate": 1e-3, "processes": 2}
    one_by_one = {"workers": 1, "group_bytes": 1}
    config = make("two", stage=stage, training=one_by_one)
    turns = make("turns", stage=stage, training=one_by_one)
    kept: dict[str, int] = {}
    for rank, many in ((0, 1), (1, 3)):
        process = start("train", saved(config, tmp_path), "--quiet", "--num_processes", "2")
        wait_until(config.run_dir.exists, process)
        wait_until(lambda many=many: len(nodes(config)) >= many, process)
        os.kill(ranks(process)[rank], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1, said
        voices = [line for line in said.splitlines() if line.startswith("s3t: ")]
        assert len(voices) == 1 and "run the same command again to go on" in voices[0], said
        now = stamps(config)
        assert many <= len(now) < 8, "it was killed at work"
        assert kept.items() <= now.items(), "a finished node was written again"
        kept = now
    assert train(config, in_turn=True).found == len(kept), "what was there was whole"
    trained(turns, in_turn=True)
    assert nodes(config) == nodes(turns) and evidence(config) == evidence(turns)


MEETING = """
import sys, torch
import torch.distributed as dist
from s3t.errors import IntegrityError
from s3t.training.node.process_group import DistributedGroup, depart
from s3t.training.rank import Rank
from s3t.types import digest
from tests.support.tiny import tiny_base, tiny_rows

torch.set_num_threads(1)
rank = Rank.found()
group = DistributedGroup(rank, 2, torch.device("cpu"))
rows = tiny_rows("llama", 4)
base = tiny_base("llama", language_model=True)
mask = base.attention(rows.mask)
layers = [t for name, t in base.weights.tensors.items() if ".layers." in name]
with torch.no_grad():
    whole = base.run(base.start(rows), 0, 3, mask)
    before = sum(t.nbytes for t in layers)
    base.fully_shard(group.mesh)
    found = base.run(base.start(rows), 0, 3, mask)
here = [t.to_local() for name, t in base.weights.tensors.items() if ".layers." in name]
assert torch.equal(found, whole)
assert len({t.untyped_storage().data_ptr() for t in here}) == len(here)
share = sum(t.untyped_storage().nbytes() for t in here) / before
assert 0.5 <= share < 0.52, share
base.check_frozen(whole=True)
assert group.gathered(rank.number) == [0, 1]
assert torch.equal(group.joined(torch.tensor([rank.number])), torch.tensor([0, 1]))
group.agree(digest("one"), "this")
try:
    group.agree(digest(rank.number), "node 7")
except IntegrityError as error:
    print(error)
if rank.number == 1:
    here[-1].data.add_(1)  # past torch's counters
base.check_frozen()
try:
    base.check_frozen(whole=True)
except IntegrityError as error:
    print(error)
group.close()
depart(0)
"""


@pytest.mark.heavy
def test_divided_layers_are_the_base_and_ranks_that_disagree_are_found() -> None:
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            | {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        assert "the 2 processes that trained node 7 together do not hold the same bytes" in out
        assert "the base's bytes differ from when it was loaded" in out, "on whichever rank"
