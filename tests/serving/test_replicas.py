"""Several processes serve one run: leases, views left behind, and deletions that wait for both.

Here as several services in one process, on SQLite (with leases as on PostgreSQL) and on PostgreSQL;
that a replica is cut off from the ledger is played by what it calls of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import IntegrityError, UnavailableError
from s3t.ledger import Ledger, generations
from s3t.ledger import replicas as table
from s3t.ledger.log import chain
from s3t.ledger.replicas import Lease, Observer, ReplicaRow
from s3t.run import RunDir
from s3t.service import S3T
from tests.support.waiting import until

LEASE = 60.0
"""So long that no test waits for its end, or loses it on a busy machine."""

SHORT = 1.5
"""Of a test that waits for its end."""

ROWS = ["person 3 says 24", "person 5 says 40"]

Join = Callable[..., S3T]


@pytest.fixture
def run(either_run: RunDir) -> RunDir:
    return either_run


@pytest.fixture
def join(run: RunDir) -> Iterator[Join]:
    with ExitStack() as stack:

        def joined(name: str = "one", lease: float = LEASE) -> S3T:
            service = stack.enter_context(S3T.load(run.root))
            service.join(name, lease)
            return service

        yield joined


@pytest.fixture
def service(run: RunDir) -> Iterator[S3T]:
    """A service that is no replica."""
    with S3T.load(run.root) as service:
        yield service


def cut_off(service: S3T, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let a replica no longer reach the ledger; returns what lets it again."""
    ledger, kept = service.ledger, {}

    def fail(*arguments: Any, **more: Any) -> Any:
        raise UnavailableError("cut off")

    for owner, name in (
        (ledger, "view"),
        (ledger.plans, "in_force"),
        (ledger, "watch"),
        (ledger, "delete"),
        *((ledger.replicas, name) for name in ("beat", "left", "all", "join", "pending")),
    ):
        kept[owner, name] = getattr(owner, name)
        monkeypatch.setattr(owner, name, fail)

    def back() -> None:
        for (owner, name), method in kept.items():
            monkeypatch.setattr(owner, name, method)

    return back


wait_for = partial(until, seconds=10)


def test_a_replica_has_a_seat_until_it_closes(join: Join, service: S3T) -> None:
    one, two = join("one"), join("two")
    assert [found.name for found in service.ledger.replicas.all()] == ["one", "two"]
    assert 0 < (one.serving.lease_left or 0) <= LEASE and one.serving.readiness() is None
    two.close()
    assert [found.name for found in service.ledger.replicas.all()] == ["one"]


def test_without_a_lease_nothing_is_written_on_sqlite(small_run: RunDir) -> None:
    with S3T.load(small_run.root) as service:
        service.join()
        assert service.ledger.replicas.all() == [] and service.serving.lease_left is None
        assert service.predict(ROWS)[0].view == 0


def test_once_a_deletion_is_acknowledged_every_replica_has_left_the_old_view(
    join: Join, service: S3T
) -> None:
    replicas = [join("one"), join("two")]
    for replica in replicas:
        assert replica.predict(ROWS)[0].view == 0
    for number, person in enumerate(("p03", "p05", "p07"), start=1):
        receipt = service.deactivate(subjects=[person])
        assert receipt.effective_at is not None and receipt.accepted_at is not None
        assert receipt.accepted_at <= receipt.effective_at
        assert {one.view for one in service.ledger.replicas.all()} == {number}
        # no look at the ledger: what they serve was swapped before the acknowledgement
        assert [one.predict(ROWS)[0].view for one in replicas] == [number, number]


def test_a_replica_deletes_and_waits_for_the_others(join: Join) -> None:
    one, two = join("one"), join("two")
    receipt = one.deactivate(subjects=["p03"])
    assert receipt.effective_at is not None and receipt.seconds < LEASE / 2
    assert two.predict(ROWS)[0].view == receipt.view
    assert two.receipt(receipt.request_id).effective_at == receipt.effective_at


def test_a_deletion_waits_for_what_is_being_sent(join: Join, service: S3T) -> None:
    replica, done = join(), threading.Event()
    view = replica.predict(ROWS)[0].view

    def delete() -> None:
        service.deactivate(subjects=["p03"])
        done.set()

    thread = threading.Thread(target=delete)
    with replica.serving.hold(view) as good:
        assert good
        thread.start()
        wait_for(lambda: replica.predict(ROWS)[0].view == view + 1)
        assert not done.wait(0.2)
    assert done.wait(5)
    thread.join()
    with replica.serving.hold(view) as good:
        assert not good, "what served at that view is dead"
    with replica.serving.hold(view + 1) as good:
        assert good


def test_hold_without_a_lease(service: S3T) -> None:
    view = service.predict(ROWS)[0].view
    with service.serving.hold(view) as good:
        assert good
    with S3T.load(service.root) as other:
        other.deactivate(subjects=["p03"])
    with service.serving.hold(view) as good:
        assert not good


def test_a_replica_that_is_cut_off_stops_and_comes_back(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = join(lease=SHORT)
    replica.predict(ROWS)
    back = cut_off(replica, monkeypatch)
    assert replica.predict(ROWS)[0].view == 0, "its lease still runs"
    began = time.monotonic()
    receipt = service.deactivate(subjects=["p03"])
    assert receipt.effective_at is not None
    assert SHORT / 2 < time.monotonic() - began < 10 * SHORT
    with pytest.raises(UnavailableError, match=f"for {SHORT} s"):
        replica.predict(ROWS)
    with replica.serving.hold(0) as good:
        assert not good
    assert replica.serving.readiness() is not None and service.ledger.replicas.all() == []
    back()
    wait_for(lambda: replica.serving.readiness() is None)
    assert replica.predict(ROWS)[0].view == receipt.view
    assert [one.view for one in service.ledger.replicas.all()] == [receipt.view]


def test_cut_off_it_deletes_nothing(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = join()
    back = cut_off(replica, monkeypatch)
    with pytest.raises(UnavailableError):
        replica.deactivate(subjects=["p03"])
    back()
    assert service.status().deleted == 0


def test_a_deletion_that_cannot_be_seen_to_be_effective_is_settled_later(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise UnavailableError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(service.ledger.replicas, "behind", fail)
        receipt = service.deactivate(subjects=["p03"], request_id="one")
    assert receipt.accepted_at is not None and receipt.effective_at is None
    # from the ledger itself: who asks the service on a file looks, and settles it
    assert service.ledger.receipt("one").effective_at is None
    join()
    wait_for(lambda: service.receipt("one").effective_at is not None)


def test_a_replica_that_cannot_build_the_new_view_holds_up_no_deletion(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = join()
    serving = replica.serving

    def fail(*arguments: Any) -> Any:
        raise IntegrityError("no view can be built")

    with monkeypatch.context() as patched:
        patched.setattr(serving, "_build", fail)
        receipt = service.deactivate(subjects=["p03"])
        assert receipt.effective_at is not None
        with pytest.raises(IntegrityError):
            replica.predict(ROWS)
        assert replica.serving.readiness() == "loading"
    assert replica.predict(ROWS)[0].view == receipt.view


def test_a_replica_that_fails_in_an_unforeseen_way_drops_the_old_view_and_goes_on_following(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replica = join()

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("out of memory at s030")

    with monkeypatch.context() as patched:
        patched.setattr(replica.serving, "_build", fail)
        assert service.deactivate(subjects=["p03"]).effective_at is not None
        assert replica.deactivate(subjects=["p04"]).effective_at is not None
        with pytest.raises(RuntimeError):
            replica.predict(ROWS)
    receipt = service.deactivate(subjects=["p05"])
    assert receipt.effective_at is not None and replica.predict(ROWS)[0].view == receipt.view
    assert "RuntimeError" in caplog.text and "s030" not in caplog.text


@pytest.mark.parametrize("name", ["beat", "left"])
def test_what_keeps_a_seat_survives_what_nobody_foresaw(
    join: Join, service: S3T, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    replica = join(lease=SHORT)
    with monkeypatch.context() as patched:
        patched.setattr(replica._opened.ledger.replicas, name, lambda *_: 1 / 0)
        if name == "left":
            threading.Timer(2 * SHORT, patched.undo).start()
        else:
            wait_for(lambda: replica.serving.readiness() is not None)
            patched.undo()
        assert service.deactivate(subjects=["p03"]).effective_at is not None
    wait_for(lambda: replica.serving.readiness() is None)
    assert service.deactivate(subjects=["p04"]).effective_at is not None


def test_a_ledger_that_has_gone_back_is_not_served(run: RunDir, join: Join) -> None:
    replica = join()
    with S3T.load(run.root) as looking:
        looking.predict(ROWS)
        looking.deactivate(subjects=["p03"])
        looking.predict(ROWS)
        replica.predict(ROWS)
        with run.ledger() as ledger, ledger._database.transaction(writes=True) as connection:
            connection.exec_driver_sql("DELETE FROM log WHERE kind IN ('deletion', 'effective')")
            connection.exec_driver_sql("UPDATE run SET value = '0' WHERE key = 'view'")
            ledger._database.tell(connection)
        with pytest.raises(IntegrityError, match="gone back"):
            looking.predict(ROWS)
        wait_for(lambda: replica.serving.readiness() is not None)
        with pytest.raises(IntegrityError, match="gone back"):
            replica.predict(ROWS)


def test_answers_under_way_on_all_replicas_while_persons_are_forgotten(join: Join) -> None:
    """The check of the load test, in small: what began after an acknowledgement has its view."""
    replicas, stop = [join("one"), join("two")], threading.Event()
    problems: list[str] = []
    acknowledged = [0]

    def ask(replica: S3T) -> None:
        while not stop.is_set():
            floor = acknowledged[0]
            answer = replica.predict(ROWS)[0]
            if answer.view < floor:
                problems.append(f"view {answer.view} after {floor} was acknowledged")

    threads = [threading.Thread(target=ask, args=(one,)) for one in replicas for _ in range(2)]
    for thread in threads:
        thread.start()
    for person in (3, 5, 7, 9, 11):
        receipt = replicas[person % 2].deactivate(subjects=[f"p{person:02d}"])
        acknowledged[0] = receipt.view
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems and acknowledged == [5]


class TestObserver:
    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(table, "clock", lambda: now[0])
        return now

    @pytest.fixture
    def ledger(self, run: RunDir) -> Iterator[Ledger]:
        with run.ledger() as ledger:
            yield ledger

    def test_it_counts_a_whole_lease_from_when_it_first_saw_the_beat(
        self, now: list[float], ledger: Ledger
    ) -> None:
        seat = ledger.replicas.join("one", 5.0)
        observer = Observer(ledger.replicas)

        def left() -> list[ReplicaRow]:
            return observer.look(ledger.replicas.behind(99))

        assert left() == [seat]
        now[0] += 4.9
        assert left() == [seat]
        assert ledger.replicas.beat(seat.replica)
        now[0] += 4.9
        assert [one.beats for one in left()] == [1]
        now[0] += 4.9
        assert [one.beats for one in left()] == [1]
        now[0] += 0.2
        assert left() == [] and ledger.replicas.all() == []
        assert not ledger.replicas.beat(seat.replica), "a seat that was struck out is lost"

    def test_one_that_beats_while_it_is_struck_out_stays(
        self, now: list[float], ledger: Ledger
    ) -> None:
        seat = ledger.replicas.join("one", 5.0)
        ledger.replicas.beat(seat.replica)
        assert not ledger.replicas.strike(seat)
        assert ledger.replicas.strike(ledger.replicas.all()[0])

    def test_a_replica_joins_with_the_view_of_that_moment(
        self, ledger: Ledger, service: S3T
    ) -> None:
        receipt = service.deactivate(subjects=["p03"])
        assert ledger.replicas.join("late", 5.0).view == receipt.view
        assert ledger.replicas.behind(receipt.view) == []

    def test_what_was_left_does_not_come_back(self, ledger: Ledger) -> None:
        seat = ledger.replicas.join("one", 5.0)
        ledger.replicas.left(seat.replica, 7)
        ledger.replicas.left(seat.replica, 3)
        assert [one.view for one in ledger.replicas.all()] == [7]


class TestStreams:
    @pytest.fixture
    def texts(self, text_run: Path) -> Iterator[S3T]:
        with S3T.load(text_run) as service:
            yield service

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_pieces_make_the_text(self, texts: S3T, temperature: float) -> None:
        how = {"max_new_tokens": 10, "temperature": temperature, "seed": 3}
        whole = texts.generate(["private line"], **how)[0]
        pieces = list(texts.stream("private line", **how))
        assert "".join(piece.text for piece in pieces) == whole.completion
        assert {piece.view for piece in pieces} == {whole.view}

    def test_it_goes_on_with_what_is_left(self, texts: S3T) -> None:
        pieces = texts.stream("private line", max_new_tokens=10)
        views = [next(pieces).view, next(pieces).view]
        texts.deactivate(["t05"])
        rest = [piece.view for piece in pieces]
        assert views == [0, 0] and rest and set(rest) == {1}

    def test_a_deletion_does_not_wait_for_whole_texts(
        self, texts: S3T, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A text on a view that is hit is begun again at its next token."""
        from s3t.serving.generation.completion import TextGenerator

        seen, original = [], TextGenerator._next

        def watched(self: TextGenerator, *arguments: Any) -> Any:
            seen.append(texts.serving._views.current.view)  # type: ignore[union-attr]
            if len(seen) == 3:
                deleting.start()
                wait_for(lambda: texts.serving._views.current.view == 1)  # type: ignore[union-attr]
            return original(self, *arguments)

        deleting = threading.Thread(target=texts.deactivate, args=(["t05"],))
        monkeypatch.setattr(TextGenerator, "_next", watched)
        found = texts.generate(["private line"], max_new_tokens=6)[0]
        deleting.join(5)
        assert found.view == 1 and seen[:4] == [0, 0, 0, 1] and len(seen) <= 3 + 6


class Played:
    """What ``ReplicaLease`` does, step by step, on a clock of its own speed."""

    def __init__(self, speed: float) -> None:
        self.speed, self.lease = speed, Lease(10.0)
        self.view, self.name, self.asked = 0, "", 0.0


class Play:
    """Two replicas, a deletion and who waits for it; their steps in any order, at any moment."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.speed, self.waiting, self.effective = 1000.0, 1.0, 0, 0
        monkeypatch.setattr(table, "clock", lambda: self.now * self.speed)
        self.ledger = Ledger.open(path, create=True)
        self.table, self.read = self.ledger.replicas, list[ReplicaRow]()
        self.replicas = [Played(1.05), Played(0.96)]
        for replica in self.replicas:
            self.sit(replica)
        self.observer = Observer(self.table)

    def sit(self, replica: Played) -> None:
        self.speed = replica.speed
        asked, joined = table.clock(), self.table.join("one", replica.lease.seconds)
        replica.name, replica.view = joined.replica, self.ledger.view()
        replica.lease.renew(asked)

    def send_beat(self, replica: Played) -> None:
        self.speed = replica.speed
        replica.asked = table.clock()

    def take_beat(self, replica: Played) -> None:
        """One that was sent at any time before."""
        self.speed = replica.speed
        if self.table.beat(replica.name):
            replica.lease.renew(replica.asked)
        else:
            replica.lease.end()
            self.sit(replica)

    def follow(self, replica: Played) -> None:
        replica.view = self.ledger.view()
        self.table.left(replica.name, replica.view)

    def delete(self) -> None:
        with self.ledger._reader.transaction(writes=True) as (connection, log):
            self.waiting = generations.add_view(connection, log)
            body = {"view": self.waiting, "nodes": 0}
            chain.append(connection, "announced", chain.now(), body, None)

    def look(self) -> None:
        self.read = self.table.behind(self.waiting)

    def judge(self) -> None:
        """What was read at any time before; ``settle`` reads once more that nobody is behind."""
        self.speed = 1.04
        if not self.observer.look(self.read) and not self.table.behind(self.waiting):
            self.effective = self.waiting

    def is_kept(self) -> bool:
        """Whether no replica may answer from a view that an effective deletion has left behind."""
        for replica in self.replicas:
            self.speed = replica.speed
            if replica.lease.left > 0 and replica.view < self.effective:
                return False
        return True


STEPS = (
    *(("wait", "look", "judge") * 3),
    *(("send_beat", "take_beat") * 2),
    *("delete", "follow"),
)


def test_no_order_of_steps_and_no_clock_breaks_the_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    effective = 0
    for seed in range(16):
        chance = random.Random(seed)
        play = Play(tmp_path / f"{seed}.db", monkeypatch)
        done = []
        for _ in range(200):
            step = chance.choice(STEPS)
            who = chance.choice(play.replicas)
            done.append(step)
            if step == "wait":
                play.now += chance.choice((0.5, 3.0, 9.0, 10.5))
            elif step in ("send_beat", "take_beat", "follow"):
                getattr(play, step)(who)
            else:
                getattr(play, step)()
            assert play.is_kept(), f"seed {seed}: {' '.join(done[-30:])}"
        effective += play.effective > 0
        play.ledger.close()
    assert effective == 16, "deletions do get through"
