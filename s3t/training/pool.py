"""Who trains: this very process, or several workers with one torch thread each.

Invariant: which worker trains a node, and with which others, changes no byte of it. So work is
handed out as it comes, longest first, and a pool may have any size.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from s3t import errors
from s3t.errors import S3TError
from s3t.run import RunDir
from s3t.training.preparation import open_material
from s3t.training.workshop import Workshop
from s3t.types import NodeKey

__all__ = ["Inline", "Pool", "Workers", "worker_count"]

Units = Sequence[Sequence[NodeKey]]
"""Groups of nodes of one stage; each is handed to one worker."""


class Pool(Protocol):
    """Something that trains units of nodes."""

    size: int

    def open(self, run: RunDir) -> int:
        """Load a prepared run; returns the largest group worth stacking."""
        ...

    def train(self, units: Units, on_step: Callable[[int], None]) -> None:
        """Train all units; returns when every node is published."""
        ...

    def close(self) -> None:
        """Free what the pool holds."""
        ...


def worker_count(wanted: str | int, device: torch.device, processes: int) -> int:
    """Workers of this process: as asked, or its share of the cores on a CPU."""
    if device.type != "cpu":
        return 1
    if wanted != "auto":
        return int(wanted)
    return max(1, len(os.sched_getaffinity(0)) // processes)


class Inline:
    """Train in this process."""

    size = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._workshop: Workshop | None = None

    def open(self, run: RunDir) -> int:
        """Load the run here."""
        self._workshop = Workshop(open_material(run, self._device))
        return self._workshop.group_size()

    def train(self, units: Units, on_step: Callable[[int], None]) -> None:
        """Train the units one after another."""
        assert self._workshop is not None
        for unit in units:
            self._workshop.train(unit, on_step)

    def close(self) -> None:
        """Prove that the base is what it was, bytes and all."""
        if self._workshop is not None:
            self._workshop.material.base.check_frozen(whole=True)


class Workers:
    """Train in ``size`` processes of one thread each; they load torch while the run is prepared."""

    def __init__(self, size: int) -> None:
        self.size = size
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "s3t.training.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false"},
                text=True,
            )
            for _ in range(size)
        ]
        self._inbox: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        for number, process in enumerate(self._processes):
            threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def open(self, run: RunDir) -> int:
        """Have every worker load the run."""
        for number in range(self.size):
            self._send(number, {"run": str(run.root.resolve())})
        groups: list[int] = []
        while len(groups) < self.size:
            _, message = self._receive()
            groups.append(int(message["group"]))
        return min(groups)

    def train(self, units: Units, on_step: Callable[[int], None]) -> None:
        """Hand the units out in their order, the next one to whoever is free."""
        waiting = list(reversed(units))
        busy = 0
        for number in range(min(self.size, len(waiting))):
            self._send(number, {"train": list(waiting.pop())})
            busy += 1
        while busy:
            number, message = self._receive()
            on_step(int(message.get("steps", 0)))
            if "done" in message:
                busy -= 1
                if waiting:
                    self._send(number, {"train": list(waiting.pop())})
                    busy += 1

    def close(self) -> None:
        """End the workers."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._inbox.put((number, json.loads(line)))
        self._inbox.put((number, None))

    def _send(self, number: int, message: dict[str, Any]) -> None:
        pipe = self._processes[number].stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()
        except BrokenPipeError:
            raise self._died(number) from None

    def _receive(self) -> tuple[int, dict[str, Any]]:
        number, message = self._inbox.get()
        if message is None:
            raise self._died(number)
        if "error" in message:
            kind = getattr(errors, message["kind"], S3TError)
            raised = kind.__new__(kind)
            Exception.__init__(raised, message["error"])
            raise raised
        return number, message

    def _died(self, number: int) -> S3TError:
        code = self._processes[number].wait()
        return S3TError(
            f"training worker {number} ended with exit code {code}: finished nodes are kept, run "
            "the same command again to go on (with training.workers=1 if memory ran out)"
        )
