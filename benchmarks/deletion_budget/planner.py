"""The planner: seconds for a grid of 64 cells, and what its trees save against rotations.

    python -m benchmarks.deletion_budget.planner [--output DIR] [--quick]

For each question the whole answer is timed: every candidate in every cell weighed exactly, the
front, the recommendation. The first call fills tables of slice sets that later ones use again, so
it is told apart from the median of the rest; imports are not counted.

Beside the recommended plan stands the cheapest cyclic plan of any cell that is worth as much, with
no more risk: what the paper's plan would cost if its m and L were chosen as well.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deletion_budget import OUTPUT
from benchmarks.environment import median, table
from benchmarks.reports import Report, main
from s3t.cli.pictures import draw_budget
from s3t.plan.budget.advice import Budget, advise
from s3t.plan.budget.candidates import candidates
from s3t.plan.budget.curve import Linear, Power
from s3t.plan.budget.question import Question

__all__ = ["run"]

QUESTIONS = (
    Question(20_000, 12, 100),
    Question(20_000, 12, 20),
    Question(20_000, 12, 1000),
    Question(1_000_000, 96, 1000),
    Question(20_000, 12, 100, curve=Linear()),
    Question(20_000, 12, 100, curve=Power(1.0, 1.0, 0.1)),
    Question(20_000, 12, 100, overhead=2000.0),
)


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("planner", output)
    repeats = 3 if quick else 15
    entries, budgets = [], []
    for question in QUESTIONS[: 3 if quick else None]:
        budget, seconds = _timed(question, repeats + 1)
        budgets.append(budget)
        entries.append(
            {
                "question": budget.to_dict()["question"],
                "cells": len(budget.cells),
                "candidates": budget.candidates,
                "front": len(budget.front),
                "first_seconds": seconds[0],
                "seconds": seconds[1:],
                "recommended": asdict(budget.recommended),
                "best": asdict(budget.best),
                "cyclic_as_good": _as_good(question, budget),
            }
        )
    print(_table(entries))
    slowest = max(max(entry["seconds"] + [entry["first_seconds"]]) for entry in entries)
    print(f"slowest of all calls: {slowest:.2f} s")
    result = {"entries": entries, "slowest_seconds": slowest}
    return report.finish(result, lambda figure: draw_budget(figure, budgets[0]))


def _timed(question: Question, times: int) -> tuple[Budget, list[float]]:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        budget = advise(question)
        seconds.append(time.perf_counter() - started)
    assert budget == advise(question)
    return budget, seconds


def _as_good(question: Question, budget: Budget) -> dict[str, Any] | None:
    """The cheapest cyclic plan of any cell that is worth what the recommended one is."""
    found = candidates(question)
    good = found.utility >= budget.recommended.utility
    rows = np.flatnonzero(found.kinds("cyclic") & (found.exhausted <= question.risk) & good)
    return asdict(found[rows[found.passes[rows].argmin()]]) if len(rows) else None


def _table(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        asked, one, cyclic = entry["question"], entry["recommended"], entry["cyclic_as_good"]
        rows.append(
            [
                f"{asked['samples']:,}",
                f"{asked['deletions']:,}",
                asked["curve"].removesuffix(": the share of a shard's data")
                + (f", overhead {asked['overhead']:g}" if asked["overhead"] else ""),
                entry["cells"],
                f"{entry['candidates']:,}",
                entry["front"],
                f"{entry['first_seconds']:.2f}",
                f"{median(entry['seconds']):.2f}",
                f"{one['kind']} {one['shards']} × {one['slices']}, {one['utility']:.3f}",
                f"{cyclic['shards']} × {cyclic['slices']}" if cyclic else "none",
                f"{one['passes'] / cyclic['passes']:.0%}" if cyclic else "",
            ]
        )
    header = ["samples", "deletions", "curve", "cells", "plans", "front", "first call, s"]
    header += ["median, s", "recommended", "cyclic as good", "cost of it"]
    return table(header, rows)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
