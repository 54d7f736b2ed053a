"""The cheapest plan for a target, against a search that looks at every plan by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.config import PartitionConfig, SequencesConfig, StageConfig
from s3t.errors import ConfigError, InputError
from s3t.plan import explicit
from s3t.plan.budget import target as target_module
from s3t.plan.budget.candidates import Candidate, candidates
from s3t.plan.budget.curve import DEFAULT, Curve, Linear, Measured, Power
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import KINDS, Stages, one_lora_curve
from s3t.plan.budget.target import Insurance, Offer, Target, insure
from s3t.plan.trie import prefixes

SNAPSHOT = Stages("snapshot")
FEW = (Stages("nested"), Stages("residual", falling=True))
SAME_EPOCHS = [kind for kind in KINDS if not kind.falling]


def test_public_names() -> None:
    assert target_module.__all__ == ["Insurance", "Offer", "Target", "insure", "worths"]


def worth(one: Candidate, question: Question) -> tuple[float, float]:
    """Worth of a plan at the start and after R deletions, by looking at all streams of requests:
    the mean over all shards that serve in some stream, and no training's if none serves."""
    shard, slots = question.samples / one.shards, one.shards * one.slices
    curve = question.curve
    samples = [k * shard / one.slices for k in range(one.slices + 1)]
    of = [float(curve.utility(count, shard)) for count in samples]
    factor = one.stages.factor(question.layers, one.slices).tolist()
    for k in range(1, one.slices + 1):
        of[k] = max(of[k - 1], of[0] + factor[k - 1] * (of[k] - of[0]))
    nodes, found = prefixes(one.sequences), []
    for r in (0, question.deletions):
        served, none = [], 0
        for hits in product(range(slots), repeat=r):
            longest = [
                max(
                    (len(n) for n in nodes if not {m * one.slices + c for c in n} & {*hits}),
                    default=0,
                )
                for m in range(one.shards)
            ]
            served += [of[k] for k in longest if k]
            none += not any(longest)
        gone = none / slots**r
        found.append((np.mean(served) if served else of[0]) * (1 - gone) + of[0] * gone)
    least = min(of[0], 0.0)
    whole = float(curve.utility(question.samples, question.samples)) - least
    return (float(found[0]) - least) / whole, (float(found[1]) - least) / whole


@pytest.mark.parametrize(
    "curve",
    [one_lora_curve(24), DEFAULT, Linear(), Measured.of([(0, -4), (5, -3), (24, -2)], "losses")],
    ids=str,
)
@pytest.mark.parametrize("target", [Target(0.9), Target(0.7), Target(0.6, 0.5), Target(1.0, 1.0)])
def test_against_looking_at_every_plan(curve: Curve, target: Target) -> None:
    question = Question(24, 3, 3, curve=curve, least=5, risk=0.3)
    reaching = []
    for kind in KINDS:
        for one in candidates(replace(question, stages=kind), whole=True):
            start, end = worth(one, question)
            short = max(target.start - start, target.after - end)
            if one.exhausted <= question.risk and short <= 1e-9:
                reaching.append(one.cost)
    found = insure(question, target)
    assert found.recommended.reached == bool(reaching)
    if reaching:
        assert found.recommended.plan.cost == pytest.approx(min(reaching))
    for offer in found.offers:
        assert (offer.start, offer.end) == pytest.approx(worth(offer.plan, question), abs=1e-9)


@given(
    st.builds(
        lambda samples, *rest: Question(samples, *rest, curve=one_lora_curve(samples)),
        st.integers(40, 120),
        st.integers(1, 3),
        st.integers(0, 12),
    ),
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(0, 1)), min_size=2, max_size=4),
)
@settings(max_examples=6, deadline=None)
def test_a_higher_target_never_costs_less(
    question: Question, given_: list[tuple[float, float]]
) -> None:
    cost = 0.0
    after = min(after for _, after in given_)
    for start in sorted(start for start, _ in given_):
        one = insure(question, Target(start, after), FEW).recommended
        reached = one.reached and cost < float("inf")
        assert reached or not one.reached, "what a lower target cannot reach, a higher one cannot"
        assert not reached or one.plan.cost >= cost - 1e-9
        cost = one.plan.cost if reached else float("inf")


def best(found: Insurance, isolation: str) -> Offer:
    return next(one for one in found.offers if one.plan.stages.isolation == isolation)


def test_snapshots_where_short_prefixes_have_to_be_worth_as_much() -> None:
    question = Question(800, 4, 24, curve=one_lora_curve(800))
    start = insure(question, Target(0.97), SAME_EPOCHS)
    assert start.recommended.plan.stages == Stages("nested")
    assert start.recommended.plan.cost < 0.7 * best(start, "snapshot").plan.cost
    assert "SISA's snapshots reach it too" in start.reason
    after = insure(question, Target(0.97, 0.85), SAME_EPOCHS)
    assert after.recommended.plan.stages == SNAPSHOT
    assert "SISA's snapshots are the better choice here: next comes nested, wide" in after.reason
    assert best(after, "nested").plan.cost > after.recommended.plan.cost


def test_fewer_epochs_in_later_stages_where_that_is_enough() -> None:
    question = Question(800, 4, 24, curve=one_lora_curve(800), epochs=12)
    both = [Stages("nested"), Stages("nested", falling=True)]
    same = insure(question, Target(0.92), both[:1]).recommended.plan
    found = insure(question, Target(0.92), both).recommended.plan
    assert found.stages.falling and found.cost < 0.8 * same.cost
    assert found.passes == pytest.approx(
        800 * sum(12 / found.slices * passes for passes in _passes(found))
    )


def _passes(plan: Candidate) -> list[float]:
    """Slice passes of each node, at 12 epochs in the first stage."""
    each = [stage * -(-12 // stage) / 12 for stage in range(1, plan.slices + 1)]
    return [each[len(node) - 1] for node in prefixes(plan.sequences)]


def test_residual_where_nothing_else_is_worth_as_much() -> None:
    found = insure(Question(20_000, 12, 100, curve=one_lora_curve(20_000)), Target(0.98))
    assert found.recommended.plan.stages == Stages("residual")
    assert [one.reached for one in found.offers] == [True] + [False] * (len(found.offers) - 1)
    assert "SISA's snapshots are 0.008 short of it" in found.reason


def test_without_deletions_one_lora_is_the_plan() -> None:
    found = insure(Question(1000, 6, 0, curve=one_lora_curve(1000)), Target(1.0))
    one = found.recommended
    assert (one.plan.shards, one.plan.slices, one.plan.cost, one.start) == (1, 1, 1, 1)
    assert "With one slice a shard all isolations train the same" in found.reason
    assert len(found.offers) == 1, "they are one plan"


def test_where_nothing_reaches_it_the_nearest_is_told() -> None:
    question = Question(800, 4, 24, curve=one_lora_curve(800))
    found = insure(question, Target(0.97, 0.95))
    one = found.recommended
    assert not one.reached and one.short == min(offer.short for offer in found.offers) > 0
    assert "Nothing that was compared is worth 0.97 of one LoRA at the start and" in found.reason
    assert f"{one.short:g} short of it" in found.reason


def test_where_nothing_lasts_the_least_risky_is_told() -> None:
    question = Question(300, 4, 400, curve=one_lora_curve(300))
    found = insure(question, Target(0.5))
    one = found.recommended
    every = [
        plan.exhausted
        for kind in KINDS
        for plan in candidates(replace(question, stages=kind), whole=True)
    ]
    assert one.over == min(every) > 0.01 and not one.reached
    assert found.reason.startswith("No plan lasts 400 deletions within a risk of 0.01")


def test_the_config_names_the_very_plan() -> None:
    question = Question(800, 4, 24, curve=one_lora_curve(800), epochs=12)
    for target in (Target(0.97), Target(0.97, 0.85), Target(0.9, 0.8)):
        found = insure(question, target)
        one = found.recommended.plan
        lines = yaml.safe_load(found.config)
        shape = PartitionConfig.model_validate(lines["partition"])
        sequences = SequencesConfig.model_validate(lines["sequences"])
        stage = StageConfig.model_validate(lines["stage"])
        assert (shape.shards, shape.slices) == (one.shards, one.slices)
        assert explicit(sequences.explicit or (), one.slices) == one.sequences
        epochs = [stage.epochs_of(number + 1) for number in range(one.slices)]
        assert (stage.isolation, epochs) == (
            one.stages.isolation,
            one.stages.epochs(one.slices, 12),
        )
        assert (stage.slices == "current") == one.stages.current


def test_limits_hold_and_too_strict_ones_are_refused() -> None:
    question = Question(200, 3, 8, curve=one_lora_curve(200), layer_bytes=10)
    free = insure(question, Target(0.95), FEW).recommended.plan
    assert free.bytes is not None
    capped = replace(question, max_bytes=free.bytes / 2, max_passes=free.passes)
    for offer in insure(capped, Target(0.95), FEW).offers:
        assert (offer.plan.bytes or 0) <= free.bytes / 2 and offer.plan.passes <= free.passes
    with pytest.raises(InputError, match="no plan fits: the cheapest takes"):
        insure(replace(question, max_passes=1.0), Target(0.95), FEW)


@pytest.mark.parametrize("start", [0.0, -1.0, 1.01, float("nan")])
def test_targets_that_are_no_fractions(start: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Target(start, 1.5)
    one, other = caught.value.problems
    assert one.startswith(f"target {start:g}: give a fraction")
    assert other.startswith("target-after 1.5: give a fraction")


def test_a_curve_that_gives_one_lora_nothing() -> None:
    with pytest.raises(InputError, match="one LoRA on all samples is worth nothing by it"):
        insure(Question(100, 4, 5, curve=Power(0.0, 0.0, 1.0)), Target(0.9))


def test_json() -> None:
    question = Question(800, 4, 24, curve=one_lora_curve(800))
    found = insure(question, Target(0.97, 0.85))
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["target"] == {"start": 0.97, "after": 0.85}
    assert document["reached"] and document["config"] == found.config
    assert "stages" not in document["question"]
    assert document["recommended"]["stages"] == str(found.recommended.plan.stages)
    assert document["recommended"]["worth"]["end"] == found.recommended.end
    assert [one["stages"] for one in document["offers"]] == [
        str(one.plan.stages) for one in found.offers
    ]
