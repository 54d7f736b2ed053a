"""Nodes that no plan needs: why they are dead, and whether a purge should have removed them.

    died, or left the plan, after the last purge     awaits the next purge: pending
    died before it, or was purged and is back        broken
    in no plan, and announced by no trainer          broken

Invariant: the rows of deleted samples say when a node died, and the purge's entry in the log says
what it removed.
"""

from __future__ import annotations

from s3t.audit.audited_run import AuditedRun
from s3t.audit.ledger_facts import LogRow
from s3t.plan import Plan
from s3t.types import NodeKey

__all__ = ["PURGE", "DeadNodes"]

PURGE = "run s3t purge RUN"


class DeadNodes:
    """Judges nodes that the plans in force and to come do not need."""

    def __init__(self, audited: AuditedRun) -> None:
        self._ledger, self._plan, self._dead = audited.ledger, audited.plan, audited.dead_slots
        self._purges = list(audited.ledger.of_kind("purge"))
        self._last = self._purges[-1] if self._purges else None

    def judge(self, key: NodeKey) -> tuple[bool, str]:
        """Whether it is an error that the node still exists, and a sentence that says why.

        False means that the node died after the last purge and awaits the next one.
        """
        purged = [entry for entry in self._purges if key in entry.body["nodes"]]
        if purged:
            return True, (
                f"came back after the purge of view {purged[-1].body['view']} (entry "
                f"{purged[-1].number} of the log) took it away: find out who put it there, and "
                f"{PURGE}"
            )
        died = _death(self._plan, key, self._dead)
        if died is not None:
            return self._since(died, f"died at view {died}")
        if key in self._ledger.nodes:
            plan = self._ledger.plan
            replaced = 0 if plan is None else plan.in_force or 0
            return self._since(replaced, f"is of no plan since view {replaced}")
        return True, (
            "is of no plan, and no trainer told of it: find out who put it there, and move it away"
        )

    def _since(self, view: int, why: str) -> tuple[bool, str]:
        last: LogRow | None = self._last
        if last is not None and int(last.body["view"]) >= view:
            return True, (
                f"{why}, and is there after the purge of view {last.body['view']} (entry "
                f"{last.number} of the log): it came back, or was put there since; {PURGE}"
            )
        return False, f"{why} and awaits a purge: {PURGE}"


def _death(plan: Plan, key: NodeKey, dead: dict[tuple[int, int], int]) -> int | None:
    """The first view that deleted a sample of one of the node's slices; None for no node of the
    plan."""
    if key not in plan.forest:
        return None
    node = plan.forest[key]
    return min(dead[node.shard, c] for c in node.prefix if (node.shard, c) in dead)
