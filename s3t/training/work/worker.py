"""A worker process: one torch thread, told over a connection which nodes to train.

    parent ──► ("open", RUN, shared)     load it                       ──► ("opened", stack size)
           ──► ("train", keys)           nodes of one stage, whose     ──► ("steps", n) …
                                         parents are published             ("trained", n)
                                                             an error: ──► ("error", kind, message)

Invariant: a worker ends when its parent does: the connection is closed then, and the next message
sent or awaited meets that. The nodes that the worker has published by then are whole.
"""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from typing import Any, cast

from s3t.errors import S3TError, unavailable
from s3t.system.pinned import Arithmetic, pin
from s3t.system.progress import quiet_libraries

__all__ = ["main"]

_TELL_EVERY = 64
"""Node steps between two messages about them."""


def main(arithmetic: Arithmetic, handle: str) -> None:
    """Serve the parent until it closes the connection.

    Args:
        arithmetic: how to pin it.
        handle: file descriptor of the connection.
    """
    parent: Connection[Any, Any] = Connection(int(handle))
    pin(arithmetic)
    quiet_libraries()
    try:
        _serve(parent)
    except BrokenPipeError:
        os._exit(1)
    except S3TError as error:
        parent.send(("error", type(error).__name__, str(error)))
    except Exception as error:
        known = unavailable(error) if isinstance(error, OSError) else None
        if known is not None:
            parent.send(("error", type(known).__name__, str(known)))
            return
        parent.send(("error", "S3TError", f"{type(error).__name__}: {error}"))
        raise


def _serve(parent: Connection[Any, Any]) -> None:
    import torch

    from s3t.model.determinism import one_thread
    from s3t.run import RunDir
    from s3t.training.prepare.load import load_prepared
    from s3t.training.work.worker_state import WorkerState

    device = torch.device("cpu")
    one_thread(device).__enter__()  # for as long as the process lives
    state: WorkerState | None = None
    while (message := _received(parent)) is not None:
        match message:
            case ("open", root, shared):
                run = RunDir.existing(root)
                run.ledger_open().__enter__()  # so too
                state = WorkerState(load_prepared(run, device), shared)
                parent.send(("opened", state.stack_size()))
            case ("train", keys):
                assert state is not None
                steps = _Steps(parent)
                state.train(keys, steps.add)
                parent.send(("trained", steps.untold))


def _received(parent: Connection[Any, Any]) -> Any:
    try:
        return parent.recv()
    except (EOFError, OSError):
        return None


class _Steps:
    """Tells the parent of steps, many at a time."""

    def __init__(self, parent: Connection[Any, Any]) -> None:
        self._parent, self.untold = parent, 0

    def add(self, steps: int) -> None:
        self.untold += steps
        if self.untold >= _TELL_EVERY:
            self._parent.send(("steps", self.untold))
            self.untold = 0


if __name__ == "__main__":
    main(cast("Arithmetic", sys.argv[1]), sys.argv[2])
