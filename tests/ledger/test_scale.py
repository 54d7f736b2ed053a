"""The ledger at scale: counters that a recount confirms, and no step that looks at all samples."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from s3t.errors import InputError, UnknownSampleError
from s3t.ledger import Deletion, Ledger, LedgerState, Receipt
from s3t.types import Digest, Sample, SampleId, Slot, Subject

Rows = list[tuple[Sample, Slot]]

ROOT = Path(__file__).resolve().parents[2]


def agree(receipt: Receipt, state: LedgerState) -> Receipt:
    return receipt


def rows(count: int) -> Iterator[tuple[Sample, Slot]]:
    """Out of order; every other sample is of a person, who has three; some share their content."""
    for number in range(count):
        sample_id = SampleId(f"s{number * 7919 % 100_003:06}")
        subject = Subject(f"p{number // 6}") if number % 2 else None
        content = Digest(f"c{number - (number % 7 == 1)}")
        yield Sample(sample_id, subject, content), (number // 6 % 3, number // 18 % 4)


def dump(path: Path) -> list[str]:
    """The whole database, read past the ledger."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


# ── counters ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Truth:
    """All samples and who is gone, counted again each time."""

    samples: Rows

    def slots(self, gone: set[str]) -> list[tuple[int, ...]]:
        found = []
        for place in sorted({place for _, place in self.samples}):
            here = [sample for sample, at in self.samples if at == place]
            left = [sample for sample in here if sample.id not in gone]
            counts = len(here), len(left), len(self.persons(here)), len(self.persons(left))
            found.append((*place, *counts))
        return found

    def persons(self, samples: Sequence[Sample]) -> set[tuple[bool, str]]:
        return {(one.subject is None, one.subject or one.id) for one in samples}

    def copies(self, gone: set[str]) -> list[tuple[str, int]]:
        held = Counter(sample.content for sample, _ in self.samples)
        left = Counter(sample.content for sample, _ in self.samples if sample.id not in gone)
        return [(content, left[content]) for content in sorted(held) if held[content] > 1]

    def elsewhere(self, taken: set[str], gone: set[str]) -> int:
        contents = {sample.content for sample, _ in self.samples if sample.id in taken}
        return sum(s.content in contents and s.id not in gone for s, _ in self.samples)


def stored(path: Path, table: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()


@st.composite
def stories(draw: st.DrawFn) -> tuple[Rows, list[tuple[list[str], list[str], bool]]]:
    """Samples, now and then of a person in two slots, and requests that overlap and repeat."""
    slot = st.tuples(st.integers(0, 1), st.integers(0, 2))
    who = st.sampled_from([None, None, "ann", "bob", "cy"])
    made = draw(st.lists(st.tuples(who, st.sampled_from("xyz"), slot), min_size=1, max_size=12))
    samples = [
        (Sample(SampleId(f"s{n:02}"), subject and Subject(subject), Digest(content)), place)
        for n, (subject, content, place) in enumerate(made)
    ]
    ids = st.lists(st.sampled_from([sample.id for sample, _ in samples]), max_size=4)
    known = sorted({sample.subject for sample, _ in samples if sample.subject is not None})
    people = st.lists(st.sampled_from(known), max_size=2) if known else st.just([])
    request = st.tuples(ids, people, st.booleans()).filter(lambda one: bool(one[0] or one[1]))
    return draw(st.permutations(samples)), draw(st.lists(request, max_size=5))


@settings(max_examples=60, deadline=None)
@given(stories())
def test_counters_are_what_a_recount_gives(story: tuple[Rows, Any]) -> None:
    samples, requests = story
    truth, gone, history = Truth(samples), set[str](), []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with Ledger.open(path, create=True) as ledger:
            ledger.register(samples)
            for ids, people, dry_run in requests:
                done = ledger.delete(Deletion(ids, people, dry_run=dry_run), agree)
                taken = {s.id for s, _ in samples if s.id in ids or s.subject in people} - gone
                assert set(done.deleted) == taken
                assert done.copies_elsewhere == truth.elsewhere(taken, gone | taken)
                if taken and not dry_run:
                    gone |= taken
                    history.append(len(truth.persons([s for s, _ in samples if s.id in taken])))
                assert stored(path, "slots") == truth.slots(gone)
                assert stored(path, "copies") == truth.copies(gone)
            assert ledger.counts.totals() == {"samples": len(samples), "deleted": len(gone)}
            assert [
                (one.shard, one.slice, one.registered, one.left) for one in ledger.counts.persons()
            ] == [(shard, part, *counts) for shard, part, _, _, *counts in truth.slots(gone)]
            assert [count for _, count in ledger.counts.history()] == history


# ── plans of the queries ─────────────────────────────────────────────────────────────────────


@contextmanager
def plans(ledger: Ledger) -> Iterator[list[tuple[str, str]]]:
    """Each statement that the ledger runs, with a line of how SQLite goes about it."""
    seen: list[tuple[str, str]] = []

    def explain(_: Any, cursor: Any, statement: str, values: Any, context: Any, many: bool) -> None:
        if statement.split(maxsplit=1)[0] in ("SELECT", "UPDATE", "INSERT", "DELETE"):
            query = f"EXPLAIN QUERY PLAN {statement}"
            steps = cursor.connection.cursor().execute(query, values[0] if many else values)
            seen.extend((statement, line) for *_, line in steps)

    engine = ledger._database._engine
    sa.event.listen(engine, "before_cursor_execute", explain)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", explain)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db", create=True) as opened:
        opened.register(rows(3000))
        yield opened


def scans(seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(statement, line) for statement, line in seen if "SCAN" in line or "TEMP" in line]


def test_a_deletion_scans_no_table(ledger: Ledger) -> None:
    ids = [entry.sample_id for entry in itertools.islice(ledger.samples(), 700)]
    with plans(ledger) as seen:
        ledger.delete(Deletion(ids[:1], dry_run=True), agree)
        ledger.delete(Deletion(ids[:1]), agree)
        for _ in range(2):  # and told again
            ledger.delete(Deletion(ids, ["p3", "p8"], request_id="r"), agree)
        with pytest.raises(UnknownSampleError):
            ledger.delete(Deletion(["nobody"], ["none"]), agree)
        ledger.counts.hits(2)
    assert not scans(seen)
    verbs = {(statement.split()[0], line.split()[1]) for statement, line in seen}
    tables = {"samples", "slots", "copies"}
    assert {("UPDATE", table) for table in tables} <= verbs, "the plans of all steps were seen"


def test_what_a_status_and_a_forecast_read_leaves_the_samples_alone(ledger: Ledger) -> None:
    ledger.delete(Deletion([], ["p3"]), agree)
    with plans(ledger) as seen:
        ledger.counts.totals()
        ledger.counts.persons()
        ledger.counts.history()
    assert {line.split()[1] for _, line in seen} == {"slots", "requests"}
    assert all("COVERING INDEX" in line for _, line in seen if line.split()[1] == "requests")


# ── one transaction ──────────────────────────────────────────────────────────────────────────


BATCH = """
import os, signal, sys
from s3t.ledger import Deletion, Ledger, deletion
moment, path = sys.argv[1:]
ledger = Ledger.open(path)
ids = [entry.sample_id for entry in ledger.samples()][:10_000]

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "marked":
    deletion.counters.take = die
done = ledger.delete(Deletion(ids, request_id="batch"), lambda receipt, _: receipt)
print(done.view, len(done.deleted), flush=True)
die()
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with Ledger.open(path, create=True) as ledger:
        ledger.register(rows(12_000))
    return path


@pytest.mark.parametrize("moment", ["marked", "acknowledged"])
def test_a_kill_leaves_nothing_or_all_of_ten_thousand(many: Path, moment: str) -> None:
    before = dump(many)
    command = [sys.executable, "-c", BATCH, moment, str(many)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    if moment == "marked":
        assert child.stdout == ""
        assert dump(many) == before
        return
    assert child.stdout == "1 10000\n"
    with Ledger.open(many) as ledger:
        assert ledger.counts.totals() == {"samples": 12_000, "deleted": 10_000}
        gone = [entry.sample_id for entry in ledger.samples(deleted=True)]
        assert len(gone) == 10_000
        assert ledger.delete(Deletion(gone, request_id="batch"), agree).replayed


def test_ten_thousand_are_one_commit(many: Path) -> None:
    with Ledger.open(many) as ledger:
        ids = [entry.sample_id for entry in ledger.samples()][:10_000]
        ends: list[str] = []
        for name in ("commit", "rollback"):
            sa.event.listen(ledger._database._engine, name, lambda _, name=name: ends.append(name))
        assert len(ledger.delete(Deletion(ids), agree).deleted) == 10_000
        assert ends == ["commit"]
        assert ledger.view() == 1


# ── registration ─────────────────────────────────────────────────────────────────────────────


def test_memory_of_registering_does_not_grow(tmp_path: Path) -> None:
    """Python's; SQLite's is bounded by its page cache."""
    peaks = []
    for number, count in enumerate((1_000, 21_000, 63_000)):  # the first one imports and compiles
        with Ledger.open(tmp_path / f"{number}.db", create=True) as ledger:
            tracemalloc.start()
            ledger.register(rows(count))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert ledger.counts.totals()["samples"] == count
    assert peaks[2] < 1.2 * peaks[1]


def test_nobody_waits_for_a_proof(tmp_path: Path) -> None:
    """Workers prove the same data at once, and deletions go on meanwhile."""
    path = tmp_path / "ledger.db"
    with Ledger.open(path, create=True) as ledger, Ledger.open(path) as other:
        ledger.register(rows(300))

        def meanwhile() -> Iterator[tuple[Sample, Slot]]:
            for number, row in enumerate(rows(300)):
                if number == 100:
                    other.register(rows(300))
                    other.delete(Deletion([row[0].id]), agree)
                yield row

        ledger.register(meanwhile())
        assert ledger.counts.totals() == {"samples": 300, "deleted": 1}


def test_an_id_that_comes_again_much_later_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(path, create=True) as ledger:
        before = dump(path)
        again, _ = next(rows(1))
        with pytest.raises(InputError, match=f"same id: '{again.id}'"):
            ledger.register([*rows(25_000), next(rows(1))])
        assert dump(path) == before
        ledger.register(rows(25_000))
        with pytest.raises(InputError, match=f"same id: '{again.id}'"):
            ledger.register([*rows(25_000), next(rows(1))])
        ledger.register(rows(25_000))
