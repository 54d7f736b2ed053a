"""Deletion rates: expected requests until no shard has a surviving prefix.

    python -m benchmarks.deletion_budget.rates [--output DIR] [--quick]

For m = 5, L = 6 and B = 1 … 6: the exact rate N·H(K), the simulated mean with its 95 % confidence
interval, and what the authors' scripts print; then the rate by m and L, and by method. Only first
slices count, so it does not matter whether a stage trains a block (S3T) or takes a snapshot of all
layers (SISA): with the same sequences both last as long.

Training cost is counted in blocks × slices: stage i reads i slices, forward through all L blocks
and backward through those above and in the trained block, i (S3T) or all L (SISA).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.simulation import estimate, simulate_exhaustion
from benchmarks.environment import table
from benchmarks.reports import Report, main
from s3t.plan import cyclic, expected_deletions
from s3t.plan.survival.exhaustion import uniform_exhaustion, until_exhausted
from s3t.plan.survival.stream import finite, uniform

__all__ = ["run"]

SHARDS, SLICES = 5, 6
AUTHORS = (68.5, 87.9, 99.6, 107.9, 114.5, 119.9)
"""B = 1 … 6, from the authors' ``deletion.py`` with enough repetitions."""

SAMPLES = 20
"""Samples per slice where each can be deleted once."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("rates", output)
    trials = 20_000 if quick else 1_000_000
    budgets = _budgets(trials)
    print(
        f"deletion rate, m = {SHARDS}, L = {SLICES}, {trials:,} trials, the same requests for all B"
    )
    print(_budgets_table(budgets))
    methods = _methods()
    print(
        f"\nby method, m = {SHARDS}, L = {SLICES}; S3T and SISA last alike with the same sequences"
    )
    header = ["method", "sequences", "training cost, SISA = 1", "deletion rate"]
    rows = [[m["method"], m["sequences"], f"{m['cost']:.2f}", f"{m['rate']:.1f}"] for m in methods]
    print(table(header, rows))
    grid = [_cell(m, slices) for m in (2, 5, 10, 20, 50) for slices in (2, 4, 6, 8, 12, 16)]
    print("\nexact rate by m and L, for B = 1 / 2 / L")
    print(_grid_table(grid))
    result = {
        "shards": SHARDS,
        "slices": SLICES,
        "trials": trials,
        "budgets": budgets,
        "methods": methods,
        "grid": grid,
    }
    return report.finish(result, lambda figure: _draw(figure, budgets, grid))


def _budgets(trials: int) -> list[dict[str, Any]]:
    """Exact and simulated, one entry per B."""
    stream = uniform(SHARDS, SLICES)
    once = finite(np.full((SHARDS, SLICES), SAMPLES))
    plans = [_first_slices(cyclic(SLICES, budget)) for budget in range(1, SLICES + 1)]
    simulated = simulate_exhaustion(stream, plans, trials, seed=2024)
    found = []
    for number, (first, authors) in enumerate(zip(plans, AUTHORS, strict=True)):
        law, mean = until_exhausted(stream, first), estimate(simulated[:, number])
        closed = expected_deletions(stream.slots, int(first.sum()))
        assert abs(law.mean - closed) < 1e-9 * closed
        found.append(
            {
                "budget": number + 1,
                "exact": closed,
                "deviation": law.variance**0.5,
                "simulated": mean.mean,
                "half_width": mean.half_width,
                "inside": mean.holds(closed),
                "authors": authors,
                "quantiles": [law.quantile(share) for share in (0.05, 0.5, 0.95)],
                "without_repeats": until_exhausted(once, first).mean,
            }
        )
    return found


def _first_slices(sequences: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """First slices of a plan that is the same for all shards, [m, L]."""
    first = np.zeros((SHARDS, SLICES), dtype=bool)
    first[:, [sequence[0] for sequence in sequences]] = True
    return first


def _methods() -> list[dict[str, Any]]:
    """Rate and training cost of SISA, S3T and the bound."""
    sisa = sum(stage * 2 * SLICES for stage in range(1, SLICES + 1))
    s3t = sum(stage * (SLICES + stage) for stage in range(1, SLICES + 1))

    def entry(method: str, sequences: int, cost: float) -> dict[str, Any]:
        rate = expected_deletions(SHARDS * SLICES, SHARDS * min(sequences, SLICES))
        return {"method": method, "sequences": sequences, "cost": cost / sisa, "rate": rate}

    found = [entry("SISA", 1, sisa)]
    for budget in (1, 2, 4, 6):
        paid = budget * s3t // sisa  # whole sequences of SISA at the cost of S3T's
        found.append(entry(f"S3T, B = {budget}", budget, budget * s3t))
        if budget > 1:
            found.append(entry(f"SISA, {budget} sequences", budget, budget * sisa))
            found.append(entry(f"SISA at the cost of S3T, B = {budget}", paid, paid * sisa))
    # One tree of all prefixes: L·(L − 1)·…·(L − k + 1) nodes at stage k.
    nodes = [int(np.prod(range(SLICES, SLICES - k, -1))) for k in range(1, SLICES + 1)]
    every = sum(n * stage * (SLICES + stage) for stage, n in enumerate(nodes, start=1))
    return [*found, entry("all permutations", nodes[-1], every)]


def _cell(shards: int, slices: int) -> dict[str, Any]:
    rates = {
        budget: uniform_exhaustion(shards * slices, shards * min(budget, slices)).mean
        for budget in (1, 2, slices)
    }
    return {"shards": shards, "slices": slices, "rates": rates}


def _budgets_table(budgets: list[dict[str, Any]]) -> str:
    header = ["B", "N·H(K)", "simulated, 95 %", "inside", "authors", "deviation", "p5 / p50 / p95"]
    header.append(f"{SAMPLES} samples a slice, no repeats")
    rows = [
        [
            b["budget"],
            f"{b['exact']:.2f}",
            f"{b['simulated']:.2f} ± {b['half_width']:.2f}",
            "yes" if b["inside"] else "NO",
            f"{b['authors']:.1f}",
            f"{b['deviation']:.1f}",
            " / ".join(f"{q:.0f}" for q in b["quantiles"]),
            f"{b['without_repeats']:.1f}",
        ]
        for b in budgets
    ]
    return table(header, rows)


def _grid_table(grid: list[dict[str, Any]]) -> str:
    sizes = sorted({cell["slices"] for cell in grid})
    rows = []
    for shards in sorted({cell["shards"] for cell in grid}):
        cells = [cell["rates"] for cell in grid if cell["shards"] == shards]
        rows.append([shards, *(" / ".join(f"{r:.0f}" for r in c.values()) for c in cells)])
    return table(["m", *(f"L = {size}" for size in sizes)], rows)


def _draw(figure: Any, budgets: list[dict[str, Any]], grid: list[dict[str, Any]]) -> None:
    rates, laws, sizes = figure.subplots(1, 3)
    at = [b["budget"] for b in budgets]
    rates.plot(at, [b["exact"] for b in budgets], "-", color="C0", label="exact, N·H(K)")
    rates.errorbar(
        at,
        [b["simulated"] for b in budgets],
        yerr=[b["half_width"] for b in budgets],
        fmt="o",
        color="C1",
        capsize=3,
        label="simulated, 95 %",
    )
    rates.plot(at, AUTHORS, "x", color="black", label="authors")
    rates.set(xlabel="sequences B", ylabel="requests until exhaustion", title="m = 5, L = 6")
    rates.legend()
    requests = np.arange(301)
    for budget in (1, 2, 6):
        law = uniform_exhaustion(SHARDS * SLICES, SHARDS * budget)
        laws.plot(requests, law.survival(requests), label=f"B = {budget}")
    laws.set(xlabel="requests", ylabel="P(some shard serves)", title="exact law, m = 5, L = 6")
    laws.legend()
    for shards in sorted({cell["shards"] for cell in grid}):
        cells = [cell for cell in grid if cell["shards"] == shards]
        at = [cell["slices"] for cell in cells]
        (line,) = sizes.plot(at, [cell["rates"][1] for cell in cells], ":")
        full = [cell["rates"][cell["slices"]] for cell in cells]
        sizes.plot(at, full, "o-", ms=3, color=line.get_color(), label=f"m = {shards}")
    sizes.set(xlabel="slices L", ylabel="requests", title="B = L; dotted: B = 1", yscale="log")
    sizes.legend()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
