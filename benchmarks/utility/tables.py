"""The figures as Markdown: each side along the deletions, what it costs, and the goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.environment import table
from benchmarks.utility.found import Found
from benchmarks.utility.goals import GOALS, Goal
from benchmarks.utility.sides import LORA

__all__ = ["tables"]


def tables(result: Mapping[str, Any]) -> str:
    """All tables of a task."""
    found = Found(result)
    seeds = len(found.seeds)
    unit = "accuracy, %" if found.accuracy else "perplexity"
    head = f"{result['task']}: {unit} on public test rows, nothing retrained; " + (
        f"mean of {seeds} seeds ± 95 %" if seeds > 1 else "one seed"
    )
    parts = [head, *(_along(found, test) for test in found.tests), _costs(found)]
    parts.append(_goals(found, GOALS[result["task"]]))
    if found.refused:
        reasons = [f"- {name}: {reason}" for name, reason in found.refused.items()]
        parts.append("\n".join(["Not there yet, refused:", *reasons]))
    return "\n\n".join(parts)


def _along(found: Found, test: str) -> str:
    """The metric on one set of test rows: a side a row, a number of deletions a column."""
    repairs = bool(found.repaired(LORA, test))
    header = [
        test,
        *(f"after {point}" if point else "start" for point in found.points),
        f"mean {found.points[1]}–{found.points[-1]}",
        *(["repaired"] if repairs else []),
    ]
    rows = []
    for side in found.there:
        cells = [found.at(side, point, test) for point in found.points]
        cells.append([] if side == LORA else found.along(side, test))
        if repairs:
            cells.append(found.repaired(side, test))
        rows.append([side, *(_shown(found, values) for values in cells)])
    blank = ["–"] * (len(header) - 2)
    rows.append(["base alone", _shown(found, found.base(test)), *blank])
    return table(header, rows)


def _shown(found: Found, values: Sequence[float]) -> str:
    if not values:
        return "–"
    scale, form = (100, ".1f") if found.accuracy else (1, ".2f")
    low, high = found.bounds(values)
    mean = f"{scale * fmean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {scale * (high - low) / 2:{form}}"


def _costs(found: Found) -> str:
    rows = []
    for side in found.there:
        wall, cpu = found.cost(side, "seconds"), found.cost(side, "cpu_seconds")
        ratio = found.of_lora(side)
        rows.append(
            [
                side,
                *(f"{fmean(values):.1f}" if values else "–" for values in (wall, cpu)),
                "–" if ratio is None else f"{ratio:.2f}",
                f"{fmean(found.cost(side, 'nodes')):.0f}",
                f"{fmean(found.cost(side, 'bytes')) / 1e6:.2f}",
            ]
        )
    return table(["training", "wall, s", "CPU, s", "× one LoRA", "nodes", "MB"], rows)


def _goals(found: Found, goals: Sequence[Goal]) -> str:
    rows = [
        [side, *(_judged(goal.margin(found, side)) for goal in goals)]
        for side in found.there
        if side != LORA
    ]
    return table(["goals", *(goal.title for goal in goals)], rows)


def _judged(margin: float | None) -> str:
    if margin is None:
        return "–"
    return f"reached by {margin:.2f}" if margin >= 0 else f"**missed by {-margin:.2f}**"
