"""Answers under way in other processes on one SQLite file: deletions wait for them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from s3t.audit.audit import audit
from s3t.errors import UnavailableError
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.serving.generation.completion import Completion, TextGenerator
from s3t.serving.predictor import Predictor
from s3t.serving.readers import Readers
from tests.conftest import Run
from tests.support.waiting import until

ROWS = ["person 3 says 24", "person 5 says 40"]
PATIENCE = 60.0


def _read(run: Path, what: str, pipe: Connection) -> None:
    """What a reader's process does."""
    plain = Predictor.predictions

    def slowly(model: Predictor, ensemble: Any, rows: Any, view: int) -> Any:
        pipe.send(f"computes on {view}")
        if view == 0:
            pipe.recv()
        return plain(model, ensemble, rows, view)

    model = S3T.load(run)
    if what == "hold":
        view = model.predict(ROWS)[0].view
        with model.serving.hold(view) as good:
            pipe.send(f"holds {good}")
            pipe.recv()
    else:
        Predictor.predictions = slowly  # type: ignore[method-assign]
        pipe.send(f"answered {model.predict(ROWS)[0].view}")


class Reader:
    """A process that computes an answer, or holds one while it is sent, until it is told to go on;
    at view 0 alone. It is forked, since torch would take seconds to import."""

    def __init__(self, run: Path, what: str) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, there = context.Pipe()
        self.process = context.Process(target=_read, args=(run, what, there), daemon=True)
        self.process.start()

    def line(self) -> str:
        assert self._pipe.poll(PATIENCE), "the reader says nothing"
        return str(self._pipe.recv())

    def go_on(self) -> None:
        self._pipe.send("go on")


@contextmanager
def reading(run: Path, what: str = "answer") -> Iterator[Reader]:
    """Begin this before the run is loaded here: a fork leaves threads and locks behind."""
    reader = Reader(run, what)
    try:
        yield reader
    finally:
        reader.process.kill()
        reader.process.join()


@pytest.fixture
def service(small_run: RunDir) -> Iterator[S3T]:
    with S3T.load(small_run.root) as opened:
        yield opened


# ── processes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("what", ["answer", "hold"])
def test_the_command_line_waits_for_an_answer_of_another_process(
    small_run: RunDir, what: str, s3t: Run
) -> None:
    root = small_run.root
    with (
        reading(root, what) as reader,
        small_run.ledger() as ledger,
        ThreadPoolExecutor(1) as threads,
    ):
        assert reader.line() == ("computes on 0" if what == "answer" else "holds True")
        command = threads.submit(s3t, "deactivate", root, "--subjects", "p03", "--json")
        until(lambda: ledger.view() == 1)
        time.sleep(0.2)
        assert not command.done(), "it has returned while the other process is at work"
        assert ledger.receipts(1)[0].effective_at is None, "told too early"
        reader.go_on()
        said = command.result(PATIENCE)
        assert said.code == 0, said.err
        if what == "answer":  # that of view 0 was thrown away
            assert [reader.line(), reader.line()] == ["computes on 1", "answered 1"]
    receipt = json.loads(said.out)
    assert receipt["effective_at"] > receipt["accepted_at"] and receipt["seconds"] > 0.2


@pytest.mark.slow
def test_a_reader_that_is_killed_holds_nothing_up(small_run: RunDir) -> None:
    with reading(small_run.root) as reader, S3T.load(small_run.root) as service:
        assert reader.line() == "computes on 0"
        thread = threading.Timer(0.3, reader.process.kill)
        thread.start()
        receipt = service.deactivate(subjects=["p03"])
        assert receipt.effective_at is not None and 0.1 < receipt.seconds < 5
        thread.join()


@pytest.mark.slow
def test_a_reader_that_hangs_leaves_a_deletion_durable_and_not_yet_effective(
    small_run: RunDir, s3t: Run, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_run.config_path
    text = config.read_text(encoding="utf-8")
    assert "  timeout: 30.0\n" in text
    config.write_text(text.replace("  timeout: 30.0\n", "  timeout: 0.2\n"), encoding="utf-8")
    with reading(small_run.root) as reader, S3T.load(small_run.root) as service:
        assert reader.line() == "computes on 0"
        assert reader.process.pid is not None
        os.kill(reader.process.pid, signal.SIGSTOP)
        receipt = service.deactivate(subjects=["p03"], request_id="one")
        assert receipt.effective_at is None and receipt.accepted_at is not None
        assert 0.2 <= receipt.seconds < 5
        assert service.receipt("one").effective_at is None
        assert service.deactivate(subjects=["p03"], request_id="one").effective_at is None
        caplog.clear()
        told = s3t("deactivate", small_run.root, "--subjects", "p05")
        assert told.code == 0 and "not yet effective" in told.out
        assert "fuser" in caplog.text
        reader.process.kill()
        reader.process.join()
        shown = s3t("receipt", small_run.root, "one", "--json")
        assert json.loads(shown.out)["effective_at"] is not None
        with small_run.ledger() as ledger:
            assert ledger.replicas.pending() == [], "that look has settled the other one too"


# ── within a process ─────────────────────────────────────────────────────────────────────────


def test_two_services_of_one_process_wait_for_each_other(service: S3T) -> None:
    with S3T.load(service.root) as other:
        view = other.predict(ROWS)[0].view
        done = threading.Event()

        def delete() -> None:
            service.deactivate(subjects=["p03"])
            done.set()

        thread = threading.Thread(target=delete)
        with other.serving.hold(view) as good:
            assert good
            thread.start()
            assert not done.wait(0.2)
            assert service.ledger.receipts()[0].effective_at is None, "told too early"
            assert service.deactivate(subjects=["p05"], dry_run=True).view == view + 2
        assert done.wait(PATIENCE)
        thread.join()


def test_several_deletions_wait_for_one_answer(service: S3T) -> None:
    with S3T.load(service.root) as other:
        view = other.predict(ROWS)[0].view
        found: list[str | None] = []

        def delete(person: str) -> None:
            with S3T.load(service.root) as one:
                found.append(one.deactivate(subjects=[person]).effective_at)

        threads = [threading.Thread(target=delete, args=(f"p{n:02d}",)) for n in (3, 5, 7)]
        with other.serving.hold(view) as good:
            assert good
            for thread in threads:
                thread.start()
            until(lambda: other.ledger.view() == view + 3)
            time.sleep(0.1)
            assert found == []
        for thread in threads:
            thread.join(PATIENCE)
        assert len(found) == 3 and None not in found


def test_with_a_lease_no_lock_is_held(service: S3T) -> None:
    service.predict(ROWS)
    service.join(lease=PATIENCE)
    view = service.predict(ROWS)[0].view
    with service.serving.hold(view) as good:
        assert good and not Readers.of(service.ledger).behind(view + 1)  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_file_is_part_of_a_run(service: S3T) -> None:
    service.predict(ROWS)
    service.deactivate(subjects=["p03"])
    path = service.root / "ledger.db-readers"
    assert path.read_bytes() == b""
    purge(RunDir(service.root))
    assert path.exists() and audit(service.root).holds


def test_a_reader_that_cannot_be_told_of_gives_no_answer(
    service: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.predict(ROWS)
    path = Path(f"{os.path.realpath(service.root)}/ledger.db-readers")
    path.unlink()
    path.mkdir()
    with pytest.raises(UnavailableError, match="cannot be locked"):
        service.predict(ROWS)
    path.rmdir()
    assert service.predict(ROWS)[0].view == 0


def test_a_text_under_way_is_given_up_for_a_deletion_elsewhere(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion waits for a token, not for the text."""
    plain, views, threads = TextGenerator.completions, [], []

    def completions(*arguments: Any) -> list[Completion]:
        *rest, view, spoilt = arguments

        def looked() -> bool:
            views.append(view)
            if len(views) == 3:
                threads.append(threading.Thread(target=delete))
                threads[0].start()
                while other.status().view == 0:
                    time.sleep(0.01)
            return bool(spoilt())

        return plain(*rest, view, looked)

    def delete() -> None:
        other.deactivate(subjects=["p00", "p01", "p02", "p03"])

    monkeypatch.setattr(TextGenerator, "completions", completions)
    with S3T.load(text_run) as service, S3T.load(text_run) as other:
        (found,) = service.generate(["private"], max_new_tokens=12)
        threads[0].join(PATIENCE)
        assert not threads[0].is_alive() and other.ledger.receipts()[0].effective_at is not None
    assert found.view == 1 and views.count(0) == 3


# ── the locks ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Readers, Readers]:
    return Readers(tmp_path / "readers"), Readers(tmp_path / "readers")


def test_only_older_views_are_behind(pair: tuple[Readers, Readers]) -> None:
    one, other = pair
    assert not other.behind(10), "there is no file yet"
    one.enter(4)
    assert [other.behind(view) for view in (0, 4, 5, 2**40)] == [False, False, True, True]
    one.enter(4)
    one.leave(4)
    assert other.behind(5), "one is still under way"
    one.enter(2**40)
    one.leave(4)
    assert not other.behind(2**40) and other.behind(2**40 + 1)
    one.close()
    assert not other.behind(2**50)


def test_a_file_that_was_removed_is_made_again(pair: tuple[Readers, Readers]) -> None:
    one, other = pair
    one.enter(1)
    one.path.unlink()
    one.enter(2)
    assert other.behind(3)
    one.leave(1)
    one.leave(2)
    assert not other.behind(3)


@pytest.mark.parametrize("ends", ["child", "parent"])
def test_a_fork_takes_no_answer_over(pair: tuple[Readers, Readers], ends: str) -> None:
    one, other = pair
    one.enter(1)
    go, wait = os.pipe()[::-1]
    child = os.fork()
    if child == 0:
        one.leave(1)  # as a ``with`` does that was entered before the fork
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    if ends == "parent":
        one.leave(1)
        assert not other.behind(2), "the child holds it"
    os.close(go)
    os.waitpid(child, 0)
    os.close(wait)
    assert other.behind(2) is (ends == "child")


def test_a_process_that_is_killed_leaves_no_lock_to_its_children(
    pair: tuple[Readers, Readers],
) -> None:
    one, other = pair
    said, say = os.pipe()
    parent = os.fork()
    if parent == 0:
        one.enter(1)
        child = os.fork()
        if child == 0:
            time.sleep(PATIENCE)
            os._exit(0)
        os.write(say, str(child).encode())
        time.sleep(PATIENCE)
        os._exit(0)
    child = int(os.read(said, 20))
    try:
        assert other.behind(2)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(child, 0)
        assert other.wait(2, 5), "the child keeps it"
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(said)
        os.close(say)


def test_waiting_has_an_end(pair: tuple[Readers, Readers]) -> None:
    one, other = pair
    one.enter(1)
    began = time.monotonic()
    assert not other.wait(2, 0.1) and 0.1 <= time.monotonic() - began < 5
    one.leave(1)
    assert other.wait(2, 0)
