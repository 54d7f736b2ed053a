"""The planner: its front, its rule, and that a config brings what it recommends."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.config import PartitionConfig, SequencesConfig, StageConfig
from s3t.errors import InputError
from s3t.plan import cyclic
from s3t.plan.budget import advice
from s3t.plan.budget.advice import ENOUGH, NEGLIGIBLE, Budget, advise, config_of, stairs
from s3t.plan.budget.candidates import Candidate, candidates
from s3t.plan.budget.curve import DEFAULT, Curve, Linear, Measured, Power
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import Stages
from s3t.plan.strategies import settree
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.survival.lengths import expected_utility, length_law, length_table
from s3t.plan.survival.occupancy import occupancy_along
from s3t.plan.survival.untouched import set_sizes
from s3t.plan.trie import prefixes

BLOCKS = Stages("layers")
curves: st.SearchStrategy[Curve] = st.sampled_from(
    [DEFAULT, Linear(), Power(0.95, 0.5, 0.5, 0.4), Measured.of([(0, 0.5), (90, 0.8)], "here")]
)
questions = st.builds(
    Question,
    samples=st.integers(8, 3000),
    layers=st.integers(1, 6),
    deletions=st.integers(0, 60),
    curve=curves,
    stages=st.just(BLOCKS),
    layer_bytes=st.just(1000),
)


def objectives(one: Candidate) -> tuple[float, ...]:
    return one.passes, one.adapters, -one.utility, max(one.exhausted, NEGLIGIBLE)


def test_public_names() -> None:
    assert advice.__all__ == [
        "Budget",
        "Cell",
        "advise",
        "affordable",
        "config_of",
        "stairs",
        "too_dear",
    ]


@given(questions)
@settings(max_examples=8)
def test_the_front_holds_what_is_not_beaten_and_nothing_else(question: Question) -> None:
    found = advise(question)
    front = np.array([objectives(one) for one in found.front])
    everything = np.array([objectives(one) for one in candidates(question)])
    assert found.candidates == len(everything)
    for point in everything:
        assert (front <= point).all(axis=1).any(), "as good as a plan of the front, or worse"
    for number, point in enumerate(front):
        others = np.delete(front, number, axis=0)
        assert not (others <= point).all(axis=1).any(), "beaten, or there twice"
    assert [one.passes for one in found.front] == sorted(one.passes for one in found.front)


@given(questions)
@settings(max_examples=8)
def test_the_rule(question: Question) -> None:
    found = advise(question)
    everything = list(candidates(question))
    lasting = [one for one in everything if one.exhausted <= question.risk]
    assert found.lasts == bool(lasting)
    assert found.recommended in found.front and found.best in found.front
    if not lasting:
        assert found.recommended.exhausted == min(one.exhausted for one in everything)
        return
    assert found.within(found.recommended)
    assert found.best.utility == max(one.utility for one in lasting)
    nothing = float(question.curve.utility(0, 1))
    enough = nothing + ENOUGH * (found.best.utility - nothing) - 1e-9
    assert found.recommended.utility >= enough
    assert found.recommended.passes == min(one.passes for one in lasting if one.utility >= enough)


@given(questions, st.lists(st.floats(1, 10**6), min_size=2, max_size=3))
@settings(max_examples=8)
def test_more_training_is_never_worth_less(question: Question, caps: list[float]) -> None:
    worth = -math.inf
    for cap in sorted(caps):
        capped = Question(**(vars(question) | {"max_passes": cap}))
        try:
            found = advise(capped)
        except InputError as error:
            assert "no plan fits" in str(error) and worth == -math.inf
            continue
        assert found.recommended.passes <= cap
        if found.lasts:
            assert found.recommended.utility >= worth
            worth = found.recommended.utility
    if worth > -math.inf:
        assert advise(question).recommended.utility >= worth


def asked(found: Budget) -> Brief:
    """The brief of the config that is recommended, as ``training.draft`` makes it."""
    lines = yaml.safe_load(config_of(found.recommended, found.question))
    shape = PartitionConfig.model_validate(lines["partition"])
    sequences = SequencesConfig.model_validate(lines["sequences"])
    stage = StageConfig.model_validate(lines["stage"])
    assert (stage.isolation, stage.epochs) == ("nested", found.question.epochs)
    assert shape.shards == found.recommended.shards
    assert (sequences.strategy, sequences.unit) == ("tree", "slice-passes")
    return Brief(
        shape.slices,
        sequences.budget or 0,
        tuple(float(stage) for stage in range(1, shape.slices + 1)),
        utility=sequences.utility or (),
        horizon=sequences.horizon,
    )


@pytest.mark.parametrize(
    "question",
    [
        Question(800, 4, 20),
        Question(800, 4, 20, max_passes=20_000),
        Question(3000, 6, 40, curve=Linear()),
        Question(500, 3, 10, curve=Measured.of([(0, -3), (30, -2), (400, -1.5)], "losses")),
        Question(4_000, 5, 60, epochs=3, curve=Power(0.9, 1e-5, 0.2, 0.9 - 1e-5)),
        Question(300, 4, 300),
    ],
    ids=lambda question: f"{question.samples}-{question.curve}-{question.max_passes:g}",
)
def test_the_config_brings_a_tree_as_cheap_and_as_good(
    question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = advise(question)
    one = found.recommended
    brief = asked(found)
    monkeypatch.setattr(settree, "_SHAKES", 8)  # restarts of the search
    grown = sequences_for("tree", brief)
    assert spent(grown, brief.node_costs) <= brief.budget == one.slice_passes(question.epochs)
    table = length_table(prefixes(grown), one.slices)
    occupied = occupancy_along(one.slices, one.shards * one.slices, question.deletions)[0]
    sizes = set_sizes(one.slices)
    law = (occupied / np.bincount(sizes))[sizes]
    worth = question.worth(one.shards, one.slices)
    value = expected_utility(length_law(table, law), worth.tolist())
    assert value - worth[0] >= 0.995 * (one.utility - worth[0])


def test_rotations_have_a_config_too() -> None:
    found = advise(Question(100, 4, 0))
    assert (found.recommended.kind, found.recommended.shards) == ("one sequence", 1)
    lines = yaml.safe_load(config_of(found.recommended, found.question))
    assert lines["sequences"] == {"strategy": "cyclic", "budget": 1}
    rotated = yaml.safe_load(config_of(found.cyclic, found.question))
    slices = rotated["partition"]["slices"]
    assert cyclic(slices, rotated["sequences"]["budget"]) == found.cyclic.sequences


def test_it_is_the_same_every_time() -> None:
    question = Question(2000, 6, 25, layer_bytes=10)
    assert advise(question) == advise(question)


def test_the_cyclic_plan_is_that_of_the_same_cell() -> None:
    found = advise(Question(2000, 6, 25))
    one, other = found.recommended, found.cyclic
    assert (one.shards, one.slices, "cyclic") == (other.shards, other.slices, other.kind)
    assert one.passes < other.passes
    for number in (one.utility, other.utility, found.best.utility):
        assert f"{number:.4f}" in found.reason
    assert f"{one.passes:,.0f}" in found.reason


def test_how_long_the_risk_is_kept_to() -> None:
    found = advise(Question(2000, 6, 25))
    one = found.recommended
    slots, first = one.shards * one.slices, one.shards * len({s[0] for s in one.sequences})
    hit = np.zeros(first + 1)  # by number of first slices hit
    hit[0], exhausted = 1, [0.0]
    for _ in range(found.safe + 1):
        more = hit * (first - np.arange(first + 1)) / slots
        hit = hit - more + np.concatenate([[0], more[:-1]])
        exhausted.append(hit[-1])
    assert exhausted[found.safe] <= 0.01 < exhausted[found.safe + 1]
    assert f"it keeps to the risk for {found.safe} deletions." in found.reason


def test_one_layer() -> None:
    found = advise(Question(1000, 1, 30, stages=BLOCKS))
    assert {one.slices for one in found.front} == {1}
    assert found.cyclic.sequences == found.recommended.sequences == ((0,),)
    assert "It is the cyclic plan itself." in found.reason


def test_without_deletions_one_model_is_best() -> None:
    found = advise(Question(1000, 6, 0))
    assert (found.best.shards, found.best.exhausted) == (1, 0)
    assert found.best.utility == pytest.approx(float(DEFAULT.utility(1000, 1000)))


def test_the_smallest_question() -> None:
    found = advise(Question(8, 12, 1))
    assert not found.lasts
    assert (found.recommended.exhausted, found.safe, len(found.front)) == (1, 0, 1)
    assert found.recommended.utility == pytest.approx(float(DEFAULT.utility(8, 8)) / 2)


def test_where_nothing_lasts_it_says_so_and_what_would_help() -> None:
    found = advise(Question(300, 4, 200))
    assert not found.lasts and found.recommended.exhausted > 0.9
    assert all(cell.utility is None for cell in found.cells)
    assert found.reason.startswith("No plan lasts: the least risky one is exhausted within 200")
    assert f"It keeps to that for {found.safe} deletions." in found.reason
    assert "give more samples" in found.reason
    lasting = advise(Question(300, 4, found.safe))
    assert lasting.lasts
    capped = advise(Question(800, 4, 20, max_passes=2001))
    assert capped.lasts
    capped = advise(Question(800, 4, 120, max_passes=2001, stages=BLOCKS))
    assert not capped.lasts and "raise the limits: from " in capped.reason


def test_a_greater_risk_opens_more_plans() -> None:
    careful, bold = (advise(Question(800, 4, 60, risk=risk)) for risk in (1e-6, 0.5))
    assert sum(cell.utility is not None for cell in careful.cells) < sum(
        cell.utility is not None for cell in bold.cells
    )
    assert bold.best.utility >= careful.best.utility


def test_limits_of_storage() -> None:
    free = advise(Question(2000, 6, 25, layer_bytes=10))
    assert free.recommended.bytes is not None
    capped = advise(Question(2000, 6, 25, layer_bytes=10, max_bytes=free.recommended.bytes / 2))
    assert capped.recommended.bytes is not None
    assert capped.recommended.bytes <= free.recommended.bytes / 2
    assert f"{free.recommended.bytes / 2:,.0f} bytes, " in capped.reason


@pytest.mark.parametrize("limits", [{"max_passes": 5.0}, {"max_bytes": 1.0, "layer_bytes": 10}])
def test_what_is_too_cheap_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"no plan fits: the cheapest takes 9 sample passes"):
        advise(Question(100, 8, 5, epochs=1, **limits))  # type: ignore[arg-type]


@pytest.mark.parametrize("deletions", [0, 25, 2000])
def test_the_stairs_rise(deletions: int) -> None:
    found = advise(Question(2000, 6, deletions))
    whole, shown = stairs(found, limit=10**6), stairs(found)
    assert len(shown) <= 15 and set(shown) <= set(whole)
    assert found.recommended in shown and found.best in shown
    score = [one.utility if found.lasts else -one.exhausted for one in whole]
    assert score == sorted(score) and shown[0] == whole[0]
    assert [one.passes for one in whole] == sorted(one.passes for one in whole)


def test_json() -> None:
    found = advise(Question(800, 4, 20, layer_bytes=100, max_passes=30_000))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["question"] == {
        "samples": 800,
        "layers": 4,
        "deletions": 20,
        "curve": "power:1,1,0.3",
        "stages": "nested",
        "epochs": 10,
        "least": 8,
        "overhead": 0.0,
        "layer_bytes": 100,
        "risk": 0.01,
        "max_passes": 30_000,
        "max_bytes": None,
    }
    assert len(document["front"]) == len(found.front)
    assert any(one["within"] for one in document["front"])
    sequences = document["recommended"]["sequences"]
    assert tuple(map(tuple, sequences)) == found.recommended.sequences
    assert document["recommended"]["leaves"] == len(sequences)
    assert document["config"] == config_of(found.recommended, found.question)
    assert {(cell["shards"], cell["slices"]) for cell in document["cells"]} == {
        (m, slices) for slices, shards in found.question.cells.items() for m in shards
    }
