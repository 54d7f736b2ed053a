"""What still serves after each number of deletions, for the plans of the paper and the set tree.

    python -m benchmarks.deletion_budget.curves [--output DIR] [--quick]

m = 5 shards, L = 6 slices. SISA (one sequence per shard: its prefixes survive exactly like those of
one S3T sequence, so the two share a curve), S3T with B = 2 … 6 rotations, the set tree at the cost
of B = 3 and with 6 leaves, and all 720 permutations; uniform deletions, and Zipf within each shard.
Exact at every request (laws over untouched sets) and simulated, with the share of requests at which
the exact value lies in the simulation's 95 % interval.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.tables import serve_by_tables
from benchmarks.environment import table
from benchmarks.reports import Report, main
from s3t.plan import Sequences, prefixes
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.survival.lengths import length_law, length_table, served
from s3t.plan.survival.stream import endless
from s3t.plan.survival.untouched import after_requests, set_sizes

__all__ = ["run"]

SHARDS, SLICES, REQUESTS = 5, 6, 120
COSTS = tuple(float(stage) for stage in range(1, SLICES + 1))
SHOWN = (0, 5, 10, 20, 30, 60, 90, 120)
ALL = "all 720 permutations"


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    trials = 20_000 if quick else 200_000
    priors = {"uniform": (1.0,) * SLICES, "zipf": tuple(1 / (c + 1) for c in range(SLICES))}
    found = {prior: _curves(rates, trials) for prior, rates in priors.items()}
    for prior, curves in found.items():
        print(f"\n{prior}: slices in the serving prefixes, of {SHARDS * SLICES} (exact)")
        print(_table(curves))
    result = {"shards": SHARDS, "slices": SLICES, "trials": trials, "seed": 0, "priors": found}
    return Report("curves", output).finish(result, lambda figure: _draw(figure, found))


def _plans(rates: tuple[float, ...]) -> dict[str, Sequences]:
    def of(strategy: str, budget: float, costs: tuple[float, ...] | None = None) -> Sequences:
        return sequences_for(strategy, Brief(SLICES, budget, costs=costs, rates=rates))

    plans = {"SISA, or S3T B=1": of("cyclic", 1)}
    plans |= {f"S3T B={budget}": of("cyclic", budget) for budget in range(2, SLICES + 1)}
    return plans | {
        "set tree at the cost of B=3": of("tree", 3 * sum(COSTS), COSTS),
        "set tree, 6 leaves": of("tree", SLICES),
    }


def _curves(rates: tuple[float, ...], trials: int) -> dict[str, dict[str, Any]]:
    plans = _plans(rates)
    tables = {name: length_table(prefixes(plan), SLICES) for name, plan in plans.items()}
    tables[ALL] = set_sizes(SLICES)
    stream = endless([rates] * SHARDS)
    simulated = serve_by_tables(stream, list(tables.values()), REQUESTS, trials, seed=0, threads=2)
    shares = stream.weights[0].tolist()
    laws = [after_requests(shares, requests) for requests in range(REQUESTS + 1)]
    curves: dict[str, dict[str, Any]] = {}
    for number, (name, lengths) in enumerate(tables.items()):
        exact = np.array([SHARDS * served(length_law(lengths, law)) for law in laws])
        alive = np.array([SHARDS * (1 - length_law(lengths, law)[0]) for law in laws])
        inside = np.abs(simulated.mean[number] - exact) <= simulated.half_width[number] + 1e-9
        curves[name] = {
            "cost": spent(plans[name], COSTS) if name in plans else None,
            "served": exact.round(6).tolist(),
            "shards_alive": alive.round(6).tolist(),
            "simulated": simulated.mean[number].round(6).tolist(),
            "half_width": simulated.half_width[number].round(6).tolist(),
            "inside": float(inside.mean()),
            "largest_difference": float(np.abs(simulated.mean[number] - exact).max()),
        }
    return curves


def _table(curves: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{curve['cost']:.0f}" if curve["cost"] else "–",
            *(f"{curve['served'][at]:.2f}" for at in SHOWN),
            f"{100 * curve['inside']:.0f} %, {curve['largest_difference']:.4f}",
        ]
        for name, curve in curves.items()
    ]
    header = [
        "plan",
        "cost",
        *(f"r={at}" for at in SHOWN),
        "exact inside simulated, off by at most",
    ]
    return table(header, rows)


def _draw(figure: Any, found: dict[str, dict[str, dict[str, Any]]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (prior, curves) in zip(panels, found.items(), strict=True):
        for name, curve in curves.items():
            style = "--" if name == ALL else "-." if "tree" in name else "-"
            cost = f" (cost {curve['cost']:.0f})" if curve["cost"] else ""
            panel.plot(curve["served"], style, lw=1.2, label=name + cost)
        panel.set(xlabel="deletion requests", title=f"{prior}, m = {SHARDS}, L = {SLICES}")
    panels[0].set_ylabel("slices in the serving prefixes")
    panels[0].legend(fontsize=7)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
