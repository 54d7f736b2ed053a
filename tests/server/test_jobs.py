"""Large deletions: not lost by a kill, all or nothing, tried again, and no id left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import RequestConflictError, S3TError, UnavailableError, UnknownSampleError
from s3t.ledger import Ledger, Outbox, job_claim
from s3t.server import worker
from s3t.server.deletions import jobs
from s3t.server.deletions.jobs import JobQueue
from s3t.server.http.problems import Problem
from tests.support.waiting import until

IDS = [f"secret-{number}" for number in range(30)]
URL = "https://a.example/"


class Forgetter:
    """Stands for S3T: ``errors`` are raised by the next calls, one each."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...], str]] = []
        self.errors: list[Exception] = []
        self.during: Callable[[], object] = lambda: None

    def deactivate(self, ids: Any, subjects: Any, *, request_id: str) -> None:
        self.calls.append((tuple(ids), tuple(subjects), request_id))
        self.during()
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def forgetter() -> Forgetter:
    return Forgetter()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
        yield ledger.outbox


Make = Callable[..., JobQueue]


@pytest.fixture
def make(outbox: Outbox, forgetter: Forgetter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[JobQueue] = []

    def queue_of(model: Any = forgetter, lease: float = 10.0) -> JobQueue:
        monkeypatch.setattr(worker, "LEASE", lease)
        made.append(JobQueue(model, outbox, lambda: None, look=0.02))
        return made[-1]

    yield queue_of
    for one in made:
        one.close()


@pytest.fixture
def queue(make: Make) -> JobQueue:
    return make()


def left(folder: Path) -> bytes:
    """All bytes of the ledger, once its log of writes is emptied."""
    with Ledger.open(folder / "ledger.db") as ledger:
        assert ledger.compact()
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_a_job_is_one_call_and_leaves_nothing(
    queue: JobQueue, forgetter: Forgetter, outbox: Outbox, tmp_path: Path
) -> None:
    job = queue.put("r1", IDS, ["someone"], [URL], "tool")
    assert queue.find("r1") == job and job.controller == "tool"
    assert job.received < job.expected and b"secret-7" in left(tmp_path)
    queue.start()
    until(lambda: queue.find("r1") is None)
    assert forgetter.calls == [(tuple(IDS), ("someone",), "r1")]
    told = outbox.callback("a.example")
    assert told is not None and (told.request_id, told.url) == ("r1", URL)
    queue.close()
    assert b"secret-" not in left(tmp_path) and b"someone" not in left(tmp_path)


def test_jobs_of_a_killed_process_are_done_by_the_next(make: Make, forgetter: Forgetter) -> None:
    make().put("r1", IDS, [])  # and then the process is killed
    later = make()
    assert later.find("r1") is not None
    later.start()
    until(lambda: later.find("r1") is None)
    assert [call[2] for call in forgetter.calls] == ["r1"]


def test_a_kill_before_it_has_ended_does_it_again_and_tells_once(
    make: Make, forgetter: Forgetter, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    first.put("r1", IDS, [], [URL])
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "end", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        first.start()
        until(lambda: bool(forgetter.calls))
        first.close()
    assert outbox.counts() == {"jobs": 1, "callbacks": 0}
    later = make()
    later.start()
    until(lambda: later.find("r1") is None)
    assert {call[2] for call in forgetter.calls} == {"r1"} and len(forgetter.calls) >= 2
    assert outbox.counts() == {"jobs": 0, "callbacks": 1}


def test_one_that_was_done_before_new_samples_came_is_no_failure(
    queue: JobQueue, forgetter: Forgetter, outbox: Outbox
) -> None:
    """Killed after the deletion; since then ``s3t add`` took in samples that it names."""
    forgetter.errors = [RequestConflictError("its deletion was made before")]
    queue.put("r", IDS, [])
    queue.start()
    until(lambda: outbox.job("r") is None)


def test_one_that_is_silent_for_a_lease_loses_its_job(
    make: Make, outbox: Outbox, forgetter: Forgetter
) -> None:
    outbox.accept("r1", IDS, [], limit=9)
    assert outbox.take(job_claim("r1"), "killed")
    assert (job := outbox.job("r1")) is not None and job.running
    later = make(lease=0.3)
    began = time.monotonic()
    later.start()
    until(lambda: later.find("r1") is None)
    assert time.monotonic() - began >= 0.3
    assert [call[2] for call in forgetter.calls] == ["r1"]


def test_one_that_beats_keeps_its_job_for_longer_than_a_lease(
    make: Make, forgetter: Forgetter
) -> None:
    forgetter.during = lambda: time.sleep(1.0)
    one, two = make(lease=0.3), make(lease=0.3)
    one.put("r1", IDS, [])
    one.start()
    two.start()
    until(lambda: one.find("r1") is None)
    assert len(forgetter.calls) == 1


def test_two_that_work_at_one_job_end_it_once(
    make: Make, forgetter: Forgetter, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that slept for longer than its lease wakes up beside the one that took over."""
    monkeypatch.setattr(worker.Worker, "_take", lambda *_: True)
    both, passed = [make(), make()], []

    def wait() -> None:
        passed.append(1)
        until(lambda: len(passed) >= 2)

    forgetter.during = wait
    outbox.accept("r1", IDS, [], [URL], limit=9)
    for one in both:
        one.start()
    until(lambda: outbox.job("r1") is None)
    for one in both:
        one.close()
    assert [call[2] for call in forgetter.calls] == ["r1", "r1"]
    assert outbox.counts() == {"jobs": 0, "callbacks": 1}


@pytest.mark.parametrize(
    "error", [UnavailableError("not now"), S3TError("busy"), OSError(28, "disk full")]
)
def test_what_fails_for_now_is_tried_again(
    queue: JobQueue,
    forgetter: Forgetter,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forgetter.errors = [error, error, error]
    queue.put("r1", IDS, [])
    queue.start()
    until(lambda: queue.find("r1") is None)
    assert len(forgetter.calls) == 4
    assert "failed for now" in caplog.text and "secret" not in caplog.text


def test_one_that_waits_holds_up_no_other(queue: JobQueue, forgetter: Forgetter) -> None:
    forgetter.errors = [UnavailableError("not now")] * 6
    queue.put("r1", IDS, [])
    queue.start()
    until(lambda: len(forgetter.calls) >= 3)
    queue.put("r2", IDS, [])
    forgetter.errors = forgetter.errors[:1]
    until(lambda: queue.find("r2") is None and queue.find("r1") is None)


def test_one_that_fails_here_is_done_elsewhere(make: Make, forgetter: Forgetter) -> None:
    class Broken(Forgetter):
        def deactivate(self, *names: Any, **more: Any) -> None:
            self.calls.append(((), (), more["request_id"]))
            raise S3TError("broken for ever")

    broken = Broken()
    here, there = make(broken), make(forgetter)
    here.put("r1", IDS, [])
    here.start()
    until(lambda: bool(broken.calls))
    there.start()
    until(lambda: there.find("r1") is None)
    assert len(forgetter.calls) == 1


def test_a_damaged_one_is_told_once_and_holds_up_no_other(
    queue: JobQueue, forgetter: Forgetter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue.put("r1", IDS, [])
    queue.put("r2", IDS, [])
    with Ledger.open(tmp_path / "ledger.db") as ledger, ledger._database.transaction(True) as c:
        c.exec_driver_sql("UPDATE jobs SET sample_ids = '7' WHERE request_id = 'r1'")
    queue.start()
    until(lambda: queue.find("r2") is None)
    time.sleep(0.1)
    assert [call[2] for call in forgetter.calls] == ["r2"]
    assert caplog.text.count("is damaged:") == 1


def test_one_that_can_never_be_done_is_cancelled_without_ids(
    queue: JobQueue,
    forgetter: Forgetter,
    outbox: Outbox,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    forgetter.errors = [UnknownSampleError(["secret-3"], [], "RUN")]
    queue.put("r1", IDS, ["secret-person"], [URL])
    queue.start()
    until(lambda: (job := queue.find("r1")) is not None and job.cancelled is not None)
    job = queue.find("r1")
    assert job is not None and job.problem is not None and job.problem[0] == "unknown_sample"
    assert outbox.counts() == {"jobs": 0, "callbacks": 1} and len(forgetter.calls) == 1
    assert b"secret-" not in left(tmp_path) and "secret" not in caplog.text
    queue.put("r1", IDS[:2], [])  # what was wrong may have been put right
    until(lambda: queue.find("r1") is None)
    assert len(forgetter.calls) == 2
    assert outbox.counts() == {"jobs": 0, "callbacks": 1}, "told of what became of it at last"


def test_cancelled_ones_are_told_for_a_week(
    queue: JobQueue, forgetter: Forgetter, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetter.errors = [UnknownSampleError(["secret-3"], [], "RUN")]
    queue.put("r1", IDS, [])
    queue.start()
    until(lambda: (job := queue.find("r1")) is not None and job.cancelled is not None)
    monkeypatch.setattr(jobs, "_KEPT", jobs.timedelta(0))
    until(lambda: queue.find("r1") is None)


def test_the_same_again_is_the_same_and_another_is_refused(queue: JobQueue) -> None:
    job = queue.put("r1", IDS, ["a"])
    assert queue.put("r1", [*reversed(IDS), IDS[0]], ["a"]) == job
    with pytest.raises(Problem) as refused:
        queue.put("r1", IDS, ["b"])
    assert refused.value.code == "request_conflict"
    assert queue.find("r1") == job


def test_more_jobs_than_may_wait_are_refused(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_LIMIT", 2)
    queue.put("r1", IDS, [])
    queue.put("r2", IDS, [])
    with pytest.raises(Problem) as refused:
        queue.put("r3", IDS, [])
    assert refused.value.code == "overloaded" and refused.value.headers["Retry-After"]
    assert queue.find("r3") is None


def test_two_replicas_do_each_job_once(make: Make, forgetter: Forgetter) -> None:
    one, two = make(), make()
    one.put("r0", IDS, [])
    one.start()
    two.start()
    for number in range(1, 6):
        (one, two)[number % 2].put(f"r{number}", IDS, [])
    until(lambda: not any(one.find(f"r{number}") for number in range(6)))
    one.close()
    two.put("r6", IDS, [])  # the other goes on
    until(lambda: two.find("r6") is None)
    assert sorted(call[2] for call in forgetter.calls) == [f"r{number}" for number in range(7)]


def test_a_ledger_that_is_away_is_told_once(
    queue: JobQueue, outbox: Outbox, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    looks: list[int] = []

    def away() -> list[str]:
        looks.append(1)
        raise UnavailableError("the ledger is locked")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "waiting", away)
        queue.start()
        until(lambda: len(looks) > 4)
    assert caplog.text.count("the ledger is locked") == 1
    queue.put("r1", IDS, [])
    until(lambda: queue.find("r1") is None)
