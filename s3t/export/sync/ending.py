"""How an engine ends with dead adapters: all at once, and none waits for another.

    each its own thread    unloaded ─► asked, and refused
    all that were refused  the base is asked the same, and answers
                           answers that were accepted before: running or waiting? until none is

Unloading alone ends nothing: engines go on with what they have accepted, and an engine behind a
balancer, or with several processes, may answer for a name that it does not list. One that is not
listed is unloaded too: a load of it that another sync has asked for may be under way, and engines
do one after the other what is asked of one name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from s3t.errors import S3TError, UnavailableError
from s3t.export.sync.engine import ServingEngine

__all__ = ["Forgotten", "end_with"]

_ASKING = 8
_PAUSE = 0.1
"""Seconds between two looks at what is under way, doubled up to the next."""
_LONGEST = 1.0


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A dead adapter with which an engine has ended.

    Attributes:
        name: of the adapter.
        target, url: of the engine.
        seconds: since it was begun with.
    """

    name: str
    target: str
    url: str
    seconds: float


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
        ended: those with which it has: they are asked alone, and only a problem is told.
        until: when to give up (``time.monotonic``).
        overtaken: whether there is another deletion, whose adapters must be unloaded first.

    Yields:
        each adapter as soon as the engine has ended with it, or with what is wrong; when overtaken
        not all of them.
    """
    answers: SimpleQueue[tuple[str, bool | BaseException]] = SimpleQueue()
    names: SimpleQueue[str] = SimpleQueue()
    for name in (*sorted(dead), *sorted(ended)):
        names.put(name)

    def work() -> None:
        while not names.empty():
            try:
                name = names.get_nowait()
            except Empty:
                return
            try:
                waited = name in {*dead, *listed} and engine.unload(name, until)
                engine.refuse(name, until)
                if waited:
                    engine.answer_base(until, f"{name} was refused, but its base does not answer")
                answers.put((name, waited))
            except UnavailableError as error:
                answers.put(
                    (name, UnavailableError(f"{name} is not known to be unloaded ({error})"))
                )
            except BaseException as error:  # whatever it is, the sync must know
                answers.put((name, error))

    for _ in range(len(dead) + min(len(ended), _ASKING)):
        Thread(target=work, daemon=True).start()  # one that never answers must not hold us
    silent, refused, pause = {*dead, *ended}, set[str](), _PAUSE
    while (silent or refused) and time.monotonic() < until:
        for name, found in _arrived(answers, 0 if refused else until - time.monotonic()):
            silent.discard(name)
            if isinstance(found, S3TError):
                yield name, found
            elif isinstance(found, BaseException):
                raise found
            elif found and name in dead:
                yield name, None
            elif name in dead:
                refused.add(name)
        if not refused:
            continue
        try:
            busy = engine.under_way(refused, until)
        except S3TError as error:
            if time.monotonic() >= until:
                break
            yield from ((name, _unseen(name, error)) for name in sorted(refused))
            refused = set()
            continue
        yield from ((name, None) for name in sorted(refused - busy))
        refused = busy
        if busy and overtaken():
            return
        if busy:
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
            pause = min(2 * pause, _LONGEST)
    for name in sorted(silent):
        yield name, UnavailableError(f"the engine has not answered for {name} in time")
    for name in sorted(refused):
        yield name, _unseen(name, "answers with it have not ended in time")


def _arrived(
    answers: SimpleQueue[tuple[str, bool | BaseException]], seconds: float
) -> Iterator[tuple[str, bool | BaseException]]:
    """What is there; the first is waited for."""
    try:
        yield answers.get(timeout=max(seconds, 0.001))
        while True:
            yield answers.get_nowait()
    except Empty:
        return


def _unseen(name: str, why: object) -> S3TError:
    kind = UnavailableError if isinstance(why, UnavailableError) else S3TError
    return kind(f"{name} is unloaded, but answers with it may still run or wait ({why})")
