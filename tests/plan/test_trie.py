"""The forest: structure, order, and every way in which it may not be whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import IntegrityError
from s3t.plan import Forest, Node, prefixes
from s3t.types import NodeKey


def key(shard: int, prefix: tuple[int, ...]) -> NodeKey:
    return NodeKey(f"{shard}:{'-'.join(map(str, prefix))}")


def node(shard: int, *prefix: int) -> Node:
    parent = key(shard, prefix[:-1]) if len(prefix) > 1 else None
    return Node(key(shard, prefix), parent, shard, prefix, 10 * len(prefix), 50, 7)


def grow(shards: int, *sequences: tuple[int, ...]) -> list[Node]:
    return [node(shard, *prefix) for shard in range(shards) for prefix in prefixes(sequences)]


NODES = grow(2, (0, 1, 2), (0, 2, 1), (1, 2))


def test_prefixes_are_distinct_and_parents_first() -> None:
    assert prefixes([(2, 0), (0, 1), (0, 2)]) == [(0,), (0, 1), (0, 2), (2,), (2, 0)]
    assert prefixes([]) == []


def test_node_names_its_stage_and_slice() -> None:
    assert (node(0, 2, 1).stage, node(0, 2, 1).last) == (2, 1)


def test_order_does_not_depend_on_input() -> None:
    forest = Forest(reversed(NODES))
    assert list(forest.nodes) == NODES == list(forest)
    assert forest == Forest(NODES)
    assert hash(forest) == hash(Forest(NODES))
    assert forest != Forest(NODES[:1])
    assert len(forest) == 14


def test_structure() -> None:
    forest = Forest(NODES)
    assert forest.of_shard(1) == tuple(NODES[7:])
    assert forest.of_shard(9) == ()
    assert forest.roots(0) == (node(0, 0), node(0, 1))
    assert forest.children(key(0, (0,))) == (node(0, 0, 1), node(0, 0, 2))
    assert forest.lineage(key(1, (0, 2, 1))) == (node(1, 0), node(1, 0, 2), node(1, 0, 2, 1))
    assert forest.subtree(key(0, (0, 1))) == (node(0, 0, 1), node(0, 0, 1, 2))
    assert forest[key(0, (1, 2))] == node(0, 1, 2)
    assert key(0, (1, 2)) in forest
    assert "unknown" not in forest
    with pytest.raises(KeyError):
        forest[NodeKey("unknown")]


def test_an_empty_forest_is_whole() -> None:
    forest = Forest([])
    assert (len(forest), forest.stages(), forest.roots(0)) == (0, [], ())


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda: [*NODES, NODES[0]], "key twice"),
        (lambda: [*NODES, replace(NODES[0], key=NodeKey("other"))], "same shard and prefix"),
        (lambda: [n for n in NODES if n.prefix != (0, 1)], "is not in the plan"),
        (lambda: [*NODES, replace(node(1, 1, 0), parent=key(0, (1,)))], "its parent is shard 0"),
        (lambda: [*NODES, replace(node(0, 1, 0), parent=key(0, (0,)))], "its parent is shard 0"),
        (lambda: [*NODES, replace(node(0, 1, 0), parent=None)], "exactly the nodes of stage 1"),
        (lambda: [*NODES, replace(node(0, 3), parent=key(0, (1,)))], "exactly the nodes"),
        (lambda: [replace(node(0, 3), prefix=())], "empty or repeats"),
        (lambda: [node(0, 1), node(0, 1, 1)], "empty or repeats"),
    ],
)
def test_a_forest_that_is_not_whole_is_refused(broken, match) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(IntegrityError, match=match):
        Forest(broken())


sequences = st.integers(1, 5).flatmap(
    lambda slices: st.lists(
        st.permutations(range(slices)).flatmap(
            lambda p: st.integers(1, len(p)).map(lambda end: tuple(p[:end]))
        ),
        max_size=5,
    )
)


@given(sequences)
@settings(max_examples=60)
def test_laws(listed: list[tuple[int, ...]]) -> None:
    forest = Forest(grow(2, *listed))
    by_stage = forest.stages()
    assert sorted(n.key for stage in by_stage for n in stage) == sorted(n.key for n in forest)
    for number, stage in enumerate(by_stage, start=1):
        assert {n.stage for n in stage} == {number}
    for one in forest:
        lineage = forest.lineage(one.key)
        assert [n.prefix for n in lineage] == [one.prefix[:i] for i in range(1, one.stage + 1)]
        below = [n for n in forest.of_shard(one.shard) if n.prefix[: one.stage] == one.prefix]
        assert list(forest.subtree(one.key)) == below
