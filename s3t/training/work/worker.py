"""A worker: one process, one torch thread, told over its pipes which nodes to train.

    parent ─ stdin ──►  {"run": "RUN", "shared": …}  load it
                        {"train": [keys]}       nodes of one stage, parents published
    parent ◄─ stdout ─  {"ready": true}  {"steps": n}  {"done": [keys]}  {"error": …, "kind": …}

Invariant: a worker ends when its parent does. It writes progress as it goes, and a pipe that
nobody reads kills it; the nodes that it has published by then are whole.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from s3t.errors import S3TError, unavailable
from s3t.system.pinned import pin

__all__ = ["main"]

_TELL_EVERY = 64
"""Node steps between two progress messages."""


def main() -> None:
    """Serve the parent until it closes the pipe."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the messages

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")

    pin("portable" if sys.argv[1:] == ["portable"] else "native")
    try:
        _serve(tell)
    except BrokenPipeError:
        os._exit(1)
    except S3TError as error:
        tell({"error": str(error), "kind": type(error).__name__})
    except Exception as error:
        known = unavailable(error) if isinstance(error, OSError) else None
        if known is not None:
            tell({"error": str(known), "kind": type(known).__name__})
            return
        tell({"error": f"{type(error).__name__}: {error}", "kind": "S3TError"})
        raise


def _serve(tell: Any) -> None:
    import torch

    from s3t.model.determinism import one_thread
    from s3t.run import RunDir
    from s3t.training.prepare.prepare import open_material
    from s3t.training.work.worker_state import Workshop

    device = torch.device("cpu")
    one_thread(device).__enter__()  # for as long as the process lives
    workshop: Workshop | None = None
    for line in sys.stdin:
        message = json.loads(line)
        if "run" in message:
            run = RunDir.existing(message["run"])
            run.ledger_open().__enter__()  # so too
            material = open_material(run, device)
            workshop = Workshop(material, message["shared"])
            tell({"ready": True, "group": workshop.group_size()})
        else:
            assert workshop is not None
            held = 0

            def on_step(steps: int) -> None:
                nonlocal held
                held += steps
                if held >= _TELL_EVERY:
                    tell({"steps": held})
                    held = 0

            workshop.train(message["train"], on_step)
            tell({"steps": held, "done": message["train"]})


if __name__ == "__main__":
    main()
