"""Every method is trained on one base, and the same samples are deleted from each.

base ─► each method: train, timed ─┬─ one random deletion, on average: reckoned from the plan
                                   ├─ single deletions, repaired, timed
                                   └─ half of all samples in streams, then repaired
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from benchmarks.adoption import on_base_of
from benchmarks.engine.runs import prepared
from benchmarks.lmeraser.measures import burden, course, everyone, mean, passes_of, streams
from benchmarks.lmeraser.picture import draw, show
from benchmarks.reports import Report
from s3t import load_config
from s3t.run import RunDir
from s3t.training.work.train import train

__all__ = ["METHODS", "run"]

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"
FIXED = (
    "model.adapt.rotations=true",
    "aggregation.on_exhausted=base",
    "stage.epochs=8",
    "training.workers=1",  # seconds then are those of one core
)
QUICK = ("stage.epochs=1", "model.adapt.steps=60")

PROMPTS = ("stage.adapter=prompt", "prompt={tokens: 8, init_scale: 0.02}")
CLUSTERS = ("partition.clusters={}", "aggregation.method=route")
SLICES = ("partition.slices=3", "sequences={strategy: tree, budget: 3}")
ONE_SLICE = ("partition.slices=1", "sequences={strategy: cyclic, budget: 1}")
SNAPSHOTS = ("stage.isolation=snapshot", "sequences={strategy: cyclic, budget: 1}")

METHODS = {
    "LMEraser": (*PROMPTS, *CLUSTERS, *ONE_SLICE),
    "LMEraser + slices": (*PROMPTS, *CLUSTERS, *SLICES),
    "S3T, clusters": (*CLUSTERS, *SLICES),
    "S3T, hash shards": SLICES,
    "SISA": ("partition.slices=3", *SNAPSHOTS),
    "one LoRA": ("partition.shards=1", "partition.slices=1", *SNAPSHOTS),
}
"""Overrides of the config; all but the last have four shards."""

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""Deletions after which accuracy is looked at, and after half of all samples."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """The benchmark; its figures as JSON values.

    Args:
        output: where runs, JSON and picture go.
        quick: one epoch and one stream: shows that it works, not how well.
    """
    report, folder = Report("lmeraser", output), output / ("quick" if quick else "runs")
    words = (*FIXED, *(QUICK if quick else ()))
    counts = (1, 1) if quick else (2, 1)
    base: tuple[str, ...] = ()
    found: dict[str, dict[str, Any]] = {}
    numbers = 0
    for number, (name, own) in enumerate(METHODS.items()):
        place = folder / str(number)
        config = load_config(CONFIG, (*words, *own, *base, f"output={place}"))
        there, _ = prepared(config)
        trained = train(config)
        base, numbers = base or on_base_of(there), numbers or _numbers(there)
        found[name] = _figures(there, numbers, *counts) | {"train_seconds": trained.seconds}
        print(f"lmeraser: {name}: {trained.sentence()}", file=sys.stderr, flush=True)
    _compare(found)
    result = {
        "config": CONFIG.name,
        "overrides": list(words),
        "base_numbers": numbers,
        "base_accuracy": found["one LoRA"]["halved"]["without_repair"],
        "streams": counts[0],
        "methods": found,
    }
    show(result)
    return report.finish(result, lambda figure: draw(figure, result), size=(13, 4.4))


def _figures(run: RunDir, base: int, many: int, singles: int) -> dict[str, Any]:
    """What one method is, and what deletions do to it.

    Args:
        run: its run.
        base: numbers in the frozen base.
        many: streams of deletions.
        singles: deletions that are repaired one by one.
    """
    plan, samples = run.plan(), everyone(run)
    half = len(samples) // 2
    steps = (*(step for step in STEPS if step < half), half)
    scratch = run.root.with_name(f"{run.root.name}-copy")
    orders = streams(samples, many, half)
    courses = [course(run, order, steps, scratch, not at) for at, order in enumerate(orders)]
    alone = [course(run, order[:1], (0, 1), scratch, True) for order in orders[:singles]]
    trainable = sum(node.bytes for node in plan.forest) // 4
    mean_burden = burden(plan)
    halved = courses[0]
    assert halved.report is not None
    return {
        "nodes": len(plan.forest),
        "shard_samples": [sum(row) for row in plan.sizes],
        "trainable": trainable,
        "share_of_model": trainable / (trainable + base),
        "passes": passes_of(plan),
        "per_deletion": asdict(mean_burden)
        | {
            "share_of_trainable": mean_burden.numbers / trainable,
            "share_of_model": mean_burden.numbers / (trainable + base),
            "repair_seconds": statistics.fmean(_seconds(one) for one in alone),
            "deactivation_seconds": max(one.deactivation for one in (*courses, *alone)),
        },
        "steps": list(steps),
        "accuracy": mean(courses),
        "halved": {
            "before": halved.values[0],
            "without_repair": halved.values[-1],
            "repaired": halved.repaired,
            "repair_seconds": halved.report.seconds,
            "repair_passes": halved.passes,
        },
    }


def _seconds(one: Any) -> float:
    assert one.report is not None
    seconds: float = one.report.seconds
    return seconds


def _compare(found: dict[str, dict[str, Any]]) -> None:
    """Costs of a deletion as shares of training: the method's own, and one LoRA on all data."""
    whole = found["one LoRA"]
    for figures in found.values():
        each = figures["per_deletion"]
        each["passes_of_own"] = each["passes"] / figures["passes"]
        each["passes_of_one_lora"] = each["passes"] / whole["passes"]
        each["seconds_of_own"] = each["repair_seconds"] / figures["train_seconds"]
        each["seconds_of_one_lora"] = each["repair_seconds"] / whole["train_seconds"]


def _numbers(run: RunDir) -> int:
    """Numbers in the frozen base, which was adapted here and is kept in the run."""
    files = sorted(run.base_path.glob("*.safetensors"))
    return sum(tensor.size for path in files for tensor in load_file(path).values())
