"""Bits of a small run flipped one at a time, each opened as a service does, and audited.

    all bits         plan.json, config.yaml, base_head.safetensors, the ledger's lock file
    evenly spread    ledger.db, its write-ahead log with two committed deletions, node files

A flip is *found at opening* if the service refuses, or a request that it gets, with an error of its
own; *found by the audit* if it differs in anything and a claim of the audit that needs no model
does not hold; *harmless* if all that is seen and answered is as before. All else is a FAULT: a dead
node serves, a deleted sample is taken for living, another error than ours, a crash, or a hang.
Opened by processes of their own, in memory where the system has a place for that (/dev/shm), so
what is measured here is no disk.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from s3t.ledger import Deletion
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from tests.harness.damage.opening import Opening, State
from tests.harness.damage.victim import HIT, Victim

__all__ = ["AT_REST", "IN_USE", "Flip", "chosen", "flipped", "states_of"]

AT_REST, IN_USE = "at rest", "in use"
Flip = tuple[str, str, int]
"""State of the run, file below it, number of the bit."""

_SMALL = ("plan.json", "config.yaml", "base_head.safetensors", "ledger.db-lock")
_SPREAD = {"ledger.db": 20_000, "ledger.db-wal": 20_000, "nodes": 8_000}
_PROCESSES = 2
_HANG_SECONDS = 60.0


def states_of(victim: Victim) -> dict[str, State]:
    """A run whose last deletion is in the ledger's file, and one with two more in its log."""
    third = victim.delete("third")
    living, *_ = (one.sample_id for one in _left(victim.run))
    rest = State(_contents(victim.root), {"third": third}, living)
    used = victim.copy(victim.root.with_name("used"))
    opened = OpenRun(used.run)
    try:  # open, so that what it commits stays in the write-ahead log
        ids = [one.sample_id for one in _left(used.run)][:2]
        for number, one in enumerate(ids):
            delete(opened, Deletion([one], request_id=f"more {number}"))
        living = next(one.sample_id for one in _left(used.run))
        requests = {"third": third, **{f"more {number}": one for number, one in enumerate(ids)}}
        return {AT_REST: rest, IN_USE: State(_contents(used.root), requests, living)}
    finally:
        opened.close()


def flipped(
    folder: Path, states: dict[str, State], flips: Sequence[Flip], processes: int = _PROCESSES
) -> Iterator[tuple[Flip, str, str]]:
    """Make every flip, in processes of their own; yields each with the verdict, and why."""
    left = [_Hand(folder / f"copy-{number}", states, flips[number::processes])
            for number in range(processes)]  # fmt: skip
    try:
        while left := [hand for hand in left if hand.left]:
            ready = wait([hand.pipe for hand in left], timeout=1.0)
            for hand in left:
                if hand.pipe in ready or hand.hangs:
                    yield hand.next()
    finally:
        for hand in left:
            hand.stop()


@dataclass
class _Hand:
    """A process that makes flips; another one in its place if it dies or hangs.

    Attributes:
        folder: for its copies of the run.
        left: flips to make, the one under way first.
    """

    folder: Path
    states: dict[str, State]
    left: Sequence[Flip]
    heard: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._start()

    @property
    def hangs(self) -> bool:
        """Whether the flip under way takes too long."""
        return time.monotonic() > self.heard + _HANG_SECONDS

    def next(self) -> tuple[Flip, str, str]:
        """The verdict that has come, or that it died or hangs."""
        flip, self.left = self.left[0], self.left[1:]
        try:
            verdict, why = self.pipe.recv() if self.pipe.poll() else ("FAULT", "it hangs")
        except EOFError:
            self._process.join()
            verdict, why = "FAULT", f"the process died ({self._process.exitcode})"
        if verdict == "FAULT" and why.startswith(("it hangs", "the process died")):
            self.stop()
            self._start()
        self.heard = time.monotonic()
        if not self.left:
            self.stop()
        return flip, verdict, why

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self.pipe.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (self.folder, self.states, list(self.left), theirs)
        self._process = context.Process(target=_flip_all, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.heard = time.monotonic() + _HANG_SECONDS  # for its imports


def _flip_all(
    folder: Path, states: dict[str, State], flips: Sequence[Flip], pipe: Connection
) -> None:
    """What a process does."""
    import logging

    import torch

    torch.set_num_threads(1)
    logging.disable()
    openings = {name: Opening(folder / name.replace(" ", "-"), states[name]) for name in states}
    for state, name, _ in flips:
        openings[state].sound(name)  # torch and transformers are loaded before the first flip
    for state, name, bit in flips:
        try:
            with _limited(_HANG_SECONDS / 2):
                verdict = openings[state].flip(name, bit)
        except Exception as error:
            verdict = "FAULT", f"{type(error).__name__}: {error}"
        pipe.send(verdict)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def chosen(states: dict[str, State], fewer: int) -> Iterator[Flip]:
    """The flips: all bits of small files, others evenly; every ``fewer``th of them."""
    rest, used = states[AT_REST].files, states[IN_USE].files
    for name in _SMALL:
        for bit in range(0, 8 * len(rest[name]), fewer | 1):
            yield AT_REST, name, bit
    nodes = [name for name in sorted(rest) if name.startswith("nodes/")]
    for name in ("ledger.db", *nodes):
        count = _SPREAD.get(name, _SPREAD["nodes"] // len(nodes)) // fewer
        yield from ((AT_REST, name, bit) for bit in _evenly(len(rest[name]), count))
    log = "ledger.db-wal"
    yield from ((IN_USE, log, bit) for bit in _evenly(len(used[log]), _SPREAD[log] // fewer))


def _evenly(size: int, count: int) -> Iterator[int]:
    """Bits spread evenly over so many bytes, and over the eight places in a byte."""
    for number in range(min(count, 8 * size)):
        yield number * size // count * 8 + number % 8


def _left(run: RunDir) -> list[Any]:
    """Samples left, those of the slot that is hit already first."""
    with run.ledger() as ledger:
        left = [one for one in ledger.samples() if not one.deleted]
    return sorted(left, key=lambda one: (one.shard, one.slice) == HIT)


def _contents(root: Path) -> dict[str, bytes]:
    skipped = {"ledger.db-shm", ".training.lock"}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in skipped
    }
