"""Deletions of a run: receipts against the plan, all or nothing, once per request, in step."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from s3t.config import Config
from s3t.data import cut_names
from s3t.errors import (
    InputError,
    PublicSampleError,
    RequestConflictError,
    UnknownSampleError,
)
from s3t.ledger import Deletion, Receipt
from s3t.plan.trie import Node
from s3t.run import RunDir, deletion
from s3t.run.forecast import run_forecast
from s3t.run.opened import OpenRun
from s3t.run.status import status as status_of
from tests.conftest import write_lines

TIME = "seconds"


@pytest.fixture
def forgetting(digits_run: Path) -> Iterator[OpenRun]:
    with closing(OpenRun(RunDir.existing(digits_run))) as opened:
        yield opened


@pytest.fixture
def texts(text_run: Path) -> Iterator[OpenRun]:
    with closing(OpenRun(RunDir.existing(text_run))) as opened:
        yield opened


def one_of_each(forgetting: OpenRun) -> dict[tuple[int, int], str]:
    """A sample of every slot, the first by id."""
    found: dict[tuple[int, int], str] = {}
    for entry in forgetting.ledger.samples():
        found.setdefault((entry.shard, entry.slice), entry.sample_id)
    return found


def delete(forgetting: OpenRun, *ids: str, **more: Any) -> Receipt:
    return deletion.delete(forgetting, Deletion(ids, **more))


def tables(run: Path) -> dict[str, list[Any]]:
    """Every row of every table of the ledger, read past it."""
    with closing(sqlite3.connect(run / "ledger.db")) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in names
        }


def oracle(
    forgetting: OpenRun, hits: set[tuple[int, int]]
) -> tuple[list[tuple[int, ...]], set[str], int]:
    """From the plan alone: each shard's prefix, the dead nodes, and the first slices left."""

    def untouched(node: Node) -> bool:
        return not any((node.shard, part) in hits for part in node.prefix)

    nodes = forgetting.plan.forest.nodes
    dead = {node.key for node in nodes if not untouched(node)}
    prefixes = []
    for shard in range(forgetting.plan.shards):
        left = [node for node in nodes if node.shard == shard and untouched(node)]
        best = min(left, key=lambda n: (-n.stage, -forgetting.scores[n.key], n.key), default=None)
        prefixes.append(best.prefix if best else ())
    first = sum(node.stage == 1 and untouched(node) for node in nodes)
    return prefixes, dead, first


def harmonic(count: int) -> float:
    return sum(1 / number for number in range(1, count + 1))


# ── receipts ─────────────────────────────────────────────────────────────────────────────────


def test_receipts_until_exhausted(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    hits: set[tuple[int, int]] = set()
    before, dead, first = oracle(forgetting, hits)
    assert not dead and first == 16
    assert {len(prefix) for prefix in before} == {4}
    for number, slot in enumerate(sorted(slots, key=lambda slot: slots[slot]), start=1):
        receipt = delete(forgetting, slots[slot])
        hits.add(slot)
        after, now_dead, first = oracle(forgetting, hits)
        assert receipt.deleted == (slots[slot],)
        assert (receipt.view, receipt.dry_run, receipt.already_deleted) == (number, False, ())
        assert list(receipt.nodes_dead) == sorted(now_dead - dead)
        assert [change.shard for change in receipt.prefixes] == [0, 1, 2, 3]
        assert [change.before for change in receipt.prefixes] == before
        assert [change.after for change in receipt.prefixes] == after
        assert receipt.expected_deletions_left == pytest.approx(16 * harmonic(first))
        status = status_of(forgetting)
        assert [shard.prefix for shard in status.shards] == after
        assert status.expected_deletions_left == receipt.expected_deletions_left
        assert [shard.nodes_dead for shard in status.shards] == [
            sum(node.key in now_dead for node in forgetting.plan.forest.of_shard(shard))
            for shard in range(4)
        ]
        assert status.exhausted == (not any(after))
        before, dead = after, now_dead
    assert status.exhausted and receipt.expected_deletions_left == 0
    assert [shard.node for shard in status.shards] == [None] * 4


def test_a_slice_hit_before_loses_nothing_more(forgetting: OpenRun) -> None:
    in_slot = [e.sample_id for e in forgetting.ledger.samples(slot=(1, 2))]
    first, second = delete(forgetting, in_slot[0]), delete(forgetting, in_slot[1])
    assert len(first.nodes_dead) > 0
    assert second.nodes_dead == ()
    assert second.view == first.view + 1
    assert [c.before for c in second.prefixes] == [c.after for c in first.prefixes]
    assert [c.after for c in second.prefixes] == [c.after for c in first.prefixes]


def test_several_at_once_are_one_deletion(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    ids = [slots[slot] for slot in ((0, 0), (0, 3), (2, 1))]
    receipt = delete(forgetting, *reversed(ids), ids[0])
    after, dead, first = oracle(forgetting, {(0, 0), (0, 3), (2, 1)})
    assert (receipt.view, list(receipt.deleted)) == (1, sorted(ids))
    assert set(receipt.nodes_dead) == dead
    assert [change.after for change in receipt.prefixes] == after
    assert receipt.expected_deletions_left == pytest.approx(16 * harmonic(first))


def test_receipt_is_json(forgetting: OpenRun) -> None:
    receipt = delete(forgetting, next(iter(one_of_each(forgetting).values())))
    told = json.loads(json.dumps(receipt.to_dict()))
    assert told["deleted"] == [forgetting.ledger.deleted.keyed(one) for one in receipt.deleted]
    assert receipt.deleted[0] not in json.dumps(told), "what may be logged names nobody"


# ── persons, copies ──────────────────────────────────────────────────────────────────────────


def test_a_person_is_all_their_samples_and_one_slice(texts: OpenRun) -> None:
    receipt = delete(texts, subjects=["p03"])
    assert receipt.deleted == ("t06", "t07")
    gone = list(texts.ledger.samples(deleted=True))
    assert [entry.sample_id for entry in gone] == ["t06", "t07"]
    assert len({(entry.shard, entry.slice) for entry in gone}) == 1
    assert status_of(texts).deleted == 2


def test_ids_and_subjects_together(texts: OpenRun) -> None:
    delete(texts, "t06")
    receipt = delete(texts, "t39", subjects=["p03"])
    assert receipt.deleted == ("t07", "t39")
    assert receipt.already_deleted == ("t06",)


def test_copies_of_other_subjects_are_counted_and_stay(texts: OpenRun) -> None:
    assert delete(texts, "t01").copies_elsewhere == 0
    receipt = delete(texts, "t00")
    assert (receipt.deleted, receipt.copies_elsewhere) == (("t00",), 1)
    entries = {entry.sample_id: entry for entry in texts.ledger.samples()}
    assert not entries["t02"].deleted
    assert delete(texts, "t02").copies_elsewhere == 0


# ── all or nothing ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("ids", "subjects", "unknown"),
    [
        (["t00", "nobody"], [], (["nobody"], [])),
        (["t00", "t01"], ["p05", "ann"], ([], ["ann"])),
        (["a", "t00", "b"], ["c"], (["a", "b"], ["c"])),
        (["p00"], ["t00"], (["p00"], ["t00"])),
    ],
)
def test_unknown_names_change_nothing(
    texts: OpenRun, ids: list[str], subjects: list[str], unknown: tuple[list[str], list[str]]
) -> None:
    delete(texts, "t20")
    before, status = tables(texts.run.root), status_of(texts)
    with pytest.raises(UnknownSampleError) as caught:
        delete(texts, *ids, subjects=subjects, request_id="r")
    assert (list(caught.value.sample_ids), list(caught.value.subjects)) == unknown
    assert all(repr(name) in str(caught.value) for names in unknown for name in names)
    assert tables(texts.run.root) == before
    assert status_of(texts) == status


def test_names_cut_aside_as_public_are_not_merely_unknown(texts: OpenRun, tmp_path: Path) -> None:
    rows = [{"key": f"c{n}", "who": f"person {n}", "text": f"line {n}"} for n in range(60)]
    write_lines(tmp_path / "cut.jsonl", rows)
    source = {"files": str(tmp_path / "cut.jsonl")}
    data = {"private": source, "cut_from": "private", "validation": 0.2, "test": 0.2}
    tree = texts.config.model_dump()
    tree["data"] |= {**data, "public": None}
    texts.config = Config.model_validate(tree)
    ids, people = cut_names(texts.config)
    one, person, before = min(ids), min(people), tables(texts.run.root)
    for named_ids, named_people, public in (
        ([one], [], (one,)),
        ([], [person], (person,)),
        (["t00", "no"], [person], (person,)),
    ):
        with pytest.raises(PublicSampleError, match="cannot be forgotten: their rows are") as told:
            delete(texts, *named_ids, subjects=named_people)
        assert (*told.value.sample_ids, *told.value.subjects) == public
    left = next(row for row in rows if row["key"] not in ids)
    for unknown in ("no", left["key"]):
        with pytest.raises(UnknownSampleError) as said:
            delete(texts, unknown)
        assert type(said.value) is UnknownSampleError
    (tmp_path / "cut.jsonl").unlink()
    with pytest.raises(UnknownSampleError, match="unknown sample ids"):
        delete(texts, one)
    assert tables(texts.run.root) == before


def test_an_error_while_deciding_changes_nothing(
    forgetting: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, status = tables(forgetting.run.root), status_of(forgetting)

    def fail(first_slices: int) -> float:
        raise RuntimeError("in the middle of it")

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "expected", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            delete(forgetting, "digit-0003")
    assert tables(forgetting.run.root) == before
    assert status_of(forgetting) == status
    assert delete(forgetting, "digit-0003").view == 1


@pytest.mark.parametrize("ids", [(), ("",), ("t00", 7)])
def test_what_is_no_list_of_names_is_refused(texts: OpenRun, ids: tuple[Any, ...]) -> None:
    before = tables(texts.run.root)
    with pytest.raises(InputError):
        delete(texts, *ids)
    with pytest.raises(InputError, match="expected a list of strings"):
        Deletion("t00")
    assert tables(texts.run.root) == before


# ── once ─────────────────────────────────────────────────────────────────────────────────────


def test_deleted_before_is_accepted_and_told(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    one, two = slots[0, 0], slots[0, 1]
    delete(forgetting, one)
    receipt = delete(forgetting, one, two)
    assert (receipt.deleted, receipt.already_deleted, receipt.view) == ((two,), (one,), 2)
    again = delete(forgetting, two, one)
    assert (again.deleted, set(again.already_deleted)) == ((), {one, two})
    assert (again.view, again.nodes_dead) == (2, ())
    assert status_of(forgetting).deleted == 2


def test_the_same_request_twice_is_one_deletion(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    first = delete(forgetting, slots[0, 0], slots[1, 0], request_id="r")
    delete(forgetting, slots[0, 1])
    before, status = tables(forgetting.run.root), status_of(forgetting)
    second = delete(forgetting, slots[1, 0], slots[0, 0], request_id="r")
    told, again = first.to_dict(), second.to_dict()
    assert told.pop(TIME) is not None and again.pop(TIME) is not None
    assert again == told
    assert tables(forgetting.run.root) == before
    assert status_of(forgetting) == status
    with pytest.raises(RequestConflictError, match="stands for another deletion"):
        delete(forgetting, slots[0, 0], request_id="r")
    assert tables(forgetting.run.root) == before


def test_dry_run_tells_the_same_and_changes_nothing(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    delete(forgetting, slots[3, 0])
    ids = (slots[0, 0], slots[2, 2], slots[3, 0])
    before, status = tables(forgetting.run.root), status_of(forgetting)
    dry = delete(forgetting, *ids, request_id="r", dry_run=True)
    assert tables(forgetting.run.root) == before
    assert status_of(forgetting) == status
    told, done = dry.to_dict(), delete(forgetting, *ids, request_id="r").to_dict()
    assert (told.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert told.pop(TIME) >= 0 and done.pop(TIME) >= 0
    assert told.pop("accepted_at") is None and done.pop("accepted_at") is not None
    assert told == done
    assert status_of(forgetting).view == 2


# ── many samples ─────────────────────────────────────────────────────────────────────────────


@contextmanager
def statements() -> Iterator[list[str]]:
    """Everything that any ledger is asked."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)


def test_opening_status_and_forecast_read_no_samples(digits_run: Path) -> None:
    """They cost the same however many samples the ledger holds."""
    with statements() as seen, closing(OpenRun(RunDir.existing(digits_run))) as opened:
        assert status_of(opened).samples == 800
        assert run_forecast(opened, now=datetime.now(UTC)).persons_left == 800
    assert len(seen) >= 5
    assert not [one for one in seen if "FROM samples" in one]


def test_catching_up_reads_no_samples(digits_run: Path) -> None:
    run = RunDir.existing(digits_run)
    with closing(OpenRun(run)) as opened:
        with closing(OpenRun(run)) as other:
            delete(other, "digit-0003")
        with statements() as seen:
            assert opened.catch_up()[0] == 1
    asked = [one for one in seen if one != "BEGIN"]
    assert all("FROM log" in one or "FROM run" in one for one in asked)
    assert not any("samples" in one for one in asked)


# ── several at work ──────────────────────────────────────────────────────────────────────────


def test_two_on_one_run_catch_up_with_each_other(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    with closing(OpenRun(forgetting.run)) as other:
        delete(forgetting, slots[0, 0])
        # the other has not looked since, and yet decides on what is true now
        receipt = delete(other, slots[0, 1])
        after_one, dead_one, _ = oracle(forgetting, {(0, 0)})
        after, dead, _ = oracle(forgetting, {(0, 0), (0, 1)})
        assert [change.before for change in receipt.prefixes] == after_one
        assert [change.after for change in receipt.prefixes] == after
        assert set(receipt.nodes_dead) == dead - dead_one
        assert receipt.view == 2
        view, nodes, _ = forgetting.catch_up()
        assert (view, [node.prefix if node else () for node in nodes]) == (2, after)
        assert not any(forgetting.is_alive(key) or other.is_alive(key) for key in dead)
        assert status_of(forgetting) == status_of(other)


def test_opened_again_it_is_where_it_was(forgetting: OpenRun) -> None:
    slots = one_of_each(forgetting)
    delete(forgetting, slots[1, 0], slots[2, 3])
    with closing(OpenRun(forgetting.run)) as again:
        assert status_of(again) == status_of(forgetting)


def test_a_lost_node_takes_along_what_grew_on_it(forgetting: OpenRun) -> None:
    serving = forgetting.catch_up()[1][0]
    assert serving is not None
    root = forgetting.plan.forest.lineage(serving.key)[0]
    forgetting.lose(root.key)
    grown = [node.key for node in forgetting.plan.forest.subtree(root.key)]
    assert not any(forgetting.is_alive(key) for key in grown)
    status = status_of(forgetting).shards[0]
    assert (status.nodes_missing, status.nodes_dead) == (len(grown), 0)
    assert status.prefix and status.node not in grown


@pytest.mark.parametrize("what", ["root", "leaf"])
def test_missing_nodes_are_counted_and_not_served(digits_run: Path, what: str) -> None:
    with closing(OpenRun(RunDir.existing(digits_run))) as whole:
        serving = whole.catch_up()[1][2]
        assert serving is not None
        root = whole.plan.forest.lineage(serving.key)[0]
        lost = {"root": root, "leaf": serving}[what]
        grown = [node.key for node in whole.plan.forest.subtree(lost.key)]
    (digits_run / "nodes" / f"{lost.key}.safetensors").unlink()
    with closing(OpenRun(RunDir.existing(digits_run))) as opened:
        status = status_of(opened).shards[2]
        assert (status.nodes_alive, status.nodes_missing) == (16 - len(grown), len(grown))
        assert len(status.prefix) == 4 and status.node not in grown
