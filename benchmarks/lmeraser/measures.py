"""What a deletion costs a run, and what it leaves: reckoned from the plan, and done.

    plan ─► nodes that hold a sample, over all samples ─► weights and sample passes, on average
    copy of the run ─► delete one after another ─► accuracy ─► repair, timed ─► accuracy

Invariant: a run that is measured is never changed; what is done to it is done to copies.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s3t import S3T
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import Report, train
from s3t.types import SampleId

__all__ = ["Burden", "Course", "burden", "course", "everyone", "mean", "passes_of", "streams"]


@dataclass(frozen=True)
class Burden:
    """What one random deletion makes necessary again, on average over all samples.

    Attributes:
        numbers: trained weights of the nodes that it switches off.
        passes: sample passes of training them again.
        slices: share of the slices that served before it and do not after it.
    """

    numbers: float
    passes: float
    slices: float


@dataclass(frozen=True)
class Course:
    """A copy of a run along a stream of deletions, and its repair at the end.

    Attributes:
        values: accuracy after each of the steps, nothing retrained.
        deactivation: seconds of the slowest of the deletions.
        repaired: accuracy after the repair; None without one.
        report: of the repair.
        passes: sample passes of it.
    """

    values: tuple[float, ...]
    deactivation: float
    repaired: float | None = None
    report: Report | None = None
    passes: int = 0


def everyone(run: RunDir) -> list[SampleId]:
    """All samples of a run, sorted."""
    with run.ledger() as ledger:
        return sorted(entry.sample_id for entry in ledger.samples())


def passes_of(plan: Plan) -> int:
    """Sample passes of training all of a plan."""
    return sum(node.passes for node in plan.forest)


def burden(plan: Plan) -> Burden:
    """The mean over all samples, each as likely as the others to be deleted."""
    total = sum(map(sum, plan.sizes))
    numbers = passes = slices = 0.0
    longest = [
        max((n.stage for n in plan.forest.of_shard(s)), default=0) for s in range(plan.shards)
    ]
    for shard, row in enumerate(plan.sizes):
        nodes = list(plan.forest.of_shard(shard))
        for part, size in enumerate(row):
            hit = [node for node in nodes if part in node.prefix]
            left = max((node.stage for node in nodes if part not in node.prefix), default=0)
            chance = size / total
            numbers += chance * sum(node.bytes // 4 for node in hit)
            passes += chance * sum(node.passes - plan.epochs[node.stage - 1] for node in hit)
            slices += chance * (longest[shard] - left) / sum(longest)
    return Burden(numbers, passes, slices)


def course(
    run: RunDir, order: Sequence[SampleId], steps: Sequence[int], folder: Path, repaired: bool
) -> Course:
    """Delete samples of a copy of the run, and perhaps repair it at the end.

    Args:
        run: a whole run.
        order: its samples in the order in which they are deleted.
        steps: numbers of deletions to look after, ascending.
        folder: for the copy; taken away again.
        repaired: whether to repair the copy.
    """
    copy = RunDir(shutil.copytree(run.root, folder))
    try:
        before = copy.store.keys()
        values, slowest, done = [], 0.0, 0
        with S3T.load(copy.root) as service:
            for step in steps:
                if fresh := order[done:step]:
                    started = time.perf_counter()
                    service.deactivate(fresh)
                    slowest = max(slowest, time.perf_counter() - started)
                done = max(done, step)
                values.append(service.evaluate().value)
        if not repaired:
            return Course(tuple(values), slowest)
        report = train(copy.here(), replan=Replan())
        fresh_nodes = [node for node in copy.plan().forest if node.key not in before]
        with S3T.load(copy.root) as service:
            value = service.evaluate().value
        passes = sum(node.passes for node in fresh_nodes)
        return Course(tuple(values), slowest, value, report, passes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def streams(samples: Sequence[SampleId], count: int, length: int) -> list[list[SampleId]]:
    """Random deletions, the same for every method."""
    return [
        random.Random(f"lmeraser {number}").sample([*samples], length) for number in range(count)
    ]


def mean(courses: Sequence[Course]) -> list[float]:
    """Accuracy by step, averaged over streams."""
    return [statistics.fmean(each) for each in zip(*(c.values for c in courses), strict=True)]
