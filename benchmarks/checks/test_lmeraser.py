"""What the benchmark reckons for one deletion is the mean over all samples, one by one."""

from __future__ import annotations

import statistics

import pytest

from benchmarks.lmeraser.measures import burden, passes_of
from s3t.plan import Plan, make_plan
from s3t.types import Digest, digest

SIZES = ((3, 5, 2), (4, 1, 6))
EPOCHS = 2


def plan_of(sequences: tuple[tuple[int, ...], ...]) -> Plan:
    return make_plan(
        sizes=SIZES,
        digests=[[digest([shard, part]) for part in range(3)] for shard in range(2)],
        sequences=sequences,
        base=Digest("base"),
        recipe={},
        epochs=EPOCHS,
        cumulative=True,
        stage_bytes=(40, 80, 120),
    )


def longest(plan: Plan, shard: int, without: int | None = None) -> int:
    nodes = plan.forest.of_shard(shard)
    return max((node.stage for node in nodes if without not in node.prefix), default=0)


@pytest.mark.parametrize("sequences", [((0, 1, 2),), ((0, 1, 2), (1, 2, 0), (2, 0, 1)), ((1,),)])
def test_a_burden_is_the_mean_over_all_samples(sequences: tuple[tuple[int, ...], ...]) -> None:
    plan = plan_of(sequences)
    served = longest(plan, 0) + longest(plan, 1)
    numbers, passes, slices = [], [], []
    for shard, row in enumerate(SIZES):
        for part, size in enumerate(row):
            hit = [node for node in plan.forest if node.is_hit({(shard, part)})]
            lost = longest(plan, shard) - longest(plan, shard, part)
            numbers += [sum(node.bytes / 4 for node in hit)] * size
            passes += [sum((node.samples - 1) * EPOCHS for node in hit)] * size
            slices += [lost / served] * size
    found = burden(plan)
    assert found.numbers == pytest.approx(statistics.fmean(numbers))
    assert found.passes == pytest.approx(statistics.fmean(passes))
    assert found.slices == pytest.approx(statistics.fmean(slices))
    assert found.passes < passes_of(plan)
