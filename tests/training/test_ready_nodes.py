"""The board: what is ready, the longest chain first, and never what is dead or in hand."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.plan.trie import Forest, Node, prefixes
from s3t.training.work.ready_nodes import ReadyNodes
from s3t.types import NodeKey


def key(shard: int, prefix: Iterable[int]) -> NodeKey:
    return NodeKey(f"{shard}:{''.join(map(str, prefix))}")


def forest_of(sequences: Iterable[tuple[int, ...]], shards: int = 1) -> Forest:
    """Ten samples a slice, so a node of stage i has ten times i."""
    return Forest(
        Node(
            key=key(shard, prefix),
            parent=key(shard, prefix[:-1]) if len(prefix) > 1 else None,
            shard=shard,
            prefix=prefix,
            samples=10 * len(prefix),
            passes=10 * len(prefix),
            bytes=1,
        )
        for shard in range(shards)
        for prefix in prefixes(sequences)
    )


def board_of(sequences: Iterable[tuple[int, ...]], shards: int = 1, group: int = 16) -> ReadyNodes:
    board = ReadyNodes(forest_of(sequences, shards), lambda node: node.samples, group)
    board.mark((), ())
    return board


TREE = ((0, 1, 2), (0, 2), (1,))


def test_a_node_is_worth_its_longest_chain() -> None:
    board = board_of(TREE)
    assert board.chain == {"0:0": 60, "0:01": 50, "0:012": 30, "0:02": 20, "0:1": 10}
    assert [*board.left] == ["0:0", "0:01", "0:012", "0:02", "0:1"]


def test_only_what_has_its_parent_there_is_ready() -> None:
    board = board_of(TREE, group=1)
    assert board.unit(None, (), 1, 1) == ["0:0"]
    board.hold(["0:0"])
    assert board.unit(None, (), 1, 1) == ["0:1"]
    assert board.unit(None, {key(0, [1])}, 1, 1) == []
    board.free(["0:0"])
    assert board.mark({key(0, [0])}, ()) == ["0:0"]
    assert board.unit(None, (), 1, 1) == ["0:01"]


def test_what_a_deletion_has_hit_is_neither_left_nor_handed_out() -> None:
    board = board_of(TREE, shards=2)
    assert board.mark((), {(0, 0), (1, 1)}) == []
    assert {*board.left} == {"0:1", "1:0", "1:02"}
    assert board.unit(None, (), 1, 1) == ["1:0", "0:1"]


def test_a_worker_stays_in_its_stage_while_there_is_more_to_do_than_the_longest_chain() -> None:
    many = board_of([(0, 1), (1,), (2,), (3,), (4,), (5,)], shards=4, group=2)
    many.mark({key(0, [0])}, ())
    assert many.unit(1, (), 1, 1) == ["1:0", "2:0"]
    assert many.unit(2, (), 1, 1) == ["0:01"]
    few = board_of(TREE, group=1)
    few.mark({key(0, [0])}, ())
    assert few.unit(1, (), 1, 2) == ["0:01"], "the chain decides when it ends"


@pytest.mark.parametrize(
    ("idle", "workers", "nodes"), [(1, 1, 12), (2, 2, 6), (3, 3, 4), (5, 5, 2), (1, 4, 3)]
)
def test_a_unit_leaves_the_others_enough(idle: int, workers: int, nodes: int) -> None:
    twelve = board_of([(part,) for part in range(6)], shards=2)
    assert len(twelve.unit(None, (), idle, workers)) == nodes


@given(
    sequences=st.lists(st.permutations(range(4)).map(tuple), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    hits=st.sets(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=3),
    group=st.integers(1, 5),
    workers=st.integers(1, 3),
    data=st.data(),
)
def test_every_living_node_is_handed_out_once_after_its_parent(
    sequences: list[tuple[int, ...]],
    cuts: list[int],
    hits: set[tuple[int, int]],
    group: int,
    workers: int,
    data: st.DataObject,
) -> None:
    cut = [sequence[:length] for sequence, length in zip(sequences, cuts, strict=False)]
    board = board_of(cut, shards=2, group=group)
    there: set[NodeKey] = set()
    hands: dict[int, list[NodeKey]] = {}
    given_out: list[NodeKey] = []
    board.mark(there, hits)
    while board.left:
        for worker in range(workers):
            idle = workers - len(hands)
            if worker not in hands and (unit := board.unit(1, (), idle, workers)):
                assert len(unit) <= group and len({board.forest[one].stage for one in unit}) == 1
                assert all(board.forest[one].parent in {None, *there} for one in unit)
                board.hold(unit)
                given_out += unit
                hands[worker] = unit
        assert hands, "there is always something to do"
        unit = hands.pop(data.draw(st.sampled_from(sorted(hands))))
        board.free(unit)
        there.update(unit)
        board.mark(there, hits)
    alive = {n.key for n in board.forest if not any((n.shard, part) in hits for part in n.prefix)}
    assert sorted(given_out) == sorted(alive)
