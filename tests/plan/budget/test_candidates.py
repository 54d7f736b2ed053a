"""Candidates: every number against looking at all streams of requests, and the grid itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from s3t.errors import ConfigError
from s3t.plan.budget.candidates import Candidate, candidates
from s3t.plan.budget.curve import DEFAULT, Curve, Linear, Measured, Power
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import Stages
from s3t.plan.sequences import cyclic
from s3t.plan.trie import prefixes

CURVES = (DEFAULT, Linear(), Power(0.9, 0.5, 0.5, 0.3), Measured.of([(3, 0.4), (30, 0.8)], "here"))


BLOCKS = Stages("layers")


def expected(one: Candidate, question: Question) -> tuple[list[float], list[float]]:
    """Mean utility of a shard, and P(exhausted), after 0, 1, … R requests, by enumeration."""
    slots = one.shards * one.slices
    nodes = prefixes(one.sequences)
    worth = question.worth(one.shards, one.slices).tolist()
    utility, exhausted = [], []
    for r in range(question.deletions + 1):
        total, gone = 0.0, 0
        for hits in product(range(slots), repeat=r):
            longest = [
                max(
                    (len(n) for n in nodes if not {m * one.slices + c for c in n} & {*hits}),
                    default=0,
                )
                for m in range(one.shards)
            ]
            total += sum(worth[k] for k in longest) / one.shards
            gone += not any(longest)
        utility.append(total / slots**r)
        exhausted.append(gone / slots**r)
    return utility, exhausted


@pytest.mark.parametrize("curve", CURVES, ids=str)
@pytest.mark.parametrize(("samples", "layers", "deletions"), [(24, 3, 4), (12, 2, 0), (31, 4, 1)])
def test_against_all_streams(samples: int, layers: int, deletions: int, curve: Curve) -> None:
    question = Question(samples, layers, deletions, curve=curve, least=5, layer_bytes=7)
    found = candidates(question)
    assert {one.kind for one in found} == (
        {"one sequence", "cyclic", "tree"} if samples > 10 else {"one sequence"}
    )
    for one in found:
        utility, exhausted = expected(one, question)
        assert one.utility == pytest.approx(np.mean(utility), abs=1e-12)
        assert one.utility_at_end == pytest.approx(utility[-1], abs=1e-12)
        assert one.exhausted == pytest.approx(exhausted[-1], abs=1e-12)


def test_costs_and_storage() -> None:
    question = Question(1200, 8, 10, epochs=3, overhead=11.0, layer_bytes=100)
    found = candidates(question)
    assert len(found) > 500
    for one in found:
        nodes = prefixes(one.sequences)
        per_slice = 1200 / (one.shards * one.slices)
        passes = one.shards * sum(len(node) * per_slice * 3 + 11 for node in nodes)
        assert one.passes == pytest.approx(passes)
        assert one.nodes == one.shards * len(nodes)
        assert one.slice_passes(question.epochs) == sum(map(len, nodes))
        # 8 layers in 3 blocks: 3, 3, 2; a nested stage holds its block and those above
        sizes = [8 // one.slices + (k < 8 % one.slices) for k in range(one.slices)]
        layers = one.shards * sum(sum(sizes[: len(node)]) for node in nodes)
        assert one.adapters == pytest.approx(layers / 8)
        assert one.bytes == 100 * layers


def test_worth_is_the_curve_whose_gain_the_stages_shorten() -> None:
    question = Question(800, 4, 20, curve=Power(0.9, 0.5, 0.5, 0.3))
    plain = replace(question, stages=Stages("snapshot"))
    curve = Power(0.9, 0.5, 0.5, 0.3).utility([0, 50, 100, 150, 200], 200)
    assert plain.worth(4, 4) == pytest.approx(curve)
    factor = np.array([1, *question.stages.factor(4, 4)])
    assert question.worth(4, 4) == pytest.approx(0.3 + factor * (curve - 0.3))


def test_the_plans_of_the_paper_are_among_them() -> None:
    question = Question(1000, 8, 20)
    found = candidates(question)
    listed = [(m, slices) for slices, shards in question.cells.items() for m in shards]
    one = found.kinds("one sequence")
    assert sorted(zip(found.shards[one], found.slices[one], strict=True)) == sorted(listed)
    whole = found.kinds("cyclic")
    assert sorted(zip(found.shards[whole], found.slices[whole], strict=True)) == sorted(
        (m, slices) for m, slices in listed if slices > 1
    )
    assert all(
        found[row].sequences == cyclic(int(found.slices[row]), int(found.slices[row]))
        for row in np.flatnonzero(whole)
    )


def test_some_tree_serves_as_well_as_cyclic_for_less() -> None:
    found = candidates(Question(20_000, 8, 100))
    for row in np.flatnonzero(found.kinds("cyclic") & (found.slices > 2)):
        same = (found.shards == found.shards[row]) & (found.slices == found.slices[row])
        trees = same & found.kinds("tree") & (found.passes < found.passes[row])
        assert found.utility[trees].max() > 0.985 * found.utility[row]


def test_they_are_the_same_every_time() -> None:
    one, two = (candidates(Question(3000, 6, 30)) for _ in range(2))
    assert one.plans == two.plans
    assert one.utility.tobytes() == two.utility.tobytes()
    assert one.passes.tobytes() == two.passes.tobytes()


def test_no_curve_no_trees() -> None:
    found = candidates(Question(100, 4, 3, curve=Power(0.5, 0.0, 1.0, 0.5)))
    assert {one.kind for one in found} == {"one sequence", "cyclic"}
    assert found.utility == pytest.approx(0.5)


# ── the grid ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("question", "cells"),
    [
        (Question(8, 12, 5), {1: (1,)}),
        (Question(100, 1, 5, stages=BLOCKS), {1: (1, 2, 4, 8)}),
        (Question(100, 3, 5, least=20, stages=BLOCKS), {1: (1, 2, 4), 2: (1, 2), 3: (1,)}),
        (Question(100, 3, 5, least=20), {1: (1, 2, 4), 2: (1, 2), 3: (1,), 4: (1,)}),
        (Question(40, 5, 5), {1: (1, 2, 4), 2: (1, 2), 3: (1,), 4: (1,), 5: (1,)}),
    ],
)
def test_small_grids(question: Question, cells: dict[int, tuple[int, ...]]) -> None:
    assert question.cells == cells


@pytest.mark.parametrize("deletions", [0, 10, 1000, 10**6])
@pytest.mark.parametrize("layers", [1, 4, 5, 11, 12, 96])
def test_a_grid_has_64_cells_at_most(layers: int, deletions: int) -> None:
    cells = Question(10**9, layers, deletions, stages=BLOCKS).cells
    assert max(cells) == min(layers, 12)
    assert sum(map(len, cells.values())) == 8 * len(cells) <= 64
    most = max(shards[-1] for shards in cells.values())
    assert most >= min(128, 2 * deletions) and most <= max(128, 2 * deletions)


def test_every_problem_of_a_question_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Question(
            0, 0, -1, epochs=0, least=0, overhead=-1.0, layer_bytes=0, risk=1.0, max_passes=0.0
        )
    names = (
        "samples,layers,epochs,deletions,min-slice,stage-overhead,bytes-per-layer,risk,max-passes"
    )
    assert ",".join(problem.split()[0] for problem in caught.value.problems) == names


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"samples": 5}, "samples 5 do not fill one slice of 8"),
        ({"risk": float("nan")}, "risk nan"),
        ({"overhead": float("inf")}, "stage-overhead inf"),
        ({"max_bytes": 5.0}, "max-bytes needs bytes-per-layer"),
        ({"max_bytes": -5.0, "layer_bytes": 1}, "max-bytes -5"),
    ],
)
def test_questions_that_cannot_be_planned(values: dict[str, float], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Question(**{"samples": 100, "layers": 4, "deletions": 5, **values})  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert part in problem
