"""The plan: keys, costs, its summary, and a file that is believed only when it proves itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from s3t.errors import DataError, InputError, IntegrityError
from s3t.plan import PLAN_FORMAT, Plan, cyclic, make_plan, node_key
from s3t.types import Digest, digest

SIZES = [[5, 6, 7], [8, 9, 10]]
DIGESTS = [[digest([shard, c]) for c in range(3)] for shard in range(2)]
BASE = digest("base")


def plan(**changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "sizes": SIZES,
        "digests": DIGESTS,
        "sequences": cyclic(3, 2),
        "base": BASE,
        "recipe": {"epochs": 4, "rate": 3e-3, "targets": ("query", "value"), "ß": None},
        "epochs": 4,
        "cumulative": True,
        "stage_bytes": [100, 110, 120],
    }
    return make_plan(**{**arguments, **changes})


def test_keys_follow_from_lineage() -> None:
    made = plan()
    recipe = digest({"epochs": 4, "rate": 3e-3, "targets": ["query", "value"], "ß": None})
    first = node_key(BASE, recipe, None, [DIGESTS[1][1]], digest({}))
    second = node_key(BASE, recipe, first, [DIGESTS[1][1], DIGESTS[1][2]], digest({}))
    found = made.forest[second]
    assert (found.shard, found.prefix, found.parent) == (1, (1, 2), first)
    assert (found.samples, found.passes, found.bytes) == (19, 76, 110)


def test_keys_change_with_everything_that_shapes_bytes_only() -> None:
    keys = {node.key for node in plan().forest}
    assert keys.isdisjoint(node.key for node in plan(base=digest("other")).forest)
    assert keys.isdisjoint(node.key for node in plan(recipe={}).forest)
    assert keys == {node.key for node in plan(stage_bytes=[1, 2, 3]).forest}
    changed = [row[:] for row in DIGESTS]
    changed[0][2] = digest("one sample less")
    kept = [n for n in plan().forest if n.key in plan(digests=changed).forest]
    assert kept == [n for n in plan().forest if n.shard == 1 or 2 not in n.prefix]


def test_the_last_slice_alone() -> None:
    made = plan(cumulative=False)
    assert [node.samples for node in made.forest.of_shard(0)] == [5, 6, 7, 6, 7, 5]


def test_summary() -> None:
    summary = plan().summary()
    assert summary == json.loads(json.dumps(summary))
    per_stage = [
        {"stage": 1, "nodes": 4, "sample_passes": 4 * (5 + 6 + 8 + 9), "bytes": 400},
        {"stage": 2, "nodes": 4, "sample_passes": 4 * (11 + 13 + 17 + 19), "bytes": 440},
        {"stage": 3, "nodes": 4, "sample_passes": 4 * (18 * 2 + 27 * 2), "bytes": 480},
    ]
    assert summary == {
        "shards": 2,
        "slices": 3,
        "budget": 2,
        "sequences": [[[0, 1, 2], [1, 2, 0]]] * 2,
        "nodes": 12,
        "sample_passes": sum(stage["sample_passes"] for stage in per_stage),
        "bytes": 1320,
        "expected_deletions": pytest.approx(6 * (1 + 1 / 2 + 1 / 3 + 1 / 4)),
        "slice_sizes": SIZES,
        "stages": per_stage,
    }


def test_first_slices_that_are_shared_count_once() -> None:
    made = plan(sequences=[(0, 1), (0, 2)])
    assert made.expected_deletions == pytest.approx(6 * 1.5)


@pytest.mark.parametrize("cumulative", [True, False])
def test_json_brings_everything_back(cumulative: bool) -> None:
    made = plan(cumulative=cumulative, sequences=[(2, 0), (1,)])
    text = made.to_json()
    read = Plan.from_json(text)
    assert read == made
    assert read.to_json() == text
    assert read.summary() == made.summary()


def edited(change: Any, sign: bool) -> str:
    body = json.loads(plan().to_json())
    change(body)
    if sign:
        body.pop("digest", None)
        body["digest"] = digest(body)
    return json.dumps(body)


def swap_keys(body: dict[str, Any]) -> None:
    body["nodes"][2]["key"] = "0" * 64


def fewer_nodes(body: dict[str, Any]) -> None:
    body["nodes"].pop()


def other_slice(body: dict[str, Any]) -> None:
    body["digests"][0][0] = "0" * 64


def cheaper(body: dict[str, Any]) -> None:
    body["nodes"][0]["passes"] -= 1


def headless(body: dict[str, Any]) -> None:
    body.pop("recipe")


def ragged(body: dict[str, Any]) -> None:
    body["sizes"][0].pop()


CHANGES = [swap_keys, fewer_nodes, other_slice, cheaper, headless, ragged]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sign", [True, False])
def test_a_changed_plan_is_not_believed(change: Any, sign: bool) -> None:
    with pytest.raises(IntegrityError, match=r"plan\.json"):
        Plan.from_json(edited(change, sign))


def test_what_no_node_shows_is_proved_by_the_digest() -> None:
    with pytest.raises(IntegrityError, match="digest differs"):
        Plan.from_json(edited(lambda body: body.update(remark="added later"), sign=False))


@pytest.mark.parametrize("sign", [True, False])
def test_a_newer_plan_asks_for_an_upgrade(sign: bool) -> None:
    with pytest.raises(IntegrityError, match="upgrade s3t"):
        Plan.from_json(edited(lambda body: body.update(format=PLAN_FORMAT + 1), sign))


def test_an_older_plan_is_refused_in_a_sentence() -> None:
    with pytest.raises(IntegrityError, match="the plan has format 1, this s3t reads 2: go on with"):
        Plan.from_json(edited(lambda body: body.update(format=1), sign=True))


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"format": "1", "digest": ""}', "null"])
def test_what_is_no_plan_is_not_believed(text: str) -> None:
    with pytest.raises(IntegrityError, match="no plan"):
        Plan.from_json(text)


def test_an_empty_slice_is_named() -> None:
    with pytest.raises(DataError) as caught:
        plan(sizes=[[0, 6, 7], [8, 9, 0]])
    assert [p.split(" is")[0] for p in caught.value.problems] == [
        "slice 0 of shard 0",
        "slice 2 of shard 1",
    ]
    plan(sizes=[[0, 6, 7], [8, 9, 10]], sequences=[(1, 2)])  # not trained on, not a problem


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": []},
        {"sizes": [[1, 2], [1, 2, 3]]},
        {"digests": [[Digest("a")] * 3]},
        {"sequences": []},
        {"sequences": [(3,)]},
        {"sequences": [(-1,)]},
        {"stage_bytes": [1, 2]},
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        plan(**changes)
