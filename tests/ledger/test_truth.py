"""A ledger that was tampered with, lost a page, or was replaced says so, and serves nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3t import S3T
from s3t.audit.audit import audit
from s3t.errors import IntegrityError, S3TError, UnavailableError
from s3t.ledger import Deletion, Ledger, LedgerState, Receipt, Witnessed
from s3t.ledger.database import backend
from s3t.ledger.log.chain import canonical, link
from s3t.types import Digest, NodeKey, Sample, SampleId, Slot, Subject

ROOT = Path(__file__).resolve().parents[2]
IMAGES = [np.zeros((8, 8))]


def offered(count: int = 12) -> Iterator[tuple[Sample, Slot]]:
    """Samples s00, s01, …, three of each person p0, p1, …; four slots."""
    for number in range(count):
        sample = Sample(SampleId(f"s{number:02}"), Subject(f"p{number // 3}"), Digest(f"c{number}"))
        yield sample, (number % 2, number // 2 % 2)


def agree(receipt: Receipt, state: LedgerState) -> Receipt:
    return receipt


def register_again(ledger: Ledger) -> None:
    ledger.register(offered())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger: s00 deleted and purged, then s01 and all of p2 (s06, s07, s08) deleted."""
    path = tmp_path_factory.mktemp("truth") / "ledger.db"
    with Ledger.open(path, create=True) as ledger:
        ledger.register(offered())
        ledger.plans.put_in_force(ledger.plans.propose(Digest("a plan"), 0))
        ledger.delete(Deletion(["s00"], request_id="first"), agree)
        ledger.deleted.purge(1, [], {})
        ledger.delete(Deletion(["s01"], ["p2"], request_id="second"), agree)
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A copy of that ledger."""
    for file in written.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / written.name


def by_hand(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0
        connection.commit()


def without_index(path: Path, index: str, statement: str) -> None:
    """Change a table while one of its indexes stays as it is, as a lost page leaves it."""
    columns = "type, name, tbl_name, rootpage, sql"
    row: Any = None
    for step in ("out", "in"):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            if step == "out":
                query = f"SELECT {columns} FROM sqlite_schema WHERE name = ?"
                row = connection.execute(query, [index]).fetchone()
                connection.execute("DELETE FROM sqlite_schema WHERE name = ?", [index])
            else:
                connection.execute(statement)
                connection.execute(
                    f"INSERT INTO sqlite_schema ({columns}) VALUES (?, ?, ?, ?, ?)", row
                )
            version = connection.execute("PRAGMA schema_version").fetchone()[0]
            connection.execute(f"PRAGMA schema_version = {version + 1}")


def rewritten(path: Path, kind: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the bodies of a kind of entries, and make the chain again."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT number, kind, at, body, previous FROM log").fetchall()
        previous = rows[0][4]
        for number, of_kind, at, text, _ in sorted(rows):
            body = json.loads(text)
            if of_kind == kind:
                change(body)
            own = link(number, of_kind, at, canonical(body), previous)
            connection.execute(
                "UPDATE log SET body = ?, previous = ?, digest = ? WHERE number = ?",
                [canonical(body), previous, own, number],
            )
            previous = own
        connection.commit()


# ── the tables against the log ───────────────────────────────────────────────────────────────


def test_a_sound_ledger_proves_itself(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.prove()
        assert ledger.database == f"SQLite {sqlite3.sqlite_version}"
        assert ledger.plans.in_force().hits == ((0, 0), (0, 1), (1, 0), (1, 1))
    with Ledger.open(path) as ledger:  # by entries read one after another, or all at once
        seen = [ledger.view()]
        ledger.delete(Deletion(["s11"]), agree)
        seen.append(ledger.view())
        ledger.plans.put_in_force(ledger.plans.propose(Digest("another"), 3))
        seen.append(ledger.view())
        ledger.prove()
        assert seen == [2, 3, 4] and ledger.plans.in_force().hits == ()
    with Ledger.open(path) as ledger:
        assert (ledger.view(), ledger.plans.in_force().plan) == (4, "another")


@pytest.mark.parametrize(
    ("index", "statement"),
    [
        ("samples_subject", "INSERT INTO samples VALUES ('new', 'p2', 'c', 0, 0, NULL)"),
        ("requests_number", "UPDATE requests SET number = number + 1"),
        ("requests_pending", "UPDATE requests SET effective = 2 WHERE request_id = 'second'"),
        ("requests_history", "UPDATE requests SET view = view + 1"),
        ("forgotten_subject", "UPDATE forgotten SET subject = 'x'"),
    ],
)
def test_an_index_that_lacks_what_its_table_has(path: Path, index: str, statement: str) -> None:
    without_index(path, index, statement)
    with Ledger.open(path) as ledger:
        for call in (ledger.prove, lambda: ledger.add(offered()), lambda: register_again(ledger)):
            with pytest.raises(IntegrityError, match=index):
                call()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE samples SET deleted_view = NULL WHERE sample_id = 's01'", "1 samples that view 2"),
        ("UPDATE samples SET deleted_view = 1 WHERE sample_id = 's01'", "no entry of the log"),
        ("UPDATE samples SET deleted_view = 2 WHERE sample_id = 's02'", "no entry of the log"),
        ("DELETE FROM samples WHERE sample_id = 's01'", "1 samples that view 2 deleted stand as"),
        ("DELETE FROM forgotten", "1 samples that view 1 deleted stand as not deleted"),
        ("UPDATE forgotten SET sample = 'x'", "hashes of purged samples"),
        ("UPDATE forgotten SET subject = NULL", "hashes of purged samples"),
        ("DELETE FROM requests WHERE request_id = 'first'", "1 requests are not"),
        ("UPDATE requests SET number = 99 WHERE request_id = 'first'", "2 requests"),
        ("UPDATE requests SET request_id = 'x' WHERE request_id = 'first'", "1 requests"),
        ("UPDATE requests SET effective = 3 WHERE request_id = 'first'", "1 requests are not"),
        ("UPDATE requests SET view = 9 WHERE request_id = 'first'", "1 requests"),
        ("UPDATE slots SET samples_left = samples_left + 1 WHERE shard = 0", "are counted as"),
        ("UPDATE samples SET slice = 1 - slice WHERE sample_id = 's02'", "samples are not those"),
        ("UPDATE samples SET shard = 1 - shard WHERE sample_id = 's01'", "samples are not those"),
        ("UPDATE samples SET subject = 'p1' WHERE sample_id = 's02'", "samples are not those"),
        ("UPDATE samples SET content = 'c' WHERE sample_id = 's02'", "samples are not those"),
        ("UPDATE samples SET sample_id = 's' WHERE sample_id = 's02'", "samples are not those"),
        ("DELETE FROM samples WHERE sample_id = 's02'", "samples are not those"),
    ],
)
def test_a_table_that_contradicts_the_log(path: Path, statement: str, said: str) -> None:
    by_hand(path, statement)
    with Ledger.open(path) as ledger:
        for call in (
            ledger.prove,
            lambda: ledger.add(offered()),
            lambda: ledger.register(offered()),
            # else the log would commit to what was changed
            lambda: ledger.deleted.purge(2, [], {}),
        ):
            with pytest.raises(IntegrityError, match=said):
                call()


@pytest.mark.parametrize(
    "change", ["score = 9", "weights = 'other'", "rows = 'other'", "key = 'another'"]
)
def test_nodes_that_are_not_those_that_the_log_commits_to(path: Path, change: str) -> None:
    one = {NodeKey("a node"): Witnessed(Digest("weights"), 0.5, Digest("rows"))}
    with Ledger.open(path) as ledger:
        ledger.plans.announce(one)
        ledger.plans.seal()
        ledger.prove()
        ledger.plans.announce({NodeKey(f"{key}, later"): seen for key, seen in one.items()})
        ledger.prove()  # a training goes on
        ledger.plans.seal()
    by_hand(path, f"UPDATE nodes SET {change} WHERE key = 'a node'")
    with Ledger.open(path) as ledger:
        for call in (ledger.prove, lambda: ledger.deleted.purge(2, [], {})):
            with pytest.raises(IntegrityError, match="table nodes is not what the log commits to"):
                call()


def test_when_a_deletion_was_effective_is_not_forgotten(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.replicas.settle("first") and ledger.replicas.settle("second")
        ledger.prove()
    by_hand(path, "UPDATE requests SET effective = NULL WHERE request_id = 'first'")
    with (
        Ledger.open(path) as ledger,
        pytest.raises(IntegrityError, match="1 requests are not those"),
    ):
        ledger.prove()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE run SET value = '1' WHERE key = 'view'", "view counter says 1"),
        ("DELETE FROM log WHERE number = (SELECT MAX(number) FROM log)", "view counter says 2"),
        ("DELETE FROM log WHERE number = 3", "entry 4 of the log does not follow entry 2"),
        ("UPDATE log SET body = '{}' WHERE number = 2", "entry 2 of the log was changed"),
        ("UPDATE log SET at = 'x' WHERE number = 2", "entry 2 of the log was changed"),
        (f"UPDATE run SET value = '{'0' * 64}' WHERE key = 'secret'", "commits to"),
        (
            f"INSERT INTO run (key, value) VALUES ('filter_secret', '{'0' * 64}')",
            "a secret of the ledger is not the one",
        ),
    ],
)
def test_nothing_is_said_from_a_log_that_is_broken(path: Path, statement: str, said: str) -> None:
    by_hand(path, statement)
    with Ledger.open(path) as ledger:
        for call in (ledger.view, ledger.plans.in_force, ledger.deleted.all, ledger.plans.newest):
            with pytest.raises(IntegrityError, match=said):
                call()
        with pytest.raises(IntegrityError, match=said):
            ledger.delete(Deletion(["s05"]), agree)


def test_entries_that_cannot_be_understood(path: Path) -> None:
    rewritten(path, "deletion", lambda body: body.pop("slots"))
    with Ledger.open(path) as ledger, pytest.raises(IntegrityError, match="cannot be understood"):
        ledger.view()


def test_receipts_name_their_own_entries(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger.replicas.settle("first") is not None
        entry = ledger.receipt("second").entry
        assert entry is not None
    by_hand(path, f"UPDATE requests SET effective = {entry.number} WHERE request_id = 'first'")
    with Ledger.open(path) as ledger, pytest.raises(IntegrityError, match="not a deletion and"):
        ledger.receipt("first")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET content = x'ff' WHERE sample_id = 's02'",
        "UPDATE samples SET sample_id = x'ff' WHERE sample_id = 's01'",
        "UPDATE samples SET content = CAST(x'ff' AS TEXT) WHERE sample_id = 's02'",
        "UPDATE forgotten SET subject = x'ff'",
        "UPDATE requests SET request_id = x'ff' WHERE request_id = 'first'",
        "UPDATE log SET body = x'ff' WHERE number = 2",
        "UPDATE log SET kind = CAST(x'ff' AS TEXT) WHERE number = 2",
        "UPDATE run SET value = 'no digits' WHERE key = 'secret'",
        "UPDATE run SET value = x'ff' WHERE key = 'secret'",
        "UPDATE run SET value = x'ff' WHERE key = 'view'",
        "UPDATE schema_version SET version = 'x'",
    ],
)
def test_a_value_of_another_type_is_damage(path: Path, statement: str) -> None:
    by_hand(path, statement)
    with pytest.raises(IntegrityError), Ledger.open(path) as ledger:
        ledger.prove()


# ── what was acknowledged ────────────────────────────────────────────────────────────────────


def killed(path: Path) -> None:
    """Leave the ledger as a kill -9 does: with a last deletion in its write-ahead log alone."""
    copy = path.with_name("copy")
    copy.mkdir()
    with Ledger.open(path) as ledger:
        ledger.delete(Deletion(["s11"], request_id="third"), agree)
        for file in path.parent.glob("ledger.db*"):
            shutil.copy(file, copy)
    for file in path.parent.glob("ledger.db*"):
        file.unlink()
    for file in copy.iterdir():
        if file.suffix != ".db-shm":
            shutil.copy(file, path.parent)


def test_a_killed_process_has_lost_nothing(path: Path) -> None:
    killed(path)
    with Ledger.open(path) as ledger:
        ledger.prove()
        assert ledger.view() == 3


@pytest.mark.parametrize("at", [0, 9, 17, 25, 32 + 9, 32 + 17, 32 + 2000, -5])
def test_a_bit_of_the_write_ahead_log_loses_no_deletion_in_silence(path: Path, at: int) -> None:
    killed(path)
    log = path.with_name("ledger.db-wal")
    content = bytearray(log.read_bytes())
    content[at] ^= 1
    log.write_bytes(content)
    with Ledger.open(path) as ledger:
        for call in (ledger.view, ledger.plans.in_force, ledger.prove, ledger.deleted.all):
            with pytest.raises(IntegrityError, match="was acknowledged, and is not there"):
                call()


def test_an_older_copy_is_refused_until_somebody_decides(path: Path) -> None:
    older, lock = path.read_bytes(), path.with_name("ledger.db-lock")
    with Ledger.open(path) as ledger:
        ledger.delete(Deletion(["s11"]), agree)
    path.write_bytes(older)
    for _ in range(2):
        with Ledger.open(path) as ledger, pytest.raises(IntegrityError, match="acknowledged"):
            ledger.delete(Deletion(["s05"]), agree)
    lock.unlink()
    with Ledger.open(path) as ledger:
        assert ledger.view() == 2
        ledger.delete(Deletion(["s11"]), agree)
    assert lock.stat().st_size


def test_an_entry_that_does_not_follow_from_the_one_before(path: Path) -> None:
    """Its own digest is right; what it names as the entry before is not there."""
    path.with_name("ledger.db-lock").unlink()
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT number, kind, at, body FROM log ORDER BY number DESC"
        number, kind, at, body = connection.execute(query).fetchone()
        own = link(number, kind, at, body, "0" * 64)
        words = "UPDATE log SET previous = ?, digest = ? WHERE number = ?"
        connection.execute(words, ["0" * 64, own, number])
        connection.commit()
    with pytest.raises(IntegrityError, match="does not follow"), Ledger.open(path) as ledger:
        ledger.prove()


def test_another_entry_in_the_place_of_the_last(path: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        body["copies_elsewhere"] = 7

    rewritten(path, "deletion", change)
    with Ledger.open(path) as ledger, pytest.raises(IntegrityError, match="was acknowledged"):
        ledger.view()


@pytest.mark.parametrize("content", ["", "7\n", "x" * 86, f"{7:020} {'g' * 64}\n"])
def test_what_is_told_beside_the_ledger_is_understood_or_refused(path: Path, content: str) -> None:
    path.with_name("ledger.db-lock").write_text(content)
    if content:
        with pytest.raises(IntegrityError, match="does not hold the last entry"):
            Ledger.open(path)
    else:
        with Ledger.open(path) as ledger:
            assert ledger.view() == 2


def test_what_is_told_beside_the_ledger_has_to_be_read(path: Path) -> None:
    lock = path.with_name("ledger.db-lock")
    lock.unlink()
    lock.mkdir()
    for read_only in (False, True):
        with pytest.raises(S3TError, match=r"ledger\.db-lock"):
            Ledger.open(path, read_only=read_only)


def test_a_new_ledger_owes_nothing_to_one_that_was_there(path: Path) -> None:
    path.unlink()
    with Ledger.open(path, create=True) as ledger:
        ledger.register(offered())
        assert ledger.view() == 0
    with Ledger.open(path) as ledger:
        ledger.prove()


def test_a_disk_that_fails_at_the_last_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(5, "Input/output error")

    with Ledger.open(path) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(UnavailableError, match="not known whether"):
                ledger.delete(Deletion(["s11"], request_id="third"), agree)
        assert ledger.delete(Deletion(["s11"], request_id="third"), agree).deleted == ("s11",)
        ledger.prove()


def acknowledged(ledger: Ledger) -> int:
    with ledger.tables() as tables:
        found = tables.acknowledged
    assert found is not None
    return found[0]


def test_the_moment_at_which_a_deletion_was_effective_is_acknowledged(path: Path) -> None:
    """A receipt tells it, so it is on the disk before: a ledger without it has gone back."""
    kept = [path.with_name(f"ledger.db{end}") for end in ("", "-wal")]
    with Ledger.open(path) as ledger:
        ledger.delete(Deletion(["s05"], request_id="third"), agree)
        before, number = [one.read_bytes() for one in kept], acknowledged(ledger)
        assert ledger.replicas.settle("third") is not None
        assert acknowledged(ledger) == number + 1
    for one, content in zip(kept, before, strict=True):
        one.write_bytes(content)
    with Ledger.open(path) as ledger, pytest.raises(IntegrityError, match="was acknowledged"):
        ledger.view()


# ── one writer, one checkpoint ───────────────────────────────────────────────────────────────


def test_sqlite_makes_no_checkpoint_by_itself(path: Path) -> None:
    log = path.with_name("ledger.db-wal")
    with Ledger.open(path) as ledger:
        with ledger._database.transaction() as connection:
            asked = connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar()
        assert asked == 0
        before = path.read_bytes()
        with ledger._database.transaction(writes=True) as connection:
            connection.exec_driver_sql("CREATE TABLE large (text)")
            connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(3000000))")
        assert path.read_bytes() == before and log.stat().st_size > 3_000_000
        with ledger._database.transaction(writes=True) as connection:
            connection.exec_driver_sql("INSERT INTO large VALUES (zeroblob(3000000))")
        assert log.stat().st_size == 0, "more than 4 MiB, so the writer moved it into the file"
        assert path.stat().st_size > 6_000_000


def test_a_checkpoint_waits_for_a_writer_of_another_process(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\nfrom s3t.ledger import Ledger\n"
        "with Ledger.open(sys.argv[1])._database.transaction(writes=True):\n"
        "    print('writes', flush=True)\n    sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(path)]
    pipe = subprocess.PIPE
    with (
        Ledger.open(path) as ledger,
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "writes\n"
        monkeypatch.setattr(backend, "BUSY_SECONDS", 0.2)
        for call in (ledger.deleted.compact, lambda: ledger.delete(Deletion(["s05"]), agree)):
            with pytest.raises(UnavailableError, match=r"was locked for 0\.2 s"):
                call()
        assert ledger.view() == 2
        child.stdin.write("\n")
        child.stdin.close()
        assert child.wait(30) == 0
        assert ledger.deleted.compact()


# ── files that are replaced under a process ──────────────────────────────────────────────────


def replaced_by_a_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal"])
@pytest.mark.parametrize("how", [replaced_by_a_copy, Path.unlink])
def test_a_ledger_that_is_replaced_is_neither_read_nor_written(
    path: Path, name: str, how: Callable[[Path], None]
) -> None:
    victim = path.with_name(name)
    with Ledger.open(path) as ledger:
        ledger.delete(Deletion(["s05"]), agree)
        kept = victim.with_name("kept")
        os.link(victim, kept)
        how(victim)
        for call in (
            ledger.check,
            ledger.view,
            ledger.plans.in_force,
            ledger.prove,
            lambda: ledger.delete(Deletion(["s03"]), agree),
            lambda: ledger.delete(Deletion(["s03"], dry_run=True), agree),
        ):
            with pytest.raises(UnavailableError, match=rf"{name} (is gone|was replaced)"):
                call()
        kept.replace(victim)
        assert ledger.view() == 3
        assert ledger.delete(Deletion(["s03"]), agree).deleted == ("s03",)


def test_a_deletion_during_which_the_ledger_is_replaced_is_not_acknowledged(path: Path) -> None:
    def swap(receipt: Receipt, state: LedgerState) -> Receipt:
        replaced_by_a_copy(path)
        return receipt

    with Ledger.open(path) as ledger, pytest.raises(UnavailableError, match="was replaced"):
        ledger.delete(Deletion(["s05"]), swap)


def test_an_older_ledger_written_in_place_has_gone_back(path: Path) -> None:
    older = path.read_bytes()
    with Ledger.open(path) as ledger:
        ledger.delete(Deletion(["s05"]), agree)
        assert ledger.view() == 3
        known = ledger._reader.known
    path.write_bytes(older)
    with Ledger.open(path) as again:
        again._reader._known = known  # as of a process that has read on
        with pytest.raises(IntegrityError, match="has gone back"):
            again.plans.in_force()


def test_a_restored_ledger_that_has_come_to_as_many_entries_has_gone_back(
    path: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older.db"

    def copy(of: Path, to: Path) -> None:
        with closing(sqlite3.connect(of)) as one, closing(sqlite3.connect(to)) as other:
            one.backup(other)  # in place, as the device and inode tell

    copy(path, older)
    with Ledger.open(path) as live:
        live.delete(Deletion(["s05"]), agree)
        assert live.view() == 3
        copy(older, path)
        path.with_name("ledger.db-lock").unlink()
        with Ledger.open(path) as other:
            other.delete(Deletion(["s04"]), agree)
            assert other.view() == 3
        with pytest.raises(IntegrityError, match="has gone back"):
            live.view()


def test_a_live_process_misses_what_was_acknowledged_to_another(path: Path) -> None:
    """As when file, write-ahead log and its index are put back in place, and nothing is new."""
    with Ledger.open(path) as live:
        assert live.view() == 2
        entry = live._reader.known.number + 1
        path.with_name("ledger.db-lock").write_text(f"{entry:020} {'a' * 64}\n")
        for call in (live.view, live.plans.in_force, lambda: live.delete(Deletion(["s05"]), agree)):
            with pytest.raises(IntegrityError, match=f"entry {entry} of the log was acknowledged"):
                call()


def test_a_writer_that_waits_for_a_lock_file_takes_the_one_that_is_there(path: Path) -> None:
    with Ledger.open(path) as ledger, Ledger.open(path) as other:
        with ledger._database.transaction(writes=True):
            waits = threading.Thread(target=other.deleted.compact)
            waits.start()
            time.sleep(0.1)
            lock = path.with_name("ledger.db-lock")
            lock.rename(path.with_name("away"))
            shutil.copy(path.with_name("away"), lock)
            file = os.open(lock, os.O_RDWR)
            fcntl.flock(file, fcntl.LOCK_EX)
        waits.join(timeout=0.3)
        assert waits.is_alive(), "another one holds the lock file"
        os.close(file)
        waits.join()


class TestService:
    @pytest.fixture
    def service(self, digits_run: Path) -> Iterator[S3T]:
        with S3T.load(digits_run) as opened:
            opened.serving._files._looked = 0.0
            opened.predict(IMAGES)
            yield opened

    @pytest.fixture(autouse=True)
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("s3t.serving.file_check._LOOK_SECONDS", 0.0)

    def refused(self, service: S3T, error: type[S3TError], said: str) -> None:
        with pytest.raises(error, match=said):
            service.predict(IMAGES)
        assert "replaced or removed" in str(service.serving.readiness())

    def test_the_run_directory(self, service: S3T, digits_run: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        digits_run.rename(kept)
        self.refused(service, UnavailableError, "is gone|No such file")
        shutil.copytree(kept, digits_run)
        self.refused(service, UnavailableError, "was replaced")
        with pytest.raises(UnavailableError, match="was replaced"):
            service.deactivate(["digit-0003"])
        shutil.rmtree(digits_run)
        kept.rename(digits_run)
        assert service.serving.readiness() is None
        assert service.predict(IMAGES)[0].view == 0

    def test_the_ledger(
        self, service: S3T, digits_run: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        replaced_by_a_copy(digits_run / "ledger.db")
        for _ in range(3):
            self.refused(service, UnavailableError, r"ledger\.db was replaced")
        assert sum("nothing answers" in one.message for one in caplog.records) == 1

    def test_a_node(self, service: S3T, digits_run: Path) -> None:
        serving = next(one.node for one in service.status().shards if one.node)
        path = digits_run / "nodes" / f"{serving}.safetensors"
        other = next(one for one in path.parent.iterdir() if one != path)
        content = path.read_bytes()
        path.unlink()
        self.refused(service, IntegrityError, "is missing")
        shutil.copy(other, path)
        self.refused(service, IntegrityError, str(serving))
        path.write_bytes(content)  # another file with what was read
        assert service.serving.readiness() is None
        assert service.predict(IMAGES)[0].view == 0

    def test_a_contradiction_serves_nothing(self, digits_run: Path) -> None:
        with S3T.load(digits_run) as service:
            service.deactivate(["digit-0003"])
        by_hand(
            digits_run / "ledger.db",
            "UPDATE samples SET deleted_view = NULL WHERE deleted_view IS NOT NULL",
        )
        with S3T.load(digits_run) as service:
            for call in (
                lambda: service.predict(IMAGES),
                lambda: service.deactivate(["digit-0004"]),
            ):
                with pytest.raises(IntegrityError, match="stand as not deleted"):
                    call()
        assert audit(digits_run)["receipts"].status == "broken"
