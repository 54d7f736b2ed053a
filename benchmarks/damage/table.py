"""The damage table: each kind inflicted on a copy of one run, and what the audit says.

    python -m benchmarks.damage [--output DIR] [--quick]

Columns: kind, found (some claim does not hold), named (the audit's words hold the name of what was
damaged), the claims that no longer hold. ``--quick`` takes every fourth kind.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.reports import Report
from s3t.audit.audit import audit
from tests.harness.damage.kind import Kind
from tests.harness.damage.kinds import KINDS
from tests.harness.damage.victim import Victim, make_victim

__all__ = ["run"]


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Inflict every kind, and print and write the table."""
    report = Report("damage", output)
    with tempfile.TemporaryDirectory() as folder:
        victim = make_victim(Path(folder) / "victim")
        started = time.perf_counter()
        sound = audit(victim.root, public_key=victim.public_key, receipts=[victim.receipt])
        seconds = time.perf_counter() - started
        chosen = KINDS[::4] if quick else KINDS
        rows = [_row(kind, victim, Path(folder) / f"{n}") for n, kind in enumerate(chosen)]
    found, named = (sum(row[word] for row in rows) for word in ("found", "named"))
    print(f"undamaged: {'holds' if sound.holds else 'DOES NOT HOLD'}, judged in {seconds:.1f} s")
    print(f"{len(rows)} kinds of damage, {found} found, {named} named")
    return report.finish(
        {
            "undamaged_holds": sound.holds,
            "seconds_of_an_audit": round(seconds, 3),
            "kinds": len(rows),
            "found": found,
            "named": named,
            "rows": rows,
        }
    )


def _row(kind: Kind, victim: Victim, folder: Path) -> dict[str, Any]:
    damaged = victim.copy(folder / "run")
    name = kind.inflict(damaged)
    judged = audit(damaged.root, **kind.asks(damaged))
    wrong = [claim for claim in judged.claims if claim.status in ("broken", "pending")]
    sentence = next((p for claim in wrong for p in claim.problems if name in p), "")
    row = {
        "kind": kind.name,
        "asks": sorted(kind.asks(damaged)),
        "found": not judged.holds,
        "named": bool(sentence),
        "claims": {claim.name: claim.status for claim in wrong},
        "sentence": sentence,
    }
    mark = "found, named" if sentence else "found" if wrong else "NOT FOUND"
    print(f"{mark:12s}  {kind.name}: {', '.join(row['claims'])}", flush=True)
    return row
