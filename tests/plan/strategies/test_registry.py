"""Every strategy, by one interface: what all of them promise, and what they refuse."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import ConfigError
from s3t.plan import cyclic, prefixes
from s3t.plan.sequences import Sequences
from s3t.plan.strategies import settree
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.registry import STRATEGIES, sequences_for
from s3t.plan.survival.lengths import expected_utility, length_law, length_table

DEGENERATE = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.5, 0.5, 0.1)]


@pytest.fixture(autouse=True, scope="module")
def few_restarts() -> Iterator[None]:
    """The search for a tree starts again 4 times, not 64: what is promised does not need more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settree, "_SHAKES", 4)
        yield


def value(brief: Brief, sequences: Sequences) -> float:
    """Expected utility along the horizon."""
    table = length_table(prefixes(sequences), brief.slices)
    return expected_utility(length_law(table, brief.law), brief.worth)


def sound(brief: Brief, sequences: Sequences) -> bool:
    return (
        len(set(sequences)) == len(sequences)
        and all(sequence and len(set(sequence)) == len(sequence) for sequence in sequences)
        and {c for sequence in sequences for c in sequence} <= set(range(brief.slices))
    )


@pytest.mark.parametrize("name", STRATEGIES)
@given(slices=st.integers(1, 6), data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_strategy_gives_sound_sequences_within_its_budget(
    name: str, slices: int, data: st.DataObject
) -> None:
    most = slices if name == "matching" else min(math.factorial(slices), 2 * slices)
    budget = data.draw(st.integers(1, most))
    rates = data.draw(st.lists(st.floats(0, 1), min_size=slices, max_size=slices))
    brief = Brief(slices, budget, rates=tuple(rates))
    found = sequences_for(name, brief)
    assert sound(brief, found)
    assert found == sequences_for(name, replace(brief))
    if name == "tree":
        assert 1 <= len(found) <= budget
    else:
        assert len(found) == budget
        assert all(len(sequence) == slices for sequence in found)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rates", DEGENERATE)
@pytest.mark.parametrize("budget", [1, 3])
def test_degenerate_priors_work(name: str, rates: tuple[float, ...], budget: int) -> None:
    assert sound(Brief(3, budget), sequences_for(name, Brief(3, budget, rates=rates)))


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_slice_has_one_sequence(name: str) -> None:
    assert sequences_for(name, Brief(1, 1)) == ((0,),)
    with pytest.raises(ConfigError, match="over the 1 permutations of 1 slices"):
        sequences_for(name, Brief(1, 2))


@pytest.mark.parametrize("name", sorted({*STRATEGIES} - {"matching", "tree"}))
def test_the_full_budget_is_every_permutation(name: str) -> None:
    assert len(set(sequences_for(name, Brief(4, 24)))) == 24


@pytest.mark.parametrize("name", STRATEGIES)
@given(slices=st.integers(1, 5), budget=st.floats(1, 80))
@settings(max_examples=10, deadline=None)
def test_a_cost_is_never_exceeded(name: str, slices: int, budget: float) -> None:
    costs = tuple(float(stage) for stage in range(1, slices + 1))
    brief = Brief(slices, budget, costs=costs)
    if name != "tree" and budget < sum(costs):
        with pytest.raises(ConfigError, match="does not pay for one whole sequence"):
            sequences_for(name, brief)
        return
    found = sequences_for(name, brief)
    assert found and sound(brief, found)
    assert spent(found, costs) <= budget + 1e-9


@pytest.mark.parametrize("slices", [3, 4, 6, 8])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_tree_is_the_best_of_them(
    slices: int, skewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settree, "_SHAKES", 12)
    rates = tuple(1 / (c + 1) for c in range(slices)) if skewed else ()
    for budget in {max(1, slices // 2), slices}:
        brief = Brief(slices, budget, rates=rates)
        values = {name: value(brief, sequences_for(name, brief)) for name in STRATEGIES}
        assert values["tree"] >= max(values.values()) - 1e-9, values
        costs = {name: spent(sequences_for(name, brief), brief.node_costs) for name in STRATEGIES}
        assert costs["tree"] <= min(costs["cyclic"], costs["greedy"])


def found_here() -> str:
    """A digest of what all strategies give."""
    found = [
        sequences_for(name, Brief(5, 4, rates=rates))
        for name in STRATEGIES
        for rates in ((), (1.0, 0.5, 0.5, 0.2, 0.1))
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def test_every_process_finds_the_same(
    run_python: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strings hash differently in the other process, so sets have another order there."""
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    code = f"""
from s3t.plan.strategies import settree
from tests.plan.strategies.test_registry import found_here
settree._SHAKES = {settree._SHAKES}
print(hash("one"), found_here())
"""
    other, found = run_python(code).split()
    assert found == found_here() and int(other) != hash("one")


def test_explicit_is_checked_against_its_budget() -> None:
    assert sequences_for("explicit", Brief(3, 1), [[1, 2]]) == ((1, 2),)
    with pytest.raises(ConfigError, match="not the number of explicit ones"):
        sequences_for("explicit", Brief(3, 2), [[1, 2]])
    assert sequences_for("explicit", Brief(3, 3, costs=(1.0, 2.0, 3.0)), [[1, 2]]) == ((1, 2),)
    with pytest.raises(ConfigError, match=r"2 does not pay for them \(3\)"):
        sequences_for("explicit", Brief(3, 2, costs=(1.0, 2.0, 3.0)), [[1, 2]])


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(ConfigError, match="'spiral' is unknown: use one of conditional, cyclic"):
        sequences_for("spiral", Brief(3, 1))


def test_cyclic_by_name_is_the_paper_s_rotation() -> None:
    assert sequences_for("cyclic", Brief(4, 4)) == cyclic(4, 4)
