"""PostgreSQL as a ledger: what differs from a file, and what happens when the server does not."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from s3t.errors import InputError, IntegrityError, S3TError, UnavailableError
from s3t.ledger import Deletion, Ledger, LedgerState, Receipt, without_password
from s3t.ledger.database import backend, schema
from s3t.types import Digest, Sample, SampleId, Slot, Subject
from tests.support.postgres import Proxy, Server


def agree(receipt: Receipt, state: LedgerState) -> Receipt:
    return receipt


def rows(count: int = 24) -> list[tuple[Sample, Slot]]:
    return [
        (
            Sample(
                SampleId(f"s{number:05}"), Subject(f"person-{number // 4}"), Digest(f"c{number}")
            ),
            (number % 2, number // 2 % 3),
        )
        for number in range(count)
    ]


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with Ledger.open(database_url, create=True) as opened:
        opened.register(rows())
        yield opened


class TestOpen:
    def test_an_empty_database_is_no_ledger_unless_one_is_made(self, database_url: str) -> None:
        with pytest.raises(IntegrityError, match="no ledger"):
            Ledger.open(database_url)
        Ledger.open(database_url, create=True).close()
        Ledger.open(database_url).close()
        Ledger.open(database_url.replace("+psycopg", "")).close()

    def test_another_database_is_no_ledger(self, postgres: Server, database_url: str) -> None:
        postgres.sql("CREATE TABLE cats (name TEXT)", database_url)
        with pytest.raises(IntegrityError, match="no ledger"):
            Ledger.open(database_url, create=True)

    def test_texts_are_ordered_by_bytes_and_not_sampled(
        self, ledger: Ledger, postgres: Server, database_url: str
    ) -> None:
        found = postgres.sql(
            "SELECT c.relname, a.attname, k.collname, a.attstattarget FROM pg_attribute a "
            "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_collation k ON k.oid = a.attcollation "
            "WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace "
            "AND a.attnum > 0",
            database_url,
        )
        texts = {
            (table.name, column.name)
            for table in schema.metadata.sorted_tables
            for column in table.columns
            if isinstance(column.type, sa.Text)
        }
        assert {(table, column) for table, column, *_ in found} == texts
        assert {(order, target) for *_, order, target in found} == {("C", 0)}

    def test_listing_is_in_the_order_of_a_file(self, database_url: str, tmp_path: Path) -> None:
        names = ["a", "B", "_", "é", "Z", "aa", "A", "ö", "zz", "\U0001f600", "\uffff"]
        offered = [(Sample(SampleId(n), None, Digest("c")), (0, 0)) for n in names]
        found = []
        for where in (database_url, str(tmp_path / "ledger.db")):
            with Ledger.open(where, create=True) as opened:
                opened.register(offered)
                with opened.tables() as tables:
                    digest = tables.values()["samples_digest"]
                found.append(([e.sample_id for e in opened.samples()], digest))
        assert found[0] == found[1] and found[0][0] == sorted(names)

    def test_schemas_of_a_database_are_ledgers_of_their_own(self, postgres: Server) -> None:
        urls = [postgres.create(), postgres.create()]
        with Ledger.open(urls[0], create=True) as one, Ledger.open(urls[1], create=True) as two:
            one.register(rows(4))
            two.register(rows(8))
            assert (one.counts.totals()["samples"], two.counts.totals()["samples"]) == (4, 8)
            with one._database.transaction(writes=True):  # does not wait for the other's lock
                assert two.delete(Deletion(["s00000"]), agree).view == 1
            with two.watch() as watch:
                one.delete(Deletion(["s00000"]), agree)
                assert not watch.wait(0.1)
        with pytest.raises(InputError, match="no schema"):
            Ledger.open(f"{urls[0]}_nowhere", create=True)

    def test_read_only(self, ledger: Ledger, database_url: str) -> None:
        with Ledger.open(database_url, read_only=True) as reader:
            assert reader.delete(Deletion(["s00001"], dry_run=True), agree).view == 1
            with pytest.raises(S3TError, match="read-only"):
                reader.delete(Deletion(["s00001"]), agree)

    def test_a_reading_transaction_cannot_write(self, ledger: Ledger) -> None:
        with pytest.raises(S3TError, match="read-only"), ledger._database.transaction() as opened:
            opened.execute(sa.delete(schema.samples))
        assert ledger.counts.totals() == {"samples": 24, "deleted": 0}

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("mysql://u:secret@h/d", "cannot be kept in 'mysql'"),
            ("postgresql+psycopg://u:sec@ret@h/d", "write one in a password as %40"),
            ("postgresql+psycopg://u:secret@[broken/d", "cannot be read|cannot be reached"),
            ("postgresql+psycopg://u:secret@h:port/d", "cannot be read"),
            ("postgresql+psycopg://u:secret@127.0.0.1:1/d", "u@127.0.0.1:1/d cannot be reached"),
            ("postgresql+psycopg://127.0.0.1:1/d?user=u&password=secret", "cannot be reached"),
        ],
    )
    def test_no_password_is_ever_shown(self, url: str, said: str) -> None:
        with pytest.raises(S3TError) as caught:
            Ledger.open(url)
        assert not any(part in str(caught.value) for part in ("sec", "ret@")), caught.value
        assert re.search(said, str(caught.value))

    def test_without_password(self) -> None:
        given = "postgresql+psycopg://u:secret@h:5/d?options=-csearch_path%3Dx&sslpassword=s"
        assert without_password(given) == "postgresql+psycopg://u@h:5/d?options=-csearch_path%3Dx"
        assert without_password("/a/ledger.db") == "/a/ledger.db"

    def test_a_nul_cannot_be_meant(self, ledger: Ledger) -> None:
        with pytest.raises(InputError, match="NUL"):
            ledger.delete(Deletion(["a\0b"]), agree)
        with pytest.raises(InputError, match="NUL"):
            ledger.delete(Deletion(["s00000"], request_id="\0"), agree)
        assert ledger.view() == 0


def test_no_statement_of_a_deletion_reads_all_samples(postgres: Server, database_url: str) -> None:
    def scanned() -> int:
        postgres.sql("SELECT pg_stat_force_next_flush()")
        time.sleep(0.05)
        ((count,),) = postgres.sql(
            "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'samples' "
            "AND schemaname = current_schema()",
            database_url,
        )
        return int(count)

    with Ledger.open(database_url, create=True) as ledger:
        ledger.register(rows(3000))
    before = scanned()
    with Ledger.open(database_url) as ledger:
        ids = [sample.id for sample, _ in rows(1200)]
        for dry_run in (True, False):
            ledger.delete(Deletion(ids, ["person-500", "person-501"], dry_run=dry_run), agree)
        (
            ledger.plans.in_force(),
            ledger.counts.totals(),
            ledger.counts.persons(),
            ledger.counts.history(),
        )
        assert len(list(ledger.samples())) == 3000
    assert scanned() == before


class TestTogether:
    def test_writers_wait_for_each_other_and_see_all(
        self, ledger: Ledger, database_url: str
    ) -> None:
        """Two processes' worth of connections, and deletions of the same slots: no failure."""
        with Ledger.open(database_url) as other, ThreadPoolExecutor(8) as threads:
            done = list(
                threads.map(
                    lambda n: (ledger, other)[n % 2].delete(Deletion([f"s{n:05}"]), agree).view,
                    range(24),
                )
            )
        assert sorted(done) == list(range(1, 25))
        assert [entry.number for entry in ledger.log()] == list(range(1, 26))

    def test_a_row_of_its_own_needs_no_lock(self, ledger: Ledger) -> None:
        inside, go = threading.Event(), threading.Event()

        def slow(receipt: Receipt, state: LedgerState) -> Receipt:
            inside.set()
            assert go.wait(10)
            return receipt

        seat = ledger.replicas.join("one", 5)
        with ThreadPoolExecutor(1) as threads:
            writing = threads.submit(ledger.delete, Deletion(["s00000"]), slow)
            assert inside.wait(10)
            assert ledger.replicas.beat(seat.replica), "a deletion at work stops no lease"
            go.set()
            writing.result()

    def test_a_reader_sees_one_moment(self, ledger: Ledger) -> None:
        with ledger.tables() as tables:
            assert len(list(tables.samples())) == 24
            ledger.delete(Deletion(["s00000"]), agree)
            assert not [row for row in tables.samples() if row.deleted_view is not None]
            assert tables.values()["view"] == "0"
        assert ledger.view() == 1


class TestWatch:
    @pytest.fixture(params=["sqlite", "postgresql"])
    def ledger(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
        where = str(tmp_path / "ledger.db")
        if request.param == "postgresql":
            where = request.getfixturevalue("database_url")
        with Ledger.open(where, create=True) as opened:
            opened.register(rows())
            yield opened

    def test_it_wakes_up_when_something_is_deleted(self, ledger: Ledger) -> None:
        with ledger.watch() as watch:
            assert not watch.wait(0.05)
            for number in range(3):
                ledger.delete(Deletion([f"s{number:05}"]), agree)
            began = time.monotonic()
            assert watch.wait(5) and time.monotonic() - began < 1
            while watch.wait(0.02):  # what was told more than once
                pass
            timer = threading.Timer(0.2, ledger.delete, (Deletion(["s00009"]), agree))
            timer.start()
            assert watch.wait(5) and ledger.view() == 4
            timer.join()

    def test_what_is_rolled_back_wakes_nobody(self, ledger: Ledger) -> None:
        def fail(receipt: Receipt, state: LedgerState) -> Receipt:
            raise RuntimeError("no")

        with ledger.watch() as watch:
            with pytest.raises(RuntimeError):
                ledger.delete(Deletion(["s00000"]), fail)
            ledger.delete(Deletion(["s00000"], dry_run=True), agree)
            assert not watch.wait(0.1)

    def test_it_can_be_stopped_from_another_thread(self, ledger: Ledger) -> None:
        with ledger.watch() as watch:
            threading.Timer(0.1, watch.stop).start()
            began = time.monotonic()
            assert not watch.wait(10) and time.monotonic() - began < 2
            ledger.delete(Deletion(["s00000"]), agree)
            assert not watch.wait(10), "once and for all"
        watch.stop()  # too late, and no harm


class TestPurge:
    @pytest.fixture
    def database_url(self, postgres: Server) -> str:
        return postgres.create_database()  # its files are of this test alone

    def test_no_byte_of_a_purged_row_is_left_in_the_table(
        self, ledger: Ledger, postgres: Server, database_url: str
    ) -> None:
        def files() -> list[Path]:
            (path,) = postgres.sql("SELECT pg_relation_filepath('samples')", database_url)[0]
            at = postgres.folder / "data" / str(path)
            return [one for one in at.parent.iterdir() if one.is_file()]

        def held(text: bytes) -> list[str]:
            postgres.sql("CHECKPOINT")
            return [one.name for one in files() if text in one.read_bytes()]

        ledger.delete(Deletion(["s00003"], ["person-4"]), agree)
        assert held(b"s00003") and held(b"s00016") and held(b"person-4")
        assert ledger.deleted.purge(ledger.view(), [], {})
        assert not held(b"s00003") and not held(b"s00016") and not held(b"person-4")
        assert held(b"s00004") and held(b"person-5"), "others stay"

    def test_the_table_is_written_anew_only_if_rows_have_left_it(
        self, ledger: Ledger, postgres: Server, database_url: str
    ) -> None:
        def file() -> object:
            return postgres.sql("SELECT pg_relation_filepath('samples')", database_url)

        before = file()
        ledger.delete(Deletion(["s00003"]), agree)
        assert ledger.deleted.purge(ledger.view(), [], {}) and file() != before
        after = file()
        assert ledger.deleted.purge(ledger.view(), [], {}) and file() == after

    def test_a_reader_of_an_older_state_is_told(
        self, ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(backend, "BUSY_SECONDS", 0.3)
        monkeypatch.setattr("s3t.ledger.database.postgres_compact._TAKE_SECONDS", 0.2)
        ledger.delete(Deletion(["s00003"]), agree)
        with Ledger.open(database_url) as other, other.tables() as tables:
            tables.values()  # its moment is before the purge; it has not looked at samples yet
            assert not ledger.deleted.purge(ledger.view(), [], {})
            assert [row.sample_id for row in tables.samples()][3] == "s00003"
            assert not ledger.deleted.purge(ledger.view(), [], {}), "nor while it holds the table"
        assert ledger.deleted.compact(), "the next one finishes it"


class TestFaults:
    """On a server that is killed, and started with other settings."""

    def test_a_restarted_server_is_found_again(self, server: Server) -> None:
        with Ledger.open(server.create(), create=True) as ledger:
            ledger.register(rows())
            with ThreadPoolExecutor(4) as threads:  # several connections in the pool
                list(threads.map(lambda n: (ledger.view(), ledger.counts.totals()), range(16)))
                ledger.delete(Deletion(["s00000"]), agree)
                server.kill()
                for call in (ledger.view, ledger.counts.totals, lambda: delete(ledger, "s00001")):
                    with pytest.raises(UnavailableError, match=r"run_\d+ cannot be reached"):
                        call()
                server.start()
                assert list(threads.map(lambda n: ledger.view(), range(16))) == [1] * 16
                assert delete(ledger, "s00001") == 2, "what was acknowledged is there"
                server.restart()
                assert delete(ledger, "s00002") == 3
                assert ledger.view() == 3

    def test_a_killed_server_loses_no_acknowledged_deletion(self, server: Server) -> None:
        with Ledger.open(server.create(), create=True) as ledger:
            ledger.register(rows(1000))
            acknowledged: list[str] = []
            unknown: list[str] = []

            def work(worker: int) -> None:
                for number in range(worker, 1000, 4):
                    sample = f"s{number:05}"
                    try:
                        delete(ledger, sample)
                    except UnavailableError as error:
                        if "not known whether" in str(error):
                            unknown.append(sample)
                        return
                    acknowledged.append(sample)

            with ThreadPoolExecutor(4) as threads:
                workers = [threads.submit(work, number) for number in range(4)]
                limit = time.monotonic() + 30
                while len(acknowledged) < 20 and time.monotonic() < limit:
                    time.sleep(0.002)
                server.kill()
                for one in workers:
                    one.result()
            server.start()
            gone = {entry.sample_id for entry in ledger.samples(deleted=True)}
            assert 20 <= len(acknowledged) < 1000
            assert set(acknowledged) <= gone <= {*acknowledged, *unknown}
            assert ledger.view() == len(gone)

    @pytest.mark.heavy
    def test_a_watch_is_told_that_the_server_is_gone(self, server: Server) -> None:
        with Ledger.open(server.create(), create=True) as ledger:
            with (
                pytest.raises(UnavailableError, match="cannot be reached"),
                ledger.watch() as watch,
            ):
                killer = threading.Timer(0.2, server.kill)
                killer.start()
                watch.wait(10)
            killer.join()
            with pytest.raises(UnavailableError), ledger.watch():
                pass
            server.start()
            with ledger.watch() as watch:
                assert not watch.wait(0.05)

    def test_a_commit_whose_answer_is_lost_is_not_called_undone(
        self, postgres: Server, database_url: str
    ) -> None:
        """The server commits, and the way back is cut before it says so."""
        proxy = Proxy(postgres.port)
        through = database_url.replace(str(postgres.port), str(proxy.port))
        with Ledger.open(database_url, create=True) as direct, Ledger.open(through) as ledger:
            direct.register(rows())
            with pytest.raises(UnavailableError) as caught:
                cut_at_commit(ledger, proxy)
            assert "not known whether" in str(caught.value)
            assert "nothing was changed" not in str(caught.value)
            assert "same request id" in str(caught.value)
            proxy.heal()
            again = ledger.delete(Deletion(["s00000"], request_id="r"), agree)
            assert (again.view, again.deleted) == (1, ("s00000",))
            assert direct.counts.totals()["deleted"] == 1
        proxy.close()

    def test_a_server_that_cannot_keep_a_promise_is_refused(self, server: Server) -> None:
        url = server.create()
        server.settings["fsync"] = "off"
        server.restart()
        with pytest.raises(InputError, match="fsync off"):
            Ledger.open(url, create=True)

    def test_a_full_disk_is_told_and_changes_nothing(self, ledger: Ledger) -> None:
        full = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"

        def fill(receipt: Receipt, state: LedgerState) -> Receipt:
            with ledger._database.transaction() as connection:
                connection.exec_driver_sql(full)
            return receipt

        with pytest.raises(S3TError, match="no space left on its disk, nothing was changed"):
            ledger.delete(Deletion(["s00000"]), fill)
        assert delete(ledger, "s00000") == 1

    def test_a_full_disk_of_a_file_is_told_the_same(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
            with (
                pytest.raises(S3TError, match=r"no space left on its disk.*nothing was changed"),
                ledger._database.transaction(writes=True) as connection,
            ):
                (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
                big = [{"key": f"k{n}", "value": "v" * 4000} for n in range(100)]
                connection.execute(sa.insert(schema.run), big)
            assert ledger.view() == 0 and ledger.plans.in_force().hits == ()

    def test_a_lock_is_freed_when_its_holder_is_cut_off(self, server: Server) -> None:
        with Ledger.open(server.create(), create=True) as ledger:
            ledger.register(rows())
            with (
                pytest.raises(UnavailableError, match="nothing was changed"),
                ledger._database.transaction(writes=True) as connection,
            ):
                server.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE state = 'idle in transaction'"
                )
                connection.execute(sa.delete(schema.samples))
            assert delete(ledger, "s00000") == 1
            assert ledger.counts.totals() == {"samples": 24, "deleted": 1}


def delete(ledger: Ledger, sample: str) -> int:
    return ledger.delete(Deletion([sample]), agree).view


def cut_at_commit(ledger: Ledger, proxy: Proxy) -> None:
    engine = ledger._database._engine

    def cut(connection: sa.Connection) -> None:
        if connection.get_execution_options()[backend.ACCESS].writes:
            proxy.swallow()

    sa.event.listen(engine, "commit", cut)
    try:
        ledger.delete(Deletion(["s00000"], request_id="r"), agree)
    finally:
        sa.event.remove(engine, "commit", cut)
