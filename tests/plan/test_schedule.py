"""The schedule against an oracle that knows no cursor, no index and no increment."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s3t.errors import IntegrityError
from s3t.plan import Forest, Node, cyclic, prefixes
from s3t.plan.schedule import Outcome, Schedule, ShardChange
from s3t.types import NodeKey, Slot

SLICES = 4


def key(shard: int, prefix: tuple[int, ...]) -> NodeKey:
    return NodeKey(f"{shard}:{''.join(map(str, prefix))}")


def grow(per_shard: Iterable[Iterable[tuple[int, ...]]]) -> Forest:
    return Forest(
        Node(
            key(shard, prefix),
            key(shard, prefix[:-1]) if len(prefix) > 1 else None,
            shard,
            prefix,
            1,
            1,
            1,
        )
        for shard, sequences in enumerate(per_shard)
        for prefix in prefixes(sequences)
    )


class Oracle:
    """The definition, word for word."""

    def __init__(
        self, forest: Forest, shards: int, available: set[NodeKey], scores: dict[NodeKey, float]
    ) -> None:
        self.forest, self.shards = forest, shards
        self.available, self.scores = available, scores
        self.hits: set[Slot] = set()

    def alive(self, shard: int) -> set[NodeKey]:
        return {
            node.key
            for node in self.forest.of_shard(shard)
            if all(one.key in self.available for one in self.forest.lineage(node.key))
            and not any((shard, c) in self.hits for c in node.prefix)
        }

    def best(self, shard: int) -> Node | None:
        nodes = sorted((self.forest[one] for one in self.alive(shard)), key=lambda n: n.key)
        return max(nodes, key=lambda n: (n.stage, self.scores.get(n.key, -math.inf)), default=None)

    def state(self) -> list[tuple[set[NodeKey], Node | None]]:
        return [(self.alive(shard), self.best(shard)) for shard in range(self.shards)]


slots = st.tuples(st.integers(0, 2), st.integers(0, SLICES - 1))
chains = st.permutations(range(SLICES)).flatmap(
    lambda p: st.integers(1, SLICES).map(lambda end: tuple(p[:end]))
)


class ScheduleMachine(RuleBasedStateMachine):
    @initialize(
        per_shard=st.lists(st.lists(chains, max_size=5), min_size=3, max_size=3),
        data=st.data(),
        before=st.sets(slots, max_size=2),
    )
    def start(
        self,
        per_shard: list[list[tuple[int, ...]]],
        data: st.DataObject,
        before: set[Slot],
    ) -> None:
        forest = grow(per_shard)
        keys = [node.key for node in forest]
        missing = data.draw(st.sets(st.sampled_from(keys), max_size=3) if keys else st.just(set()))
        values = st.sampled_from([0.1, 0.5, 0.5, 0.9])
        scores = {one: data.draw(values) for one in keys if data.draw(st.booleans())}
        available = set(keys) - missing
        self.oracle = Oracle(forest, 3, available, scores)
        self.oracle.hits |= before
        self.schedule = Schedule(forest, 3, available, scores, before)
        self.stale: list[Outcome] = []

    def check(self, outcome: Outcome, new: set[Slot], touched: set[int]) -> None:
        """``outcome`` of the schedule; the oracle is already there, the schedule not yet."""
        before, after = self.before, self.oracle.state()
        assert outcome.slots == tuple(sorted(new))
        died = [
            one for (old, _), (left, _) in zip(before, after, strict=True) for one in old - left
        ]
        assert outcome.died == tuple(sorted(died))
        assert outcome.changes == tuple(
            ShardChange(shard, before[shard][1], after[shard][1]) for shard in sorted(touched)
        )

    @rule(batch=st.lists(slots, max_size=4))
    def delete(self, batch: list[Slot]) -> None:
        self.before = self.oracle.state()
        new = set(batch) - self.oracle.hits
        self.oracle.hits |= new
        outcome = self.schedule.outcome(batch)
        assert self.schedule.outcome(batch) == outcome, "computing must not change the schedule"
        self.check(outcome, new, {shard for shard, _ in new})
        self.schedule.apply(outcome)
        assert self.schedule.outcome(batch) == Outcome((), (), ())

    @rule(batch=st.lists(slots, max_size=4))
    def only_ask(self, batch: list[Slot]) -> None:
        self.stale.append(self.schedule.outcome(batch))

    @rule(data=st.data())
    @precondition(lambda self: self.stale)
    def apply_late(self, data: st.DataObject) -> None:
        outcome = self.stale.pop(data.draw(st.integers(0, len(self.stale) - 1)))
        self.oracle.hits |= set(outcome.slots)
        self.schedule.apply(outcome)
        self.schedule.apply(outcome)

    @rule(data=st.data())
    @precondition(lambda self: len(self.oracle.forest))
    def lose(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from([n.key for n in self.oracle.forest]), max_size=2))
        self.before = self.oracle.state()
        outcome = self.schedule.without(keys)
        self.oracle.available -= set(keys)
        self.check(outcome, set(), {self.oracle.forest[one].shard for one in keys})
        self.schedule.apply(outcome)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "schedule"):
            return
        state, schedule, forest = self.oracle.state(), self.schedule, self.oracle.forest
        assert schedule.prefixes == tuple(best for _, best in state)
        assert schedule.hits == self.oracle.hits
        for shard, (alive, _) in enumerate(state):
            assert schedule.alive(shard) == alive
            nodes = forest.of_shard(shard)
            assert all(schedule.is_alive(n.key) == (n.key in alive) for n in nodes)
            dead = {n.key for n in nodes if any((shard, c) in self.oracle.hits for c in n.prefix)}
            assert schedule.dead(shard) == dead
            assert not dead & alive
        first = {
            (n.shard, n.prefix[0]) for alive, _ in state for n in map(forest.__getitem__, alive)
        }
        assert schedule.first_slices_left == len(first)
        assert schedule.exhausted == all(best is None for _, best in state)
        fresh = Schedule(forest, 3, self.oracle.available, self.oracle.scores, self.oracle.hits)
        assert fresh.prefixes == schedule.prefixes


TestSchedule = ScheduleMachine.TestCase
TestSchedule.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def full(shards: int = 2) -> tuple[Forest, frozenset[NodeKey]]:
    forest = grow([cyclic(3, 3)] * shards)
    return forest, frozenset(node.key for node in forest)


def prefix(node: Node | None) -> tuple[int, ...] | None:
    return node.prefix if node else None


def test_longest_then_best_then_smallest_key() -> None:
    forest, keys = full()
    schedule = Schedule(forest, 2, keys, {key(0, (1, 2, 0)): 0.9, key(0, (0, 1, 2)): 0.5})
    assert [prefix(node) for node in schedule.prefixes] == [(1, 2, 0), (0, 1, 2)]
    schedule.apply(schedule.outcome([(0, 0)]))
    assert [prefix(node) for node in schedule.prefixes] == [(1, 2), (0, 1, 2)]


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_score_that_is_no_number_loses(score: float) -> None:
    forest, keys = full(1)
    scores = dict.fromkeys(keys, 0.0) | {key(0, (0, 1, 2)): score}
    assert prefix(Schedule(forest, 1, keys, scores).prefixes[0]) == (1, 2, 0)


def test_a_hit_beside_the_served_prefix_is_told_too() -> None:
    forest = grow([[(0, 1), (2,)]])
    schedule = Schedule(forest, 1, [node.key for node in forest], {})
    serving = schedule.prefixes[0]
    outcome = schedule.outcome([(0, 2)])
    assert outcome == Outcome(((0, 2),), (key(0, (2,)),), (ShardChange(0, serving, serving),))


def test_a_slot_without_nodes_touches_its_shard_and_kills_nothing() -> None:
    forest, keys = full()
    outcome = Schedule(forest, 2, keys, {}).outcome([(1, 99)])
    assert (outcome.slots, outcome.died, len(outcome.changes)) == (((1, 99),), (), 1)


def test_an_unavailable_node_does_not_die_but_is_dead() -> None:
    forest, keys = full(1)
    schedule = Schedule(forest, 1, keys - {key(0, (0,))}, {})
    outcome = schedule.outcome([(0, 0)])
    assert not {key(0, (0,)), key(0, (0, 1))} & set(outcome.died)
    schedule.apply(outcome)
    assert {key(0, (0,)), key(0, (0, 1))} <= schedule.dead(0)


def test_exhausted() -> None:
    forest, keys = full()
    schedule = Schedule(forest, 2, keys, {})
    for left, slot in zip(
        range(5, -1, -1), [(s, c) for c in range(3) for s in range(2)], strict=True
    ):
        assert not schedule.exhausted
        schedule.apply(schedule.outcome([slot]))
        assert schedule.first_slices_left == left
    assert schedule.exhausted
    assert schedule.prefixes == (None, None)


def test_a_shard_without_nodes_serves_nothing() -> None:
    schedule = Schedule(Forest([]), 2, [], {})
    assert (schedule.prefixes, schedule.exhausted) == ((None, None), True)


@pytest.mark.parametrize("shard", [-1, 2])
def test_a_shard_that_does_not_exist_is_refused(shard: int) -> None:
    forest, keys = full()
    schedule = Schedule(forest, 2, keys, {})
    with pytest.raises(IntegrityError, match="do not belong together"):
        schedule.outcome([(0, 0), (shard, 0)])
    with pytest.raises(IntegrityError):
        Schedule(forest, 2, keys, {}, [(shard, 0)])
    assert schedule.hits == frozenset()
    with pytest.raises(IntegrityError):
        Schedule(forest, 1, keys, {})


def test_a_key_outside_the_plan_is_refused() -> None:
    forest, keys = full()
    schedule = Schedule(forest, 2, keys, {})
    assert not schedule.is_alive(NodeKey("unknown"))
    with pytest.raises(IntegrityError, match="not in the plan"):
        schedule.without([NodeKey("unknown")])
