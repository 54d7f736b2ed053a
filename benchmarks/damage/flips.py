"""Bits of a small run flipped one at a time (``tests.harness.damage.flips``), by file and verdict.

python -m benchmarks.damage --only flips [--output DIR] [--quick]
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.reports import Report
from tests.harness.damage.flips import AT_REST, IN_USE, Flip, chosen, flipped, states_of
from tests.harness.damage.opening import State
from tests.harness.damage.victim import make_victim

__all__ = ["run"]

_KINDS = ("opening", "audit", "harmless", "FAULT")


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Flip, and print and write the table."""
    report = Report("flips", output)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        states = states_of(make_victim(Path(folder) / "victim"))
        flips = list(chosen(states, 64 if quick else 1))
        started, found, faults = time.perf_counter(), defaultdict(Counter), []
        for flip, verdict, why in flipped(Path(folder), states, flips):
            found[_group(flip)][verdict] += 1
            if verdict == "FAULT":
                faults.append({"flip": flip, "why": why})
                print(f"FAULT {flip}: {why}", flush=True)
        seconds = time.perf_counter() - started
    rows = [{"file": name, "bits": _bits(states, name), "flips": sum(found[name].values()),
             **{kind: found[name][kind] for kind in _KINDS}} for name in found]  # fmt: skip
    rows.append({"file": "all", **{key: sum(row[key] for row in rows) for key in rows[0]
                                   if key != "file"}})  # fmt: skip
    head = ("file", "bits", "flips", "found at opening", "by the audit", "harmless", "faults")
    print(table(head, [[str(value) for value in row.values()] for row in rows]))
    return report.finish({"seconds": round(seconds, 1), "rows": rows, "faults": faults})


def _group(flip: Flip) -> str:
    return "nodes" if flip[1].startswith("nodes/") else flip[1]


def _bits(states: dict[str, State], group: str) -> int:
    files = {**states[IN_USE].files, **states[AT_REST].files}
    return sum(8 * len(files[name]) for name in files if _group(("", name, 0)) == group)
