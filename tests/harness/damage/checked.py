"""What must hold after a kill or a crash, whatever was under way.

    acknowledged ids ──► each is deleted for the ledger
                     └─► no node that serves has seen one: by the digests in the plan, not by hits

Invariant: a claim that is broken is one that was broken several times: others may be at work.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.lineage import judge_lineage
from s3t.audit.claims.log import judge_ledger
from s3t.audit.claims.receipts import judge_receipts
from s3t.audit.claims.remains import judge_remains
from s3t.audit.claims.served import judge_deleted, judge_served
from s3t.audit.findings import Claim, Findings, judged
from s3t.run import RunDir
from s3t.run.opened import OpenRun
from tests.harness.damage.made import seen_by

__all__ = ["audited", "in_a_process", "served_dead", "unheld"]

_CLAIMS: dict[str, Callable[[AuditedRun, Findings], None]] = {
    "ledger": lambda checked_run, found: judge_ledger(checked_run, found, (), {}),
    "receipts": judge_receipts,
    "E1": judge_lineage,
    "E6": judge_deleted,
    "E7": judge_remains,
    "E8": judge_served,
}
"""Those that no model is needed for."""

_TRIES = 3


def unheld(run: RunDir, acknowledged: Iterable[str]) -> list[str]:
    """What of a run does not hold, one sentence each: the ledger proves itself, every deletion
    acknowledged is in it, nothing that serves has seen a deleted sample."""
    known = set(acknowledged)
    forgetting = OpenRun(run)
    try:
        forgetting.prove_ledger()
        gone = forgetting.ledger.deleted.all()
        lost = sorted(one for one in known if one not in gone)
        problems = [f"acknowledged, and not deleted: {', '.join(lost)}"] if lost else []
        return problems + served_dead(forgetting, known)
    finally:
        forgetting.close()


def served_dead(forgetting: OpenRun, acknowledged: set[str]) -> list[str]:
    """Nodes that an answer would come from now, and deleted samples that they have seen."""
    run, problems = forgetting.run, []
    _, ends, plan = forgetting.catch_up()
    for end in ends:
        for node in () if end is None else plan.forest.lineage(end.key):
            if dead := acknowledged & seen_by(run, plan, node.key):
                problems.append(f"node {node.key} serves, and has seen {', '.join(sorted(dead))}")
    return problems


def audited(run: RunDir, *, pending: bool) -> list[str]:
    """Claims of the audit that are broken, or, if asked for, pending, with their first problems."""
    wrong = ("broken", "pending") if pending else ("broken",)
    for _ in range(_TRIES):
        claims = _judged(AuditedRun(RunDir(run.root)))
        problems = [f"{one.name}: {one.problems[0]}" for one in claims if one.status in wrong]
        if not problems:
            break
    return problems


def _judged(checked_run: AuditedRun) -> list[Claim]:
    return [
        judged(name, lambda found, of=judge: of(checked_run, found))  # type: ignore[misc]
        for name, judge in _CLAIMS.items()
    ]


def in_a_process(look: Callable[[], list[str]], report: Path) -> list[str]:
    """Call something in a fork of this process, which has no ledger open; returns what it does."""
    child = os.fork()
    if not child:
        code = 1
        try:
            report.write_text("\n".join(look()), encoding="utf-8")
            code = 0
        except BaseException as error:
            words = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            report.write_text(words.replace("\n", " | "), encoding="utf-8")
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    return report.read_text(encoding="utf-8").splitlines()
