"""Large deletions: not lost by a kill, all or nothing, tried again, and no id left behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import S3TError, UnavailableError, UnknownSampleError
from s3t.server import jobs
from s3t.server.jobs import Job, JobQueue
from s3t.server.problems import Problem
from s3t.server.spool import Spool

IDS = [f"secret-{number}" for number in range(30)]


class Forgetter:
    """Stands for S3T: ``errors`` are raised by the next calls, one each."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], tuple[str, ...], str]] = []
        self.errors: list[Exception] = []

    def deactivate(self, ids: Any, subjects: Any, *, request_id: str) -> None:
        self.calls.append((tuple(ids), tuple(subjects), request_id))
        if self.errors:
            raise self.errors.pop(0)


def until(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not done():
        assert time.monotonic() < limit, "it takes too long"
        time.sleep(0.005)


@pytest.fixture
def forgetter() -> Forgetter:
    return Forgetter()


@pytest.fixture
def told() -> list[Job]:
    return []


@pytest.fixture
def queue(tmp_path: Path, forgetter: Forgetter, told: list[Job]) -> Iterator[JobQueue]:
    queue = made(tmp_path, forgetter, told)
    yield queue
    queue.close()


def made(folder: Path, forgetter: Any, told: list[Job]) -> JobQueue:
    return JobQueue(forgetter, Spool(folder / "jobs" / "deletions"), told.append, look=0.02)


def left(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "jobs").rglob("*") if path.is_file())


def test_a_job_is_one_call_and_leaves_nothing(
    queue: JobQueue, forgetter: Forgetter, told: list[Job], tmp_path: Path
) -> None:
    job = queue.put("r1", IDS, ["person"], ["https://a.example/"], "tool")
    assert queue.find("r1") == job and b"secret-7" in left(tmp_path)
    queue.start()
    until(lambda: queue.find("r1") is None)
    assert forgetter.calls == [(tuple(IDS), ("person",), "r1")]
    assert [(one.request_id, one.callbacks, one.controller) for one in told] == [
        ("r1", ("https://a.example/",), "tool")
    ]
    until(lambda: left(tmp_path) == b"")  # overwritten first, then removed


def test_jobs_of_a_killed_process_are_done_by_the_next(
    forgetter: Forgetter, told: list[Job], tmp_path: Path
) -> None:
    made(tmp_path, forgetter, told).put("r1", IDS, [])  # and then the process is killed
    later = made(tmp_path, forgetter, told)
    assert later.find("r1") is not None
    later.start()
    until(lambda: later.find("r1") is None)
    later.close()
    assert [call[2] for call in forgetter.calls] == ["r1"]


def test_a_kill_before_it_is_forgotten_does_it_again_and_tells_again(
    forgetter: Forgetter, told: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path, forgetter, told)
    first.put("r1", IDS, [])
    with monkeypatch.context() as patch:
        patch.setattr(Spool, "remove", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        first.start()
        until(lambda: bool(told))
        first.close()
    later = made(tmp_path, forgetter, told)
    later.start()
    until(lambda: later.find("r1") is None)
    later.close()
    assert {call[2] for call in forgetter.calls} == {"r1"} and len(told) >= 2
    assert left(tmp_path) == b""


@pytest.mark.parametrize(
    "error", [UnavailableError("not now"), S3TError("busy"), OSError(28, "disk full")]
)
def test_what_fails_for_now_is_tried_again(
    queue: JobQueue,
    forgetter: Forgetter,
    told: list[Job],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forgetter.errors = [error, error, error]
    queue.put("r1", IDS, [])
    queue.start()
    until(lambda: queue.find("r1") is None)
    assert len(forgetter.calls) == 4 and len(told) == 1
    assert "failed for now" in caplog.text and "secret" not in caplog.text


def test_one_that_waits_holds_up_no_other(queue: JobQueue, forgetter: Forgetter) -> None:
    forgetter.errors = [UnavailableError("not now")] * 6
    queue.put("r1", IDS, [])
    queue.start()
    until(lambda: len(forgetter.calls) >= 3)
    queue.put("r2", IDS, [])
    forgetter.errors = forgetter.errors[:1]
    until(lambda: queue.find("r2") is None and queue.find("r1") is None)


def test_one_that_can_never_be_done_is_cancelled_without_ids(
    queue: JobQueue,
    forgetter: Forgetter,
    told: list[Job],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    forgetter.errors = [UnknownSampleError(["secret-3"], [], "RUN")]
    queue.put("r1", IDS, ["secret-person"])
    queue.start()
    until(lambda: (job := queue.find("r1")) is not None and job.cancelled is not None)
    job = queue.find("r1")
    assert job is not None and job.problem is not None and job.problem[0] == "unknown_sample"
    assert b"secret" not in left(tmp_path) and "secret" not in caplog.text
    assert len(told) == 1 and len(forgetter.calls) == 1
    queue.put("r1", IDS[:2], [])  # what was wrong may have been put right
    until(lambda: queue.find("r1") is None)
    assert len(forgetter.calls) == 2


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


def test_a_full_disk_accepts_nothing(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Spool, "put", full)
    with pytest.raises(Problem) as refused:
        queue.put("r1", IDS, [])
    assert refused.value.code == "unavailable" and queue.find("r1") is None


def test_two_processes_over_one_folder_do_a_job_once(
    forgetter: Forgetter, told: list[Job], tmp_path: Path
) -> None:
    one, two = made(tmp_path, forgetter, told), made(tmp_path, forgetter, told)
    one.put("r0", IDS, [])
    one.start()
    two.start()
    for number in range(1, 6):
        (one, two)[number % 2].put(f"r{number}", IDS, [])
    until(lambda: not any(one.find(f"r{number}") for number in range(6)))
    one.close()
    two.put("r6", IDS, [])  # the other takes over
    until(lambda: two.find("r6") is None)
    two.close()
    assert sorted(call[2] for call in forgetter.calls) == [f"r{number}" for number in range(7)]
