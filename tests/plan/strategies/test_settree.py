"""The lattice and the set tree: exact gains, each set once, the best within the budget."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan import cyclic, prefixes
from s3t.plan.strategies import scenarios, settree
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.greedy import greedy
from s3t.plan.strategies.lattice import EXACT, Coverage
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.strategies.settree import SetTree, set_tree, steps
from s3t.plan.survival.lengths import expected_utility, length_law, length_table
from s3t.plan.survival.untouched import along_time

ZIPF = (1.0, 1 / 2, 1 / 3, 1 / 4)


def value(brief: Brief, sequences: tuple[tuple[int, ...], ...]) -> float:
    table = length_table(prefixes(sequences), brief.slices)
    return expected_utility(length_law(table, brief.law), brief.worth) - brief.worth[0]


def longest(sequences: tuple[tuple[int, ...], ...], hit: np.ndarray) -> np.ndarray:
    """Slices of the longest surviving prefix, of each row of hit: [trials, L]."""
    kept = np.zeros(len(hit))
    for sequence in sequences:
        untouched = np.logical_and.accumulate(~hit[:, list(sequence)], axis=1)
        kept = np.maximum(kept, untouched.sum(axis=1))
    return kept


def masks(sequences: tuple[tuple[int, ...], ...]) -> list[int]:
    return [sum(1 << c for c in prefix) for prefix in prefixes(sequences)]


# ── coverage ─────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.permutations(range(4)).map(tuple), max_size=3), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_a_chain_gains_what_it_adds_to_the_value(
    listed: list[tuple[int, ...]], added: list[int]
) -> None:
    brief = Brief(4, 1, rates=ZIPF, utility=(0.1, 0.5, 0.6, 0.9, 1.0))
    coverage = Coverage(brief.law, brief.worth)
    coverage.train(masks(tuple(listed)))
    before, chain = coverage.value, masks((tuple(added),))
    gained = coverage.gains[chain].sum()
    coverage.train(chain)
    assert coverage.value - before == pytest.approx(gained, abs=1e-9)
    assert coverage.value == pytest.approx(value(brief, (*listed, tuple(added))), abs=1e-9)


def test_the_bound_is_all_permutations() -> None:
    brief = Brief(4, 24, rates=ZIPF)
    coverage = Coverage(brief.law, brief.worth)
    assert coverage.bound == pytest.approx(value(brief, tuple(permutations(range(4)))), abs=1e-9)


def test_reset_forgets() -> None:
    coverage = Coverage(along_time([1.0] * 4, 1.0), [0, 1, 2, 3, 4])
    fresh = coverage.gains.copy()
    coverage.train(masks(cyclic(4, 2)))
    coverage.reset([])
    np.testing.assert_array_equal(coverage.gains, fresh)
    assert coverage.value == 0


def test_a_falling_utility_is_refused() -> None:
    with pytest.raises(InputError, match="do not fall"):
        Coverage(along_time([1.0] * 2, 1.0), [0, 2, 1])


# ── the tree ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slices", [4, pytest.param(5, marks=pytest.mark.heavy)])
def test_the_tree_protects_like_cyclic_and_trains_each_set_once(slices: int) -> None:
    brief = Brief(slices, slices)
    tree = set_tree(brief)
    assert value(brief, tree) == pytest.approx(value(brief, cyclic(slices, slices)), abs=1e-9)
    trained = masks(tree)
    assert len(set(trained)) == len(trained)
    assert spent(tree, brief.node_costs) < spent(cyclic(slices, slices), brief.node_costs)


@given(
    slices=st.integers(1, 4),
    share=st.floats(0.05, 1.0),
    skew=st.floats(0, 2),
    horizon=st.floats(0.05, 6),
)
@settings(max_examples=20, deadline=None)
def test_a_tree_is_a_tree_of_sets_within_its_cost(
    slices: int, share: float, skew: float, horizon: float
) -> None:
    costs = tuple(float(stage) for stage in range(1, slices + 1))
    budget = max(1.0, share * slices * sum(costs))
    rates = tuple((c + 1) ** -skew for c in range(slices))
    brief = Brief(slices, budget, costs=costs, rates=rates, horizon=horizon)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settree, "_SHAKES", 4)  # restarts of the search
        tree = set_tree(brief)
        assert set_tree(brief) == tree
    trained = masks(tree)
    assert tree and len(set(trained)) == len(trained)
    assert spent(tree, costs) <= budget + 1e-9


@pytest.mark.parametrize(("unit", "budget"), [((1.0,) * 3, 4.0), ((1.0, 2.0, 3.0), 9.0)])
@pytest.mark.parametrize("rates", [(), (1.0, 0.5, 0.1), (0.0, 1.0, 1.0)])
def test_the_tree_is_the_best_of_all_trees_of_three_slices(
    unit: tuple[float, ...], budget: float, rates: tuple[float, ...]
) -> None:
    brief = Brief(3, budget, costs=unit, rates=rates)
    everything = prefixes(permutations(range(3)))
    best = 0.0
    for count in range(1, 8):
        for chosen in combinations(everything, count):
            whole = all(len(prefix) == 1 or prefix[:-1] in chosen for prefix in chosen)
            if whole and spent(chosen, unit) <= budget:
                best = max(best, value(brief, chosen))
    assert value(brief, set_tree(brief)) == pytest.approx(best, abs=1e-9)


def test_nothing_that_gains_nothing_is_trained() -> None:
    # Slice 1 is never deleted: the chain through it serves whatever else is hit.
    brief = Brief(2, 2, rates=(1.0, 0.0))
    assert set_tree(brief) == ((1, 0),)
    # Nothing is ever deleted: one chain is enough.
    assert len(set_tree(Brief(4, 4, rates=(0.0,) * 4))) == 1
    # No prefix shorter than two is worth anything: pairs alone end the branches.
    pairs = set_tree(Brief(3, 3, utility=(0.0, 0.0, 1.0, 1.0)))
    assert {len(leaf) for leaf in pairs} == {2}


def test_dropping_a_branch_leaves_the_others_whole() -> None:
    brief = Brief(4, 40.0, costs=(1.0, 2.0, 3.0, 4.0))
    tree = SetTree(brief.law, brief.worth, brief.node_costs)
    while tree.extend(40.0 - tree.cost):
        pass
    kept, cost, worth = tree.leaves, tree.cost, tree.value
    for leaf in kept:
        copy = tree.copy()
        tree.drop(leaf)
        left = tree.leaves
        assert leaf not in left
        assert set(prefixes(kept)) >= set(prefixes(left))
        assert set(prefixes(kept)) - set(prefixes(left)) <= set(prefixes([leaf]))
        assert tree.cost == pytest.approx(spent(left, brief.node_costs))
        assert tree.value == pytest.approx(value(brief, left), abs=1e-9)
        tree.restore(copy)
        assert (tree.leaves, tree.cost) == (kept, pytest.approx(cost))
        assert tree.value == worth


def test_steps_are_a_frontier() -> None:
    brief = Brief(5, 60.0, costs=(1.0, 2.0, 3.0, 4.0, 5.0))
    found = list(steps(brief))
    assert [step.cost for step in found] == sorted({step.cost for step in found})
    assert [step.value for step in found] == sorted({step.value for step in found})
    for step in found:
        assert step.cost == pytest.approx(spent(step.leaves, brief.node_costs))
        assert step.value == pytest.approx(value(brief, step.leaves), abs=1e-9)
    assert found[0].leaves == ((0,),)
    assert 55 < found[-1].cost <= 60


def priced(slices: int, horizon: float, rises: list[float], overhead: float) -> Brief:
    worth = [sum(rises[:k]) for k in range(slices + 1)]
    costs = tuple(stage + overhead for stage in range(1, slices + 1))
    return Brief(slices, 10.0**6, costs, utility=tuple(worth), horizon=horizon)


briefs = st.integers(1, 4).flatmap(
    lambda slices: st.builds(
        priced,
        st.just(slices),
        st.sampled_from([0.1, 1.0, 5.0]),
        st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=slices, max_size=slices),
        st.sampled_from([0.0, 2.0]),
    )
)


@given(briefs)
@settings(max_examples=40, deadline=None)
def test_each_tree_is_the_one_before_and_a_chain_more(asked: Brief) -> None:
    before: set[tuple[int, ...]] = set()
    for step in steps(asked):
        nodes = prefixes(step.leaves)
        assert before < set(nodes)
        assert len({frozenset(node) for node in nodes}) == len(nodes), "each set once"
        assert len({leaf[: len(other)] == other for leaf in step.leaves for other in nodes}) <= 2
        assert step.cost == pytest.approx(spent(step.leaves, asked.node_costs))
        assert step.value == pytest.approx(value(asked, step.leaves), abs=1e-9)
        before = set(nodes)


@given(briefs)
@settings(max_examples=40, deadline=None)
def test_without_a_limit_all_there_is_to_gain_is_gained(asked: Brief) -> None:
    bound = SetTree(asked.law, asked.worth, asked.node_costs).bound
    values = [0.0, *(step.value for step in steps(asked))]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(bound, abs=1e-9)


def test_a_limit_that_pays_for_nothing_more() -> None:
    assert [step.cost for step in steps(Brief(3, 2.0, (1.5, 3.0, 4.5)))] == [1.5]
    assert list(steps(Brief(2, 2.9, (1.0, 2.0), utility=(0, 0, 1)))) == []
    assert list(steps(Brief(3, 100, (1.0, 2.0, 3.0), utility=(1, 1, 1, 1)))) == []


# ── more slices than sets can be listed ──────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tree", "greedy"])
def test_drawn_gains_come_near_the_exact_ones(name: str) -> None:
    brief = Brief(10, 10, rates=tuple(1 / (c + 1) for c in range(10)))
    exact = value(brief, sequences_for(name, brief))
    drawn = value(brief, scenarios.grow(brief, whole=name == "greedy"))
    assert 0.9 * exact < drawn <= exact + 1e-9
    assert drawn > value(brief, cyclic(10, 10))


@pytest.mark.heavy
@pytest.mark.parametrize("slices", [EXACT + 1, 32])
def test_many_slices_work(slices: int) -> None:
    brief = Brief(slices, slices)
    tree = set_tree(brief)
    trained = [frozenset(prefix) for prefix in prefixes(tree)]
    assert len(tree) <= slices and len(set(trained)) == len(trained)
    assert len(set(greedy(brief))) == slices
    costs = tuple(float(stage) for stage in range(1, slices + 1))
    cap = Brief(slices, 4.0 * slices * slices, costs=costs)
    assert 0 < spent(set_tree(cap), costs) <= cap.budget
    assert set_tree(cap) == set_tree(cap)


@pytest.mark.heavy
@pytest.mark.parametrize("skewed", [False, True])
def test_many_slices_are_protected_best_by_the_tree(skewed: bool) -> None:
    rates = tuple(1 / (c + 1) for c in range(24)) if skewed else ()
    brief = Brief(24, 24, rates=rates)
    costs = tuple(float(stage) for stage in range(1, 25))

    draws = np.random.default_rng(8).random((20_000, 24))
    moments = [draws < -np.expm1(-np.array(brief.scaled_rates) * time) for time in (0.1, 0.4, 0.8)]

    def along(name: str) -> float:
        """Slices served at three moments of the horizon, by draws of the slices that are hit."""
        sequences = sequences_for(name, brief)
        return sum(longest(sequences, hit).mean() for hit in moments)

    values = {name: along(name) for name in ("tree", "random", "conditional", "even", "cyclic")}
    assert values["tree"] > 1.005 * max(values[name] for name in values if name != "tree"), values
    whole = spent(sequences_for("random", brief), costs)
    assert spent(sequences_for("tree", brief), costs) < 0.95 * whole
