"""Ends an engine's use of dead adapters: all at the same time, so that none waits for another.

    each in a thread       unloaded ─► asked for an answer, which must be refused
    all that were refused  the base is asked the same, and must answer
                           then: do answers with them still run or wait? until none does

Unloading alone ends nothing: engines complete the requests that they have accepted, and an engine
behind a balancer, or with several processes, may answer for a name that it does not list. An
adapter that is not listed is unloaded too, because a load that another sync has asked for may be
under way; engines handle the requests for one name one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from s3t.errors import S3TError, UnavailableError
from s3t.export.sync.engine import ServingEngine

__all__ = ["EndedAdapter", "end_with"]

_ASKING = 8
_PAUSE = 0.1
"""Seconds between two looks at what is under way, doubled up to the next."""
_LONGEST = 1.0


@dataclass(frozen=True, slots=True)
class EndedAdapter:
    """A dead adapter with which an engine has ended.

    Attributes:
        name: of the adapter.
        target, url: of the engine.
        seconds: since the sync began to end it.
    """

    name: str
    target: str
    url: str
    seconds: float


_Answer = tuple[str, bool | BaseException]
"""A name, and whether the engine has waited for the answers with it, or what went wrong."""


def end_with(
    engine: ServingEngine,
    listed: Collection[str],
    dead: Collection[str],
    ended: Collection[str],
    until: float,
    overtaken: Callable[[], bool],
) -> Iterator[tuple[str, S3TError | None]]:
    """Have an engine end with dead adapters.

    Args:
        engine: the engine.
        listed: those that it lists.
        dead: those with which it has not been seen to end; all that are listed among them.
        ended: those with which it has: they are only asked for an answer, and only a problem is
            yielded.
        until: when to give up (``time.monotonic``).
        overtaken: whether there is another deletion, whose adapters must be unloaded first.

    Yields:
        each adapter as soon as the engine has ended with it, or with what is wrong; when overtaken
        not all of them.
    """
    ending = _Ending(engine, listed, dead, ended, until)
    while ending.open:
        yield from ending.take_answers()
        yield from ending.look()
        if ending.busy and overtaken():
            return
        ending.pause()
    yield from ending.given_up()


class _Ending:
    """What an engine has been seen to do with dead adapters so far.

    Arguments as of ``end_with``.

    Attributes:
        busy: those that were refused, and with which answers ran or waited at the last look.
    """

    def __init__(
        self,
        engine: ServingEngine,
        listed: Collection[str],
        dead: Collection[str],
        ended: Collection[str],
        until: float,
    ) -> None:
        self._engine, self._until = engine, until
        self._dead, self._unload = {*dead}, {*dead, *listed}
        self._silent, self._refused = {*dead, *ended}, set[str]()
        self.busy: set[str] = set()
        self._seconds = _PAUSE
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._names: SimpleQueue[str] = SimpleQueue()
        for name in (*sorted(dead), *sorted(ended)):
            self._names.put(name)
        for _ in range(len(dead) + min(len(ended), _ASKING)):
            # a daemon, because an engine that never answers must not keep this process alive
            Thread(target=self._work, daemon=True).start()

    @property
    def open(self) -> bool:
        """Whether there is anything to wait for, and time for it."""
        return bool(self._silent or self._refused) and time.monotonic() < self._until

    def take_answers(self) -> Iterator[tuple[str, S3TError | None]]:
        """What has arrived; waited for, unless there is something to look at."""
        seconds = 0 if self._refused else self._until - time.monotonic()
        for name, found in _arrived(self._answers, seconds):
            self._silent.discard(name)
            if isinstance(found, S3TError):
                yield name, found
            elif isinstance(found, BaseException):
                raise found
            elif found and name in self._dead:
                yield name, None
            elif name in self._dead:
                self._refused.add(name)

    def look(self) -> Iterator[tuple[str, S3TError | None]]:
        """See whether answers with those that were refused have ended."""
        self.busy = set()
        if not self._refused:
            return
        try:
            busy = self._engine.under_way(self._refused, self._until)
        except S3TError as error:
            if time.monotonic() < self._until:  # else ``given_up`` has it
                yield from ((name, _unseen(name, error)) for name in sorted(self._refused))
                self._refused = set()
            return
        yield from ((name, None) for name in sorted(self._refused - busy))
        self._refused = self.busy = busy

    def pause(self) -> None:
        """Wait before the next look, each time for longer."""
        if self.busy:
            time.sleep(max(0.0, min(self._seconds, self._until - time.monotonic())))
            self._seconds = min(2 * self._seconds, _LONGEST)

    def given_up(self) -> Iterator[tuple[str, S3TError]]:
        """Those with which the engine was not seen to end in time."""
        for name in sorted(self._silent):
            yield name, UnavailableError(f"the engine has not answered for {name} in time")
        for name in sorted(self._refused):
            yield name, _unseen(name, "answers with it have not ended in time")

    def _work(self) -> None:
        """Have one name after another unloaded and refused."""
        while not self._names.empty():
            try:
                name = self._names.get_nowait()
            except Empty:
                return
            try:
                self._answers.put((name, self._unloaded(name)))
            except UnavailableError as error:
                said = UnavailableError(f"{name} is not known to be unloaded ({error})")
                self._answers.put((name, said))
            except BaseException as error:  # whatever it is, the sync must know
                self._answers.put((name, error))

    def _unloaded(self, name: str) -> bool:
        """Whether the engine itself has waited for the answers with an adapter, now refused."""
        waited = name in self._unload and self._engine.unload(name, self._until)
        self._engine.refuse(name, self._until)
        if waited:
            words = f"{name} was refused, but its base does not answer"
            self._engine.answer_base(self._until, words)
        return waited


def _arrived(answers: SimpleQueue[_Answer], seconds: float) -> Iterator[_Answer]:
    """What is in the queue; the first is waited for, for so many seconds."""
    try:
        yield answers.get(timeout=max(seconds, 0.001))
        while True:
            yield answers.get_nowait()
    except Empty:
        return


def _unseen(name: str, why: object) -> S3TError:
    kind = UnavailableError if isinstance(why, UnavailableError) else S3TError
    return kind(f"{name} is unloaded, but answers with it may still run or wait ({why})")
