"""The store of the launcher's agent, which outlives the processes that it starts.

A process that comes late sees there that the main one is through: a repair may end before it has
loaded torch, and then gives no sign of life any more.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

__all__ = ["main_ended", "tell_ended"]

_PATIENCE = timedelta(seconds=10)


def tell_ended() -> None:
    """Tell the processes beside this one, the main one, that all work is done."""
    store = _store()
    if store is not None:
        store.set(_key(), "1")


def main_ended() -> bool:
    """Whether the main process has told so; False without an agent, as under mpirun."""
    store = _store()
    return store is not None and store.check([_key()])


def _key() -> str:
    run, attempt = (
        os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")
    )
    return f"s3t/{run}/{attempt}/ended"


@cache
def _store() -> Store | None:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(host, port, is_master=False, timeout=_PATIENCE)
    except (KeyError, ValueError, RuntimeError):
        return None
