"""The outbox: accepted durably, ended once, told in order, claimed by one at a time."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from s3t.errors import IntegrityError, RequestConflictError
from s3t.ledger import Deletion, Holder, Ledger, LedgerState, Outbox, Receipt, job_claim
from s3t.ledger.log import chain
from s3t.types import Digest, Sample, SampleId, Subject
from tests.support.postgres import Server

IDS = [f"s{number}" for number in range(5)]


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    url: str = request.getfixturevalue("database_url")
    return url


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where, create=True) as ledger:
        samples = [Sample(SampleId(f"s{n}"), Subject(f"p{n}"), Digest("c")) for n in range(9)]
        ledger.register((one, (0, 0)) for one in samples)
        yield ledger


@pytest.fixture
def outbox(ledger: Ledger) -> Outbox:
    return ledger.outbox


def agree(receipt: Receipt, state: LedgerState) -> Receipt:
    return receipt


def test_what_is_accepted_is_there_for_all_who_have_the_ledger(outbox: Outbox, where: str) -> None:
    job = outbox.accept(Deletion(IDS, ["p7"], "r1"), ["https://a.example/"], "tool", limit=2)
    with Ledger.open(where) as other:
        assert other.outbox.job("r1") == job and job is not None
        assert other.outbox.waiting() == ["r1"]
        assert other.outbox.accept(Deletion(["s8"], [], "r1"), limit=2) == job, (
            "it stands for that one"
        )
        later = other.outbox.accept(Deletion(IDS, [], "r2"), limit=2)
        assert later is not None and later.number > job.number and later.expected > job.expected
        assert other.outbox.accept(Deletion(IDS, [], "r3"), limit=2) is None
    assert outbox.waiting() == ["r1", "r2"] and outbox.counts() == {"jobs": 2, "callbacks": 0}


def test_a_request_id_stands_for_one_deletion_wherever_it_comes_in(
    ledger: Ledger, outbox: Outbox
) -> None:
    outbox.accept(Deletion([*IDS, *IDS], ["p7"], "r1"), limit=9)
    for dry_run in (True, False):
        with pytest.raises(RequestConflictError, match="waits to be done"):
            ledger.delete(Deletion(IDS, request_id="r1", dry_run=dry_run), agree)
    assert ledger.view() == 0
    ledger.delete(Deletion(["s8"], request_id="r2"), agree)
    with pytest.raises(RequestConflictError, match="a moment ago"):
        outbox.accept(Deletion(IDS, [], "r2"), limit=9)
    assert outbox.waiting() == ["r1"]
    assert len(ledger.delete(Deletion(IDS, ["p7"], request_id="r1"), agree).deleted) == 6


def test_a_job_is_ended_once_and_with_it_go_its_ids(ledger: Ledger, outbox: Outbox) -> None:
    urls = ["https://a.example/1", "https://b.example/", "https://a.example/1"]
    job = outbox.accept(Deletion(IDS, [], "r1"), urls, limit=9)
    assert job is not None
    assert outbox.end(job) and not outbox.end(job) and not outbox.end(job, ("code", "why"))
    assert outbox.job("r1") is None
    assert outbox.counts() == {"jobs": 0, "callbacks": 2}
    again = outbox.accept(Deletion(IDS, [], "r1"), limit=9)
    assert again is not None and again.number > job.number
    assert not outbox.end(job), "of an earlier one of its name"


def test_a_cancelled_one_is_kept_without_ids_until_it_expires(outbox: Outbox) -> None:
    job = outbox.accept(Deletion(IDS, ["p1"], "r1"), limit=9)
    assert job is not None and outbox.end(job, ("unknown_sample", "It is not there"))
    held = outbox.job("r1")
    assert held is not None and held.problem == ("unknown_sample", "It is not there")
    assert (held.deletion.sample_ids, held.deletion.subjects, held.callbacks) == ((), (), ())
    assert held.cancelled is not None and outbox.waiting() == []
    outbox.expire(held.cancelled)
    assert outbox.job("r1") is not None
    outbox.expire(chain.now() + "x")
    assert outbox.job("r1") is None


def test_jobs_that_are_done_are_swept_and_their_callbacks_wait(
    ledger: Ledger, outbox: Outbox
) -> None:
    outbox.accept(Deletion(IDS, [], "r1"), ["https://a.example/"], limit=9)
    outbox.accept(Deletion(["s7"], [], "r2"), limit=9)
    assert outbox.sweep() == 0
    ledger.delete(Deletion(IDS, request_id="r1"), agree)
    assert outbox.sweep() == 1
    assert outbox.waiting() == ["r2"] and outbox.callback("a.example") is not None


def test_each_host_is_told_in_the_order_of_what_ended(outbox: Outbox) -> None:
    jobs = [
        outbox.accept(Deletion(IDS, [], f"r{n}"), ["https://A.example/"], limit=9) for n in range(3)
    ]
    for job in (jobs[2], jobs[0]):
        assert job is not None and outbox.end(job)
    outbox.tell("small", ["https://a.example/", "https://b.example:8443/x"])
    outbox.tell("small", ["https://a.example/"])
    assert jobs[1] is not None and outbox.end(jobs[1])
    assert outbox.hosts() == ["a.example", "b.example:8443"]
    told = []
    while (callback := outbox.callback("a.example")) is not None:
        told.append(callback.request_id)
        outbox.told(callback)
        outbox.told(callback)  # by another replica too
    assert told == ["r2", "r0", "small", "r1"] and outbox.hosts() == ["b.example:8443"]
    assert outbox.give_up("b.example:8443", "2000") == 0
    assert outbox.give_up("b.example:8443", chain.now() + "x") == 1 and outbox.hosts() == []


def test_of_many_one_gets_a_claim(outbox: Outbox) -> None:
    got: list[str] = []
    barrier = threading.Barrier(8)

    def take(name: str) -> None:
        barrier.wait()
        if outbox.take("job r1", name):
            got.append(name)

    threads = [threading.Thread(target=take, args=(f"p{n}",)) for n in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    (holder,) = got
    assert outbox.claim("job r1") == Holder(holder, 0)
    assert outbox.take("job r1", holder), "its own it may take again"
    assert not outbox.take("job r1", "other") and not outbox.beat("job r1", "other")
    outbox.release("job r1", "other")
    seen = outbox.claim("job r1")
    assert seen is not None and seen.holder == holder and outbox.beat("job r1", holder)
    outbox.strike("job r1", seen)
    assert outbox.claim("job r1") is not None, "it has beaten since"
    outbox.strike("job r1", outbox.claim("job r1") or seen)
    assert not outbox.beat("job r1", holder) and outbox.take("job r1", "other")
    outbox.release("job r1", "other")
    assert outbox.claim("job r1") is None


def test_who_asks_is_told_whether_it_is_in_hand(outbox: Outbox) -> None:
    job = outbox.accept(Deletion(IDS, [], "r1"), limit=9)
    assert job is not None and not job.running and outbox.take(job_claim("r1"), "one")
    held = outbox.job("r1")
    assert held is not None and held.running
    assert outbox.end(job) and outbox.claim(job_claim("r1")) is None


@pytest.mark.parametrize("text", ["", "{", "7", '"s1"', "[7]", "[null]", "{}"])
def test_a_damaged_row_is_an_error(tmp_path: Path, text: str) -> None:
    with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
        ledger.outbox.accept(Deletion(IDS, [], "r1"), limit=9)
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as past, past:
            past.execute("UPDATE jobs SET sample_ids = ?", [text])
        with pytest.raises(IntegrityError, match="is damaged"):
            ledger.outbox.job("r1")
        with pytest.raises(IntegrityError, match="is damaged"):
            ledger.delete(Deletion(["s1"], request_id="r1"), agree)


def test_no_byte_of_a_job_is_left_in_postgresql_after_a_purge(postgres: Server) -> None:
    url = postgres.create_database()
    names = [f"person-{number}-{'x' * 40}" for number in range(500)]  # too long for one page

    def held() -> bool:
        postgres.sql("CHECKPOINT")
        (path,) = postgres.sql("SELECT pg_relation_filepath('jobs')", url)[0]
        folder = (postgres.folder / "data" / str(path)).parent
        files = [one for one in folder.iterdir() if one.is_file()]
        return any(b"person-7-" in one.read_bytes() for one in files)

    with Ledger.open(url, create=True) as ledger:
        postgres.sql("ALTER TABLE jobs ALTER COLUMN subjects SET STORAGE EXTERNAL", url)
        job = ledger.outbox.accept(Deletion([], names, "r1"), limit=9)
        assert job is not None and held()
        assert ledger.outbox.end(job) and held(), "a deleted row is there until it is written again"
        assert ledger.deleted.compact() and not held()
        ledger.outbox.accept(Deletion([], names, "r2"), limit=9)
        assert ledger.deleted.compact() and held(), "what waits stays"
