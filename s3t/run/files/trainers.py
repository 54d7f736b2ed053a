"""Who trains a run: the signs of life that its processes leave at the store, or in the run.

    work/beats/<process>     changes every few seconds while the process lives

Only changes count, by one's own clock, so machines need not agree on the time. A process of this
machine is seen to have ended at once, one of another when it was still for a lease.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from s3t.store import Depot

__all__ = ["MAIN", "Trainers", "began_at", "host"]

MAIN = "main-"
"""How the name of the main process begins, which holds the training lock."""


class Trainers:
    """The signs of life of all processes, and when each was seen to change.

    Args:
        depot: where they leave them.
        machine: of which launch this process is, whose others are seen to have ended at once;
            None if it is of none: then all that see the same process numbers are.
        lease: seconds.
    """

    def __init__(self, depot: Depot, machine: str | None, lease: float) -> None:
        self._depot, self._machine, self._lease = depot, machine, lease
        self._seen: dict[str, tuple[bytes, float, bool]] = {}
        self._looked = -lease

    @property
    def names(self) -> list[str]:
        """Processes that have left a sign, alive or dead."""
        return list(self._seen)

    def look(self, again: bool = False) -> None:
        """Read all signs, if the last look is long enough ago or ``again`` is asked for."""
        now = time.monotonic()
        if not again and now - self._looked < min(5.0, self._lease / 8):
            return
        self._looked = now
        seen = {}
        for name in self._depot.names("beats"):
            with suppress(FileNotFoundError):
                said = self._depot.get(f"beats/{name}")
                before, since, moved = self._seen.get(name, (said, now, False))
                changed = said != before
                seen[name] = (said, now if changed else since, moved or changed)
        self._seen = seen

    def said(self, name: str) -> dict[str, Any]:
        """What the last sign of a process says."""
        with suppress(ValueError, KeyError):
            found = json.loads(self._seen[name][0])
            return found if isinstance(found, dict) else {}
        return {}

    def lives(self, name: str) -> bool:
        """Whether a process may live: it has not been still for a lease."""
        if name not in self._seen:
            self.look(again=True)
        if name not in self._seen:
            return False
        runs = self._runs_here(name)
        return time.monotonic() - self._seen[name][1] < self._lease if runs is None else runs

    def moves(self, name: str) -> bool:
        """Whether a process certainly lives."""
        runs = self._runs_here(name)
        return (self._seen[name][2] and self.lives(name)) if runs is None else runs

    def _runs_here(self, name: str) -> bool | None:
        """Whether a process of this machine runs; None if it is of another."""
        said = self.said(name)
        process = said.get("process")
        if self._machine is None:
            here = said.get("host") is not None and said.get("host") == host()
        else:
            here = said.get("machine") == self._machine
        if not here or not isinstance(process, int):
            return None
        began = said.get("began")
        return None if began is None else began_at(process) == began


def host() -> str | None:
    """What all processes have in common that see each other's numbers; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def began_at(process: int) -> str | None:
    """When a process began, which tells it from a later one of the same number; None if unknown."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19]
