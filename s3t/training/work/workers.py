"""Who trains: this very process, or several workers with one torch thread each.

Each takes a unit of nodes from a source whenever it has nothing to do. A worker that dies gives
its unit back, and the others go on; it is not started again, since what killed it may be that
there were too many of them.

Invariant: which worker trains a node, and with which others, changes no byte of it. So work is
handed out as it comes, and a pool may have any size.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.system.pinned import Arithmetic, pinned_environment, rebuilt
from s3t.training.prepare.prepare import open_material
from s3t.training.work.worker_state import Workshop
from s3t.types import NodeKey

__all__ = ["Inline", "Pool", "Source", "Workers", "worker_count"]

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


class Source(Protocol):
    """Where a pool's work comes from."""

    pause: float
    """Seconds after which it is worth asking again when there was nothing."""

    def take(self, worker: int, idle: int) -> Sequence[NodeKey] | None:
        """Nodes of one stage whose parents are published; empty: none yet; None: no more ever.

        Args:
            worker: who will train them.
            idle: how many workers of the pool have nothing to do.
        """
        ...

    def done(self, keys: Sequence[NodeKey]) -> None:
        """A worker has trained them, and published those that live."""
        ...

    def lost(self, keys: Sequence[NodeKey]) -> None:
        """The worker that had them has died."""
        ...


class Pool(Protocol):
    """Something that trains units of nodes."""

    size: int

    def open(self, run: RunDir) -> int:
        """Load a prepared run; returns the largest group worth stacking."""
        ...

    def train(self, source: Source, on_step: OnStep) -> None:
        """Train what the source gives until it has no more."""
        ...

    def close(self) -> None:
        """Free what the pool holds."""
        ...


def worker_count(wanted: str | int, device: torch.device, processes: int) -> int:
    """Workers of this process: as asked, or its share of the machine's cores on a CPU."""
    if device.type != "cpu":
        return 1
    if wanted != "auto":
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // processes)


class Inline:
    """Train in this process.

    Args:
        device: what to train on.
        shared: whether other processes of this machine train too.
    """

    size = 1

    def __init__(self, device: torch.device, shared: bool = False) -> None:
        self._device, self._shared = device, shared
        self._workshop: Workshop | None = None

    def open(self, run: RunDir) -> int:
        """Load the run here."""
        self._workshop = Workshop(open_material(run, self._device), self._shared)
        return self._workshop.group_size()

    def train(self, source: Source, on_step: OnStep) -> None:
        """Train one unit after another."""
        assert self._workshop is not None
        while (unit := source.take(0, 1)) is not None:
            if unit:
                self._workshop.train(unit, on_step)
                source.done(unit)
            else:
                time.sleep(source.pause)

    def close(self) -> None:
        """Prove that the base is what it was, bytes and all."""
        if self._workshop is not None:
            self._workshop.material.base.check_frozen(whole=True)


class Workers:
    """Train in ``size`` processes of one thread each; they load torch while the run is prepared.

    Args:
        size: how many.
        shared: whether they, or other processes too, are several on this machine.
        arithmetic: how theirs is pinned.
    """

    def __init__(self, size: int, shared: bool = True, arithmetic: Arithmetic = "native") -> None:
        self.size, self._shared = size, shared
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "s3t.training.work.worker", arithmetic],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**_ENVIRONMENT, **pinned_environment(arithmetic), **_THREADS},
                text=True,
            )
            for _ in range(size)
        ]
        self._living = [*range(size)]
        self._hands: dict[int, Sequence[NodeKey]] = {}
        self._deaths: Counter[NodeKey] = Counter()
        self._inbox: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        for number, process in enumerate(self._processes):
            threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def open(self, run: RunDir) -> int:
        """Have every worker load the run."""
        for number in self._living:
            self._send(number, {"run": str(run.root.resolve()), "shared": self._shared})
        groups: dict[int, int] = {}
        while not groups.keys() >= {*self._living}:
            number, message = self._inbox.get()
            if message is None:
                self._bury(number)
            else:
                groups[number] = int(_spoken(message)["group"])
        return min(groups.values())

    def train(self, source: Source, on_step: OnStep) -> None:
        """Hand units out as they come, the next one to whoever is free."""
        while self._hand_out(source):
            idle = len(self._hands) < len(self._living)
            try:
                number, message = self._inbox.get(timeout=source.pause if idle else None)
            except queue.Empty:
                continue
            if message is None:
                source.lost(self._bury(number))
                continue
            on_step(int(_spoken(message).get("steps", 0)))
            if "done" in message:
                source.done(self._hands.pop(number))

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def _hand_out(self, source: Source) -> bool:
        """Give everyone who is idle a unit, as long as there are some; False if none are left."""
        idle = [number for number in self._living if number not in self._hands]
        while idle:
            unit = source.take(idle[0], len(idle))
            if unit is None:
                return False
            if not unit:
                break
            number = idle.pop(0)
            self._hands[number] = unit
            self._send(number, {"train": list(unit)})
        return True

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # else it died in the middle of a word
                self._inbox.put((number, json.loads(line)))
        self._inbox.put((number, None))

    def _send(self, number: int, message: dict[str, Any]) -> None:
        pipe = self._processes[number].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # it has died, which its other pipe tells

    def _bury(self, number: int) -> Sequence[NodeKey]:
        """Count a worker as dead; returns what it had in hand.

        Raises:
            S3TError: it was the last one, or another has died over the same node.
        """
        code = self._processes[number].wait()
        self._living.remove(number)
        unit = self._hands.pop(number, ())
        self._deaths.update(unit)
        what = f"training worker {number} ended with exit code {code}"
        if not self._living or any(self._deaths[key] >= _DEATHS for key in unit):
            raise S3TError(
                f"{what}, and no other can go on in its place: finished nodes are kept, run the "
                "same command again to go on (with training.workers=1 if memory ran out)"
            )
        _log.warning("%s: the other %d go on", what, len(self._living))
        return unit


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    """What a worker says, unless it is an error.

    Raises:
        S3TError: of the kind that the worker met.
    """
    if "error" in message:
        raise rebuilt(message["kind"], message["error"])
    return message
