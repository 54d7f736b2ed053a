"""The ledger: what it promises across failures, threads, processes and a kill in mid-write."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from s3t.errors import (
    InputError,
    IntegrityError,
    RequestConflictError,
    S3TError,
    UnknownSampleError,
)
from s3t.ledger import Deletion, Ledger, LedgerState, Receipt, SlotPersons
from s3t.ledger.database import backend, database, schema
from s3t.types import Digest, Sample, SampleId, Slot, Subject

Rows = list[tuple[Sample, Slot]]

ROOT = Path(__file__).resolve().parents[2]


def rows(count: int = 24, start: int = 0) -> Rows:
    """Three samples a subject, every fourth without; ids 2k and 2k + 1 share their content."""
    return [
        (
            Sample(
                SampleId(f"s{number:05}"),
                None if number % 4 == 3 else Subject(f"p{number // 4}"),
                Digest(f"c{number // 2}"),
            ),
            (number % 2, number // 2 % 3),
        )
        for number in range(start, start + count)
    ]


def agree(receipt: Receipt, state: LedgerState) -> Receipt:
    return replace(receipt, expected_deletions_left=float(len(receipt.slots)))


def samples_digest(ledger: Ledger) -> str | None:
    with ledger.tables() as tables:
        return tables.values().get("samples_digest")


def past(where: str | Path) -> sa.Engine:
    """The database, past the ledger."""
    return sa.create_engine(str(where) if "://" in str(where) else f"sqlite:///{where}")


def tamper(where: str | Path, *statements: str) -> None:
    engine = past(where)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def dump(where: str | Path) -> dict[str, list[Any]]:
    """Every row of every table, read past the ledger."""
    engine = past(where)
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        found = {
            name: sorted(
                map(tuple, connection.exec_driver_sql(f"SELECT * FROM {name}").all()), key=repr
            )
            for name in tables
        }
    engine.dispose()
    assert set(found) == {*schema.metadata.tables}
    return found


def recount(path: str | Path) -> dict[str, Any]:
    """What the counters have to be, from the samples, one by one."""
    held, left = Counter[Any](), Counter[Any]()
    persons, persons_left = defaultdict(set), defaultdict(set)
    contents, contents_left = Counter[str](), Counter[str]()
    for sample_id, subject, content, shard, part, deleted in dump(path)["samples"]:
        slot, person = (shard, part), (subject is None, subject or sample_id)
        held[slot] += 1
        persons[slot].add(person)
        contents[content] += 1
        if deleted is None:
            left[slot] += 1
            persons_left[slot].add(person)
            contents_left[content] += 1
    return {
        "slots": [
            (*slot, held[slot], left[slot], len(persons[slot]), len(persons_left[slot]))
            for slot in sorted(held)
        ],
        "copies": [(one, contents_left[one]) for one in sorted(contents) if contents[one] > 1],
    }


def counted(path: str | Path) -> dict[str, Any]:
    return {name: rows for name, rows in dump(path).items() if name in ("slots", "copies")}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, path: Path) -> str:
    """Where a ledger may be: a file, or a database of a server."""
    return str(path) if request.param == "sqlite" else request.getfixturevalue("database_url")


SERVER_IS_HEAVY = pytest.mark.parametrize(
    "where", ["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)], indirect=True
)


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where, create=True) as opened:
        opened.register(rows())
        yield opened


class TestOpen:
    @pytest.fixture
    def where(self, path: Path) -> str:
        return str(path)

    def test_missing_names_the_path_and_the_next_step(self, path: Path) -> None:
        for read_only in (False, True):
            with pytest.raises(InputError, match=r"ledger\.db.*s3t train CONFIG"):
                Ledger.open(path, read_only=read_only)
        with pytest.raises(InputError, match="no folder"):
            Ledger.open(path / "deeper" / "ledger.db", create=True)
        assert not path.exists()

    @pytest.mark.parametrize("create", [True, False])
    def test_other_bytes_are_no_ledger(self, path: Path, create: bool) -> None:
        path.write_bytes(b"not a database at all, but long enough to be one" * 100)
        before = path.read_bytes()
        with pytest.raises(IntegrityError, match=r"ledger\.db"):
            Ledger.open(path, create=create)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("create", [True, False])
    def test_another_database_is_no_ledger_and_stays_as_it_was(
        self, path: Path, create: bool
    ) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE cats (name TEXT)")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(IntegrityError, match="no ledger"):
            Ledger.open(path, create=create)
        assert path.read_bytes() == before

    def test_an_empty_file_becomes_a_ledger_only_when_asked(self, path: Path) -> None:
        path.touch()
        with pytest.raises(IntegrityError, match="no ledger"):
            Ledger.open(path)
        Ledger.open(path, create=True).close()
        Ledger.open(path).close()

    def test_a_damaged_ledger_is_told(self, ledger: Ledger, path: Path) -> None:
        ledger.close()
        with sqlite3.connect(path) as connection:
            connection.execute("DROP TABLE run")
        connection.close()
        with pytest.raises(IntegrityError, match="restore it"):
            Ledger.open(path)

    @pytest.mark.parametrize("key", ["secret", "view"])
    def test_a_lost_secret_is_told(self, ledger: Ledger, path: Path, key: str) -> None:
        ledger.close()
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM run WHERE key = ?", [key])
        connection.close()
        with pytest.raises(IntegrityError, match="lost"):
            Ledger.open(path)

    def test_damaged_pages_are_told(self, path: Path) -> None:
        with Ledger.open(path, create=True) as ledger:
            ledger.register(rows(2000))
        content = bytearray(path.read_bytes())
        content[4096:] = os.urandom(len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match="damaged"), Ledger.open(path) as ledger:
            list(ledger.samples())

    def test_pragmas(self, ledger: Ledger) -> None:
        with ledger._database.transaction() as connection:
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
            }
        assert found == {
            "journal_mode": "wal",
            "synchronous": 2,
            "busy_timeout": 30_000,
            "foreign_keys": 1,
        }

    def test_read_only_reads_and_does_not_write(self, ledger: Ledger, path: Path) -> None:
        ledger.delete(Deletion(["s00000"]), agree)
        with Ledger.open(path, read_only=True) as reader:
            assert (reader.view(), reader.counts.totals()["deleted"]) == (1, 1)
            assert reader.delete(Deletion(["s00001"], dry_run=True), agree).view == 2
            with pytest.raises(S3TError, match="read-only"):
                reader.delete(Deletion(["s00001"]), agree)
        assert ledger.view() == 1

    def test_url_and_odd_paths(self, tmp_path: Path) -> None:
        odd = tmp_path / "a b?c#d%20é" / "ledger.db"
        odd.parent.mkdir()
        with Ledger.open(odd, create=True) as ledger:
            ledger.register(rows(2))
        assert odd.is_file()
        url = f"sqlite:///{tmp_path / 'by_url.db'}"
        Ledger.open(url, create=True).close()
        assert (tmp_path / "by_url.db").is_file()

    def test_a_forked_process_is_told_to_open_its_own(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database.os, "getpid", lambda: -1)
        for call in (ledger.view, ledger.counts.totals):
            with pytest.raises(S3TError, match="forked"):
                call()


class TestSchema:
    @pytest.fixture
    def where(self, path: Path) -> str:
        return str(path)

    def test_tables_are_made_as_they_are_described(self, ledger: Ledger) -> None:
        with ledger._database.transaction() as connection:
            made = sa.inspect(connection)
            for table in schema.metadata.sorted_tables:
                columns = {
                    (c["name"], str(c["type"]), bool(c["primary_key"]))
                    for c in made.get_columns(table.name)
                }
                assert columns == {(c.name, str(c.type), c.primary_key) for c in table.columns}
                found = {one["name"]: one["column_names"] for one in made.get_indexes(table.name)}
                assert found == {one.name: [c.name for c in one.columns] for one in table.indexes}

    @pytest.mark.parametrize(
        ("version", "said"), [(99, "upgrade s3t"), (5, "an older s3t made it: train a new run")]
    )
    def test_another_schema_is_refused_and_stays(
        self, ledger: Ledger, path: Path, version: int, said: str
    ) -> None:
        ledger.close()
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE schema_version SET version = ?", [version])
        connection.close()
        before = dump(path)
        with pytest.raises(IntegrityError, match=said):
            Ledger.open(path)
        assert dump(path) == before


class TestRegister:
    def test_the_same_again_changes_nothing(self, ledger: Ledger, where: str) -> None:
        before = dump(where)
        ledger.register(reversed(rows()))
        assert dump(where) == before
        assert ledger.counts.totals() == {"samples": 24, "deleted": 0}
        assert samples_digest(ledger) is not None

    def test_the_digest_does_not_depend_on_order(self, ledger: Ledger, tmp_path: Path) -> None:
        with Ledger.open(tmp_path / "other.db", create=True) as other:
            assert samples_digest(other) is None
            other.register(iter(reversed(rows())))
            assert samples_digest(other) == samples_digest(ledger)

    def test_deleted_samples_may_be_absent_and_others_not(self, ledger: Ledger) -> None:
        ledger.delete(Deletion(["s00000", "s00007"]), agree)
        gone = {"s00000", "s00007"}
        ledger.register(row for row in rows() if row[0].id not in gone)
        ledger.register(row for row in rows() if row[0].id != "s00007")
        with pytest.raises(InputError, match=r"absent: 's00001'"):
            ledger.register(row for row in rows() if row[0].id not in gone | {"s00001"})

    @pytest.mark.parametrize(
        "change",
        [
            lambda sample, place: (Sample(sample.id, sample.subject, Digest("x")), place),
            lambda sample, place: (Sample(sample.id, None, sample.content), place),
            lambda sample, place: (sample, (place[0], 2)),
            lambda sample, place: (Sample(SampleId("new"), None, sample.content), place),
        ],
    )
    def test_other_samples_are_refused(
        self, ledger: Ledger, where: str, change: Callable[[Sample, Slot], Any]
    ) -> None:
        before = dump(where)
        with pytest.raises(InputError, match="differs from what the run was planned on"):
            ledger.register([change(*rows()[0]), *rows()[1:]])
        assert dump(where) == before
        ledger.register(rows())

    @pytest.mark.parametrize("apart", [0, 15])
    def test_an_id_twice_is_named(
        self, where: str, apart: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3t.ledger.samples.registry.ROWS", 10)  # so that batches end between
        with Ledger.open(where, create=True) as ledger:
            with pytest.raises(InputError, match=r"same id: 's00001'\."):
                ledger.register([*rows(2 + apart), rows()[1]])
            assert ledger.counts.totals() == {"samples": 0, "deleted": 0}
            ledger.register(rows())

    def test_listing(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("s3t.ledger.samples.registry.ROWS", 5)
        ledger.delete(Deletion([], ["p0"]), agree)
        listed = list(ledger.samples())
        assert [entry.sample_id for entry in listed] == [sample.id for sample, _ in rows()]
        assert [entry.sample_id for entry in listed if entry.deleted] == [
            "s00000",
            "s00001",
            "s00002",
        ]
        assert [entry.subject for entry in listed[:4]] == ["p0", "p0", "p0", None]
        assert list(ledger.samples(deleted=True)) == listed[:3]
        assert list(ledger.samples(deleted=False)) == listed[3:]
        there = [entry for entry in listed if (entry.shard, entry.slice) == (1, 2)]
        assert list(ledger.samples(slot=(1, 2))) == there != []


class TestPersons:
    @pytest.fixture
    def ledger(self, where: str) -> Iterator[Ledger]:
        """Slot 0:0 p0 with two samples, p1 with one, two of nobody; slot 1:2 two of nobody."""
        people = ["p0", "p0", "p1", None, None]
        placed = [(0, 0, who) for who in people] + [(1, 2, None)] * 2
        with Ledger.open(where, create=True) as opened:
            opened.register(
                (
                    Sample(SampleId(f"s{number}"), who and Subject(who), Digest("same")),
                    (shard, part),
                )
                for number, (shard, part, who) in enumerate(placed)
            )
            yield opened

    def test_persons_of_every_slot(self, ledger: Ledger) -> None:
        assert ledger.counts.persons() == [SlotPersons(0, 0, 4, 4), SlotPersons(1, 2, 2, 2)]
        ledger.delete(Deletion(["s0", "s3"]), agree)
        assert ledger.counts.persons() == [SlotPersons(0, 0, 4, 3), SlotPersons(1, 2, 2, 2)]
        ledger.delete(Deletion(["s5", "s6"], ["p0", "p1"]), agree)
        assert ledger.counts.persons() == [SlotPersons(0, 0, 4, 1), SlotPersons(1, 2, 2, 0)]

    def test_nobody(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path / "empty.db", create=True) as empty:
            assert (empty.counts.persons(), empty.counts.history()) == ([], [])

    def test_history_counts_persons_of_each_deletion(self, ledger: Ledger, where: str) -> None:
        began = datetime.now(UTC) - timedelta(milliseconds=1)
        assert ledger.counts.history() == []
        ledger.delete(Deletion(["s3"], ["p0"]), agree)
        ledger.delete(Deletion(["s5"], dry_run=True), agree)
        ledger.delete(Deletion(["s3", "s0"]), agree)  # deleted before
        ledger.delete(Deletion(["s2", "s4", "s5"]), agree)
        moments, counts = zip(*ledger.counts.history(), strict=True)
        assert counts == (2, 3)
        assert began <= moments[0] <= moments[1] <= datetime.now(UTC)
        assert [moment.isoformat(timespec="milliseconds") for moment in moments] == [
            created
            for *_, created, _, _ in sorted(dump(where)["requests"], key=lambda row: row[-2])[::2]
        ]

    def test_a_moment_that_is_none(self, ledger: Ledger, where: str) -> None:
        ledger.delete(Deletion(["s3"]), agree)
        tamper(where, "UPDATE requests SET created_at = 'long ago'")
        with pytest.raises(IntegrityError, match=r"(ledger\.db|run_\d+) .*long ago.*restore it"):
            ledger.counts.history()


class TestDelete:
    def test_one(self, ledger: Ledger) -> None:
        done = ledger.delete(Deletion(["s00002"]), agree)
        assert (done.view, done.deleted, done.already_deleted) == (1, ("s00002",), ())
        assert (done.slots, done.copies_elsewhere) == (((0, 1),), 1)
        assert (done.replayed, done.dry_run) == (False, False)
        assert done.expected_deletions_left == 1.0
        assert (ledger.view(), ledger.counts.hits()) == (1, [(0, 1, 1)])

    def test_ids_and_subjects_overlap_and_repeat(self, ledger: Ledger) -> None:
        ledger.delete(Deletion(["s00001"]), agree)
        done = ledger.delete(Deletion(["s00002", "s00009", "s00002"], ["p0", "p0"]), agree)
        assert done.deleted == ("s00000", "s00002", "s00009")
        assert done.already_deleted == ("s00001",)
        assert done.slots == ((0, 0), (0, 1), (1, 1))
        assert done.copies_elsewhere == 2  # s00003 and s00008; s00001 is gone already
        assert ledger.counts.hits(since_view=1) == [(0, 0, 2), (0, 1, 2), (1, 1, 2)]
        assert ledger.counts.totals()["deleted"] == 4

    def test_copies_within_the_request_do_not_count(self, ledger: Ledger) -> None:
        assert ledger.delete(Deletion(["s00000", "s00001"]), agree).copies_elsewhere == 0

    def test_what_is_deleted_already_does_not_move_the_view(self, ledger: Ledger) -> None:
        ledger.delete(Deletion(["s00000"]), agree)
        done = ledger.delete(Deletion(["s00000"]), agree)
        assert (done.view, done.deleted, done.slots) == (1, (), ())
        assert done.already_deleted == ("s00000",)
        assert ledger.view() == 1

    def test_decide_sees_everything_and_the_hits_it_missed(self, ledger: Ledger) -> None:
        seen: list[tuple[Receipt, LedgerState]] = []

        def decide(receipt: Receipt, state: LedgerState) -> Receipt:
            assert ledger.view() == receipt.view - 1, "not visible before it is committed"
            seen.append((receipt, state))
            return receipt

        ledger.delete(Deletion(["s00000"]), agree)
        known = ledger.plans.in_force()
        assert (known.view, known.hits) == (1, ((0, 0),))
        ledger.delete(Deletion(["s00001"]), agree)
        ledger.delete(Deletion(["s00002", "s00000"], request_id="r"), decide, known)
        receipt = Receipt(
            request_id="r",
            view=3,
            generation=0,
            hashes=(ledger.deleted.keyed("s00002"),),
            hashes_before=(ledger.deleted.keyed("s00000"),),
            copies_elsewhere=1,
            look_alikes=0,
            slots=((0, 1),),
            deleted=(SampleId("s00002"),),
            already_deleted=(SampleId("s00000"),),
        )
        assert seen == [(receipt, LedgerState(2, 0, None, 0, 0, hits=((1, 0),)))]

    def test_unknown_names_all_and_changes_nothing(self, ledger: Ledger, where: str) -> None:
        ledger.delete(Deletion(["s00005"]), agree)
        before = dump(where)
        with pytest.raises(UnknownSampleError) as caught:
            ledger.delete(Deletion(["s00000", "z", "y"], ["p1", "nobody"]), agree)
        assert (caught.value.sample_ids, caught.value.subjects) == (("y", "z"), ("nobody",))
        assert ledger._database.run in str(caught.value)
        assert dump(where) == before

    @pytest.mark.parametrize(
        ("ids", "people"), [([], []), ("s00000", []), ([], "p0"), ([1], []), (["\ud800"], [])]
    )
    def test_input_that_cannot_be_meant(
        self, ledger: Ledger, where: str, ids: Any, people: Any
    ) -> None:
        before = dump(where)
        with pytest.raises(InputError):
            ledger.delete(Deletion(ids, people), agree)
        assert dump(where) == before

    def test_dry_run_tells_and_changes_nothing(self, ledger: Ledger, where: str) -> None:
        before = dump(where)
        told = ledger.delete(Deletion(["s00000"], ["p1"], request_id="r", dry_run=True), agree)
        assert (told.view, told.dry_run, told.request_id) == (1, True, "r")
        assert dump(where) == before
        done = ledger.delete(Deletion(["s00000"], ["p1"], request_id="r"), agree)
        assert not done.replayed
        assert (done.view, done.deleted, done.slots) == (told.view, told.deleted, told.slots)

    def test_a_failing_decision_changes_nothing(self, ledger: Ledger, where: str) -> None:
        before = dump(where)

        def fail(receipt: Receipt, state: LedgerState) -> Receipt:
            raise RuntimeError("no block left")

        with pytest.raises(RuntimeError, match="no block left"):
            ledger.delete(Deletion(["s00000"]), fail)
        with pytest.raises(TypeError):
            ledger.delete(
                Deletion(["s00000"]),
                lambda receipt, _: replace(receipt, expected_deletions_left=object()),  # type: ignore[arg-type]
            )
        assert dump(where) == before
        assert ledger.delete(Deletion(["s00000"]), agree).view == 1

    @pytest.mark.heavy
    def test_ten_thousand_ids_in_one_call(self, where: str) -> None:
        with Ledger.open(where, create=True) as ledger:
            ledger.register(rows(12_000))
            ids = [sample.id for sample, _ in rows(10_000)]
            done = ledger.delete(Deletion(ids, [f"p{n}" for n in range(2500, 2600)]), agree)
            assert len(done.deleted) == 10_300
            assert ledger.counts.totals() == {"samples": 12_000, "deleted": 10_300}
            with pytest.raises(UnknownSampleError) as caught:
                ledger.delete(Deletion([f"x{n}" for n in range(10_000)]), agree)
            assert len(caught.value.sample_ids) == 10_000


class TestRequest:
    def test_the_same_request_gives_the_same_receipt(self, ledger: Ledger, where: str) -> None:
        ledger.delete(Deletion(["s00001"]), agree)
        done = ledger.delete(Deletion(["s00002"], ["p0"], request_id="r"), agree)
        ledger.delete(Deletion(["s00010"]), agree)
        before = dump(where)

        def fail(receipt: Receipt, state: LedgerState) -> Receipt:
            raise AssertionError("a replay decides nothing")

        again = ledger.delete(Deletion(["s00002", "s00002"], ["p0"], request_id="r"), fail)
        assert again.replayed
        assert (again.view, again.deleted, again.already_deleted, again.slots) == (
            done.view,
            done.deleted,
            done.already_deleted,
            done.slots,
        )
        assert again == replace(done, replayed=True)
        assert dump(where) == before

    @pytest.mark.parametrize(("ids", "people"), [(["s00004"], []), (["s00002", "s00004"], [])])
    def test_another_deletion_under_the_same_request(
        self, ledger: Ledger, where: str, ids: list[str], people: list[str]
    ) -> None:
        ledger.delete(Deletion(["s00002"], request_id="r"), agree)
        before = dump(where)
        with pytest.raises(RequestConflictError, match="'r'"):
            ledger.delete(Deletion(ids, people, request_id="r"), agree)
        assert dump(where) == before

    def test_requests_get_their_own_ids(self, ledger: Ledger) -> None:
        ids = {ledger.delete(Deletion(["s00000"]), agree).request_id for _ in range(3)}
        assert len(ids) == 3

    def test_receipts_hold_no_raw_ids(self, ledger: Ledger, where: str) -> None:
        ledger.delete(Deletion(["s00000"]), agree)
        ledger.delete(Deletion(["s00000", "s00004"], ["p5"]), agree)
        found = dump(where)
        for row in (*found["requests"], *found["log"]):
            text = json.dumps(row)
            assert not any(sample.id in text for sample, _ in rows())
            assert "p5" not in text
            plain = hashlib.sha256(b"s00000").hexdigest()
            assert plain not in text, "a hash without the key can be guessed"
        assert [len(one) for one in ledger.delete(Deletion(["s00005"]), agree).hashes] == [64]


class TestTogether:
    def test_another_opening_sees_the_view(self, ledger: Ledger, where: str) -> None:
        with Ledger.open(where) as other:
            assert other.view() == 0
            ledger.delete(Deletion(["s00000"]), agree)
            assert (other.view(), other.counts.hits()) == (1, [(0, 0, 1)])
            assert other.delete(Deletion(["s00000"]), agree).already_deleted == ("s00000",)

    @SERVER_IS_HEAVY
    def test_another_process_sees_the_view(self, ledger: Ledger, where: str) -> None:
        assert ledger.view() == 0
        code = (
            "import sys\nfrom s3t.ledger import Deletion, Ledger\n"
            "with Ledger.open(sys.argv[1]) as ledger:\n"
            "    ledger.delete(Deletion(['s00000']), lambda receipt, _: receipt)\n"
            "    print(ledger.view())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, where],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "1"
        assert (ledger.view(), ledger.counts.hits()) == (1, [(0, 0, 1)])

    def test_threads_delete_and_read(self, where: str) -> None:
        with Ledger.open(where, create=True) as ledger:
            ledger.register(rows(200))

            def work(number: int) -> int:
                before = ledger.view()
                done = ledger.delete(Deletion([f"s{number:05}"]), agree)
                assert before < done.view <= ledger.view()
                return done.view

            with ThreadPoolExecutor(8) as threads:
                views = list(threads.map(work, range(40)))
            assert sorted(views) == list(range(1, 41))
            assert ledger.counts.totals()["deleted"] == 40
            assert len(ledger.counts.hits()) == 6

    def test_a_reader_does_not_wait_for_a_writer(self, ledger: Ledger) -> None:
        inside, go = threading.Event(), threading.Event()

        def slow(receipt: Receipt, state: LedgerState) -> Receipt:
            inside.set()
            assert go.wait(10)
            return receipt

        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(ledger.delete, Deletion(["s00000"]), slow)
            assert inside.wait(10)
            assert (ledger.view(), ledger.counts.totals()["deleted"]) == (0, 0)
            assert ledger.delete(Deletion(["s00001"], dry_run=True), agree).view == 1
            go.set()
            assert writing.result().view == 1
        assert ledger.view() == 1

    def test_a_lock_that_stays_is_told(
        self, ledger: Ledger, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend, "BUSY_SECONDS", 0.05)
        blocker = Ledger.open(where)._database
        with Ledger.open(where) as waiting:
            with blocker.transaction(writes=True):
                with pytest.raises(S3TError, match=r"was locked for 0\.05 s"):
                    waiting.delete(Deletion(["s00000"]), agree)
                assert waiting.view() == 0
            assert waiting.delete(Deletion(["s00000"]), agree).view == 1
        blocker.close()

    def test_closing_closes_every_threads_connection(self, path: Path) -> None:
        ledger = Ledger.open(path, create=True)
        ledger.view()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda _: ledger.view(), range(20)))
            ledger.close()
        assert not Path(f"{path}-wal").exists(), "the last connection to close removes the log"

    @pytest.mark.parametrize("moment", [1, pytest.param(23, marks=pytest.mark.heavy)])
    @SERVER_IS_HEAVY
    def test_a_kill_loses_no_acknowledged_deletion(self, where: str, moment: int) -> None:
        with Ledger.open(where, create=True) as ledger:
            ledger.register(rows(4000))
        code = (
            "import sys\nfrom s3t.ledger import Deletion, Ledger\n"
            "ledger = Ledger.open(sys.argv[1])\n"
            "for number in range(4000):\n"
            "    done = ledger.delete(Deletion([f's{number:05}']), lambda made, _: made)\n"
            "    print(done.deleted[0], done.view, flush=True)"
        )
        command = [sys.executable, "-c", code, where]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = [child.stdout.readline() for _ in range(moment)]
            child.send_signal(signal.SIGKILL)
            told += child.stdout.readlines()
        acknowledged = [line.split()[0] for line in told if line.endswith("\n")]
        assert moment <= len(acknowledged) < 4000
        with Ledger.open(where) as ledger:
            gone = [entry.sample_id for entry in ledger.samples(deleted=True)]
            assert set(acknowledged) <= set(gone)
            assert len(gone) - len(acknowledged) <= 1, "at most the one in flight besides"
            assert ledger.view() == len(gone)
            held = {(e.shard, e.slice) for e in ledger.samples(deleted=True)}
            assert {(shard, c) for shard, c, _ in ledger.counts.hits()} == held
