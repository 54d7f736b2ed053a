"""What a repair costs, against training all of it again.

    python -m benchmarks.exactness.repair [--output DIR] [--quick]

Random samples of the digits demo are deleted, one request each. Sample passes (samples × epochs of
the nodes that have to be trained) are counted for many streams, without training; seconds are
measured on one stream each, with two workers: of ``s3t repair``, and of a run from scratch without
the samples. Both hold the loading of torch and of the workers; the run from scratch also makes and
adapts its base.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.exactness import OUTPUT
from benchmarks.exactness.runs import delete, digits, stream
from benchmarks.reports import Report, interval, main
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.retrain import from_scratch
from s3t.training.work.train import train

DELETIONS = (1, 5, 20)
STREAMS = 200


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print; returns what the JSON holds."""
    report = Report("repair", output)
    folder = Path(tempfile.mkdtemp(prefix="s3t-repair-"))
    try:
        config = digits(folder / "run", "digits", quick, {"workers": 2})
        train(config)
        found = [_cost(folder, RunDir(config.run_dir), count) for count in DELETIONS]
    finally:
        shutil.rmtree(folder)
    rows = [
        [
            one["deletions"],
            f"{one['share']:.1%} ({one['share_low']:.1%}–{one['share_high']:.1%})",
            f"{one['nodes']} of {one['all_nodes']}",
            f"{one['passes']:,} of {one['all_passes']:,}",
            f"{one['seconds']:.1f} s",
            f"{one['all_seconds']:.1f} s",
            f"{one['all_seconds'] / one['seconds']:.2f}",
        ]
        for one in found
    ]
    header = ["deletions", "share of passes", "nodes", "sample passes", "repair", "all again"]
    print(table([*header, "ratio"], rows))
    print(f"share of passes: mean of {STREAMS} streams and its 95 % interval; the rest: one stream")
    return report.finish({"costs": found})


def _cost(folder: Path, whole: RunDir, count: int) -> dict[str, Any]:
    copy = RunDir(shutil.copytree(whole.root, folder / "copy"))
    config = whole.config().model_copy(update={"output": str(copy.root)})
    delete(copy, stream(copy, count, f"repair {count}"))
    started = time.perf_counter()
    repaired = train(config, replan=Replan())
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    compared = from_scratch(copy, folder / "scratch")
    all_seconds = time.perf_counter() - started
    if not compared.equal:
        raise AssertionError(f"a repaired run differs from one from scratch: {compared}")
    new, old = copy.plan(), whole.plan().forest
    fresh = [node for node in new.forest if node.key not in old]
    assert len(fresh) == repaired.trained
    plan = whole.plan()
    shares = [_share(plan, count, number) for number in range(STREAMS)]
    low, high = interval(shares)
    shutil.rmtree(copy.root)
    shutil.rmtree(folder / "scratch")
    return {
        "deletions": count,
        "share": statistics.fmean(shares),
        "share_low": low,
        "share_high": high,
        "nodes": len(fresh),
        "all_nodes": len(new.forest),
        "passes": sum(node.passes for node in fresh),
        "all_passes": sum(node.passes for node in new.forest),
        "seconds": seconds,
        "all_seconds": all_seconds,
    }


def _share(plan: Plan, count: int, number: int) -> float:
    """Share of sample passes that random deletions make necessary again."""
    slots = [
        (shard, part)
        for shard, row in enumerate(plan.sizes)
        for part, size in enumerate(row)
        for _ in range(size)
    ]
    hit = set(random.Random(f"{count} {number}").sample(slots, count))
    nodes = plan.forest.nodes
    lost = [n for n in nodes if any((n.shard, part) in hit for part in n.prefix)]
    return sum(node.passes for node in lost) / sum(node.passes for node in nodes)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
