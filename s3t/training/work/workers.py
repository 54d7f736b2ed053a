"""The workers of a process: this process itself, or several with one torch thread each.

    scheduler ── start(worker, unit) ──► worker ── trains, publishes ──► store
              ◄─ finished: trained, or lost with its worker ─┘

A worker that dies gives its unit back, and the others go on. It is not started again: what killed
it may be that there were too many.

Invariant: which worker trains a node, and with which other nodes, changes no byte of it. So units
are handed out in any order, and there may be any number of workers.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from typing import Any, Protocol

import torch

from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.system.pinned import Arithmetic, pinned_environment, rebuilt
from s3t.system.progress import MODE
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import load_prepared
from s3t.training.work.worker_state import WorkerState
from s3t.types import NodeKey

__all__ = [
    "Finished",
    "Inline",
    "OnStep",
    "SingleProcess",
    "Subprocesses",
    "UnitTrainer",
    "Workers",
    "worker_count",
]

_log = logging.getLogger(__name__)

_DEATHS = 2
"""Workers that may die over the same node, before it is the node's fault."""

_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Huge pages for what a step allocates, and none given back between steps: where glibc can, 5 to
10 % of a small model's step."""

OnStep = Callable[[int], None]
"""Told how many node steps were made since it was last told."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A unit that its worker has no longer.

    Attributes:
        unit: keys of the nodes.
        lost: whether the worker has died, so that they may not be trained.
    """

    unit: tuple[NodeKey, ...]
    lost: bool = False


class Workers(Protocol):
    """What a scheduler hands units of nodes to."""

    size: int
    """How many there are."""

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """Load a prepared run; returns how many nodes are worth stacking in a unit.

        Args:
            run: the run.
            inputs: what this process has read of it already.
            on_step: told of the steps that are made.
        """

    def idle(self) -> list[int]:
        """Numbers of the workers that have no unit."""

    def start(self, worker: int, unit: Sequence[NodeKey]) -> None:
        """Have an idle worker train nodes of one stage, whose parents are published."""

    def finished(self, seconds: float) -> list[Finished]:
        """Wait until something happens, and return the units that are finished.

        Args:
            seconds: to wait at most, if a worker is idle.

        Raises:
            S3TError: what a worker has met; or no worker is left.
        """

    def close(self) -> None:
        """Free what the workers hold."""


def worker_count(wanted: str | int, device: torch.device, processes: int) -> int:
    """Workers of this process: as asked, or its part of the machine's cores on a CPU."""
    if device.type != "cpu":
        return 1
    if wanted != "auto":
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // processes)


class UnitTrainer(Protocol):
    """What trains a unit in the process that schedules: it alone, or with the others of a group."""

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """See ``Workers.open``."""

    def train(self, unit: Sequence[NodeKey]) -> None:
        """Train nodes of one stage, and publish them."""

    def close(self) -> None:
        """See ``Workers.close``."""


class Inline:
    """One worker, in this process: it keeps the unit that ``finished`` trains."""

    size = 1

    def __init__(self, trainer: UnitTrainer) -> None:
        self._trainer = trainer
        self._unit: tuple[NodeKey, ...] = ()

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """Load the run here."""
        return self._trainer.open(run, inputs, on_step)

    def idle(self) -> list[int]:
        """The worker, unless it has a unit."""
        return [] if self._unit else [0]

    def start(self, worker: int, unit: Sequence[NodeKey]) -> None:
        """Take a unit."""
        self._unit = tuple(unit)

    def finished(self, seconds: float) -> list[Finished]:
        """Train the unit; without one, wait."""
        unit, self._unit = self._unit, ()
        if not unit:
            time.sleep(seconds)
            return []
        self._trainer.train(unit)
        return [Finished(unit)]

    def close(self) -> None:
        """Free the run."""
        self._trainer.close()


class SingleProcess:
    """Trains units in this process alone.

    Args:
        device: what to train on.
        shared: whether other processes of this machine train too.
    """

    def __init__(self, device: torch.device, shared: bool = False) -> None:
        self._device, self._shared = device, shared
        self._state: WorkerState | None = None

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """Load the run."""
        self._on_step = on_step
        self._state = WorkerState(load_prepared(run, self._device, inputs), self._shared)
        return self._state.stack_size()

    def train(self, unit: Sequence[NodeKey]) -> None:
        """Train and publish the nodes."""
        assert self._state is not None
        self._state.train(unit, self._on_step)

    def close(self) -> None:
        """Prove that the base is what it was, bytes and all."""
        if self._state is not None:
            self._state.prepared.base.check_frozen(whole=True)


class Subprocesses:
    """Workers that are processes of one torch thread each.

    They are started at once, and load torch while this process prepares the run. Messages go over
    ``multiprocessing``'s connections. Its own process starters are not used: they import the
    caller's main module again, which would train a second time in a script without a main guard.

    Args:
        size: how many.
        shared: whether they, or other processes too, are several on this machine.
        arithmetic: how theirs is pinned.
    """

    def __init__(self, size: int, shared: bool = True, arithmetic: Arithmetic = "native") -> None:
        self.size, self._shared = size, shared
        self._all = [_Process(number, arithmetic) for number in range(size)]
        self._living = [*self._all]
        self._deaths: Counter[NodeKey] = Counter()

    def open(self, run: RunDir, inputs: RunInputs, on_step: OnStep) -> int:
        """Have every worker load the run; what this process has read of it is freed."""
        self._on_step = on_step
        inputs.drop()
        for process in self._living:
            process.send("open", str(run.root.resolve()), self._shared)
        sizes = []
        for process in [*self._living]:
            reply = process.receive()
            if reply is None:
                self._bury(process)
            else:
                sizes.append(int(reply[1]))
        return min(sizes)

    def idle(self) -> list[int]:
        """Numbers of the living workers that have no unit."""
        return [process.number for process in self._living if not process.unit]

    def start(self, worker: int, unit: Sequence[NodeKey]) -> None:
        """Send a worker its unit."""
        self._all[worker].unit = tuple(unit)
        self._all[worker].send("train", tuple(unit))

    def finished(self, seconds: float) -> list[Finished]:
        """Wait for a message of a worker, or for its death."""
        by_connection = {process.connection: process for process in self._living}
        ready = wait([*by_connection], seconds if self.idle() else None)
        found = []
        for process in (one for connection, one in by_connection.items() if connection in ready):
            message = process.receive()
            if message is None:
                found.append(Finished(self._bury(process), lost=True))
                continue
            what, steps = message
            self._on_step(steps)
            if what == "trained":
                found.append(Finished(process.unit))
                process.unit = ()
        return found

    def close(self) -> None:
        """End the workers."""
        for process in self._all:
            process.child.kill()
        for process in self._all:
            process.child.wait()
            process.connection.close()

    def _bury(self, process: _Process) -> tuple[NodeKey, ...]:
        """Count a worker as dead; returns its unit.

        Raises:
            S3TError: it was the last one, or another has died over the same node.
        """
        code = process.child.wait()
        self._living.remove(process)
        self._deaths.update(process.unit)
        what = f"training worker {process.number} ended with exit code {code}"
        if not self._living or any(self._deaths[key] >= _DEATHS for key in process.unit):
            raise S3TError(
                f"{what}, and no other can go on in its place: finished nodes are kept, run the "
                "same command again to go on (with training.workers=1 if memory ran out)"
            )
        _log.warning("%s: the other %d go on", what, len(self._living))
        return process.unit


class _Process:
    """A worker's process, the connection to it, and the unit that it has."""

    def __init__(self, number: int, arithmetic: Arithmetic) -> None:
        self.number = number
        self.unit: tuple[NodeKey, ...] = ()
        self.connection, theirs = Pipe()
        with theirs:
            handle = theirs.fileno()
            self.child = subprocess.Popen(
                [sys.executable, "-m", "s3t.training.work.worker", arithmetic, str(handle)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is no output of ours
                env={**_ENVIRONMENT, **pinned_environment(arithmetic), **_THREADS, MODE: "quiet"},
                pass_fds=(handle,),
            )

    def send(self, *message: Any) -> None:
        with suppress(OSError):  # it has died, which the next receive tells
            self.connection.send(message)

    def receive(self) -> tuple[Any, ...] | None:
        """The next message; None if the process has died.

        Raises:
            S3TError: of the kind that the worker has met.
        """
        try:
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):  # OSError: it has died in the middle of a message
            return None
        if message[0] == "error":
            raise rebuilt(*message[1:])
        return message
