"""What became of a node that nothing needs any more, and whether it should have gone by now.

    died, or left the plan, after the last purge     awaits the next one: pending
    before it, or purged and there again             broken
    of no plan, told by no trainer                   broken

Invariant: when a node died is told from the rows of deleted samples, and what a purge has taken
away from its entry in the log.
"""

from __future__ import annotations

from s3t.audit.evidence import Case
from s3t.audit.ledger_facts import LogEntry
from s3t.plan import Plan
from s3t.types import NodeKey

__all__ = ["PURGE", "Fate"]

PURGE = "run s3t purge RUN"


class Fate:
    """Why a node is not needed, and whether it should have gone."""

    def __init__(self, case: Case) -> None:
        self._books, self._plan, self._dead = case.books, case.plan, case.dead_slots
        self._purges = list(case.books.of_kind("purge"))
        self._last = self._purges[-1] if self._purges else None

    def of(self, key: NodeKey) -> tuple[bool, str]:
        """Whether a node that is not needed is wrong to be there, and a sentence."""
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
        if key in self._books.nodes:
            plan = self._books.plan
            replaced = 0 if plan is None else plan.in_force or 0
            return self._since(replaced, f"is of no plan since view {replaced}")
        return True, (
            "is of no plan, and no trainer told of it: find out who put it there, and move it away"
        )

    def _since(self, view: int, why: str) -> tuple[bool, str]:
        last: LogEntry | None = self._last
        if last is not None and int(last.body["view"]) >= view:
            return True, (
                f"{why}, and is there after the purge of view {last.body['view']} (entry "
                f"{last.number} of the log): it came back, or was put there since; {PURGE}"
            )
        return False, f"{why} and awaits a purge: {PURGE}"


def _death(plan: Plan, key: NodeKey, dead: dict[tuple[int, int], int]) -> int | None:
    """View that killed a node of the plan."""
    if key not in plan.forest:
        return None
    node = plan.forest[key]
    return min(dead[node.shard, c] for c in node.prefix if (node.shard, c) in dead)
