"""Every strategy for choosing sequences, against the bound and the optimum.

    python -m benchmarks.deletion_budget.quality [--output DIR] [--quick]

For L = 4, 6, 8, 12, uniform and Zipf rates (1, 1/2, 1/3, …), B = L/2, L, 2L: the share of data that
each strategy serves along a horizon of one request per slice, as a fraction of what all
permutations would serve, and its training cost; the optimum by integer programming for L ≤ 6. Then
the training cost at which the set tree serves as much as the paper's cyclic rotation with B = L.
All values are exact (laws over untouched sets); only the drawn strategies have seeds and intervals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.optimum import cheapest, optimum
from benchmarks.environment import table
from benchmarks.reports import Report, interval, main
from s3t.errors import ConfigError
from s3t.plan import Sequences, prefixes
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.registry import STRATEGIES, sequences_for
from s3t.plan.strategies.settree import steps
from s3t.plan.survival.lengths import expected_utility, length_law, length_table

__all__ = ["run"]

DRAWN = ("conditional", "random")
SEEDS = 20
PRIORS = ("uniform", "zipf")
EXPECTED = {  # of cyclic's cost, from the prototype (greedy growth)
    ("uniform", 4): 70,
    ("uniform", 6): 66,
    ("uniform", 8): 55,
    ("zipf", 4): 58,
    ("zipf", 6): 41,
    ("zipf", 8): 32,
}


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    sizes = (4, 6) if quick else (4, 6, 8, 12)
    values = [entry for slices in sizes for entry in _of_slices(slices, quick)]
    print("data served along the horizon, % of what all permutations would serve (cost, slices)")
    print(_values_table(values))
    matches = [_match(prior, slices, quick) for prior in PRIORS for slices in sizes]
    print("\ntraining cost at which a tree serves as much as cyclic B = L, % of cyclic's cost")
    print(_matches_table(matches))
    result = {"horizon_requests_per_slice": 1.0, "values": values, "matches": matches}
    return Report("quality", output).finish(result, lambda figure: _draw(figure, values, matches))


def _brief(prior: str, slices: int, budget: float, seed: int = 0) -> Brief:
    rates = tuple(1 / (c + 1) for c in range(slices)) if prior == "zipf" else ()
    return Brief(slices, budget, rates=rates, seed=seed)


def _value(brief: Brief, sequences: Sequences) -> float:
    found = length_table(prefixes(sequences), brief.slices)
    return expected_utility(length_law(found, brief.law), brief.worth)


def _bound(brief: Brief) -> float:
    """What all permutations would serve: every untouched slice."""
    shares = [k / brief.slices for k in range(brief.slices + 1)]
    sizes = [mask.bit_count() for mask in range(1 << brief.slices)]
    return float(sum(w * shares[k] for w, k in zip(brief.law, sizes, strict=True)))


def _of_slices(slices: int, quick: bool) -> Iterator[dict[str, Any]]:
    for prior in PRIORS:
        for budget in (slices // 2, slices, 2 * slices):
            brief = _brief(prior, slices, budget)
            bound = _bound(brief)
            entry: dict[str, Any] = {
                "slices": slices,
                "prior": prior,
                "budget": budget,
                "bound": bound,
                "strategies": {name: _strategy(name, brief) for name in STRATEGIES},
            }
            if slices <= 6:
                started = time.perf_counter()
                value, proved = optimum(brief, 10 if quick else 60)
                entry["optimum"] = {
                    "value": value,
                    "proved_bound": proved,
                    "seconds": round(time.perf_counter() - started, 2),
                }
            yield entry


def _strategy(name: str, brief: Brief) -> dict[str, Any] | None:
    """Value and cost of a strategy; the mean over seeds if it draws; None where it cannot."""
    seeds = range(SEEDS) if name in DRAWN else range(1)
    started = time.perf_counter()
    try:
        found = [sequences_for(name, replace(brief, seed=seed)) for seed in seeds]
    except ConfigError:
        return None
    seconds = (time.perf_counter() - started) / len(seeds)
    values = [_value(brief, sequences) for sequences in found]
    costs = [spent(sequences, brief.node_costs) for sequences in found]
    return {
        "value": statistics.fmean(values),
        "interval": interval(values) if len(values) > 1 else None,
        "cost": statistics.fmean(costs),
        "seconds": round(seconds, 4),
    }


def _match(prior: str, slices: int, quick: bool) -> dict[str, Any]:
    """Least cost at which the tree serves what cyclic B = L serves."""
    brief = _brief(prior, slices, slices)
    cyclic = sequences_for("cyclic", brief)
    target, whole = _value(brief, cyclic), spent(cyclic, brief.node_costs)
    paid = replace(brief, costs=brief.node_costs, budget=whole)
    grown = next(step.cost for step in steps(paid) if step.value >= target - 1e-9)
    low, high = 1, int(grown)
    while low < high:  # the least whole budget; the search is good enough to be monotone
        middle = (low + high) // 2
        tree = sequences_for("tree", replace(paid, budget=middle))
        low, high = (low, middle) if _value(brief, tree) >= target - 1e-9 else (middle + 1, high)
    best = cheapest(brief, target, 10 if quick else 120) if slices <= 6 else None
    return {
        "prior": prior,
        "slices": slices,
        "cyclic_value": target,
        "cyclic_cost": whole,
        "grown": grown / whole,
        "searched": high / whole,
        "optimum": best[0] / whole if best else None,
        "optimum_proved_bound": best[1] / whole if best else None,
        "prototype": EXPECTED.get((prior, slices), 0) / 100 or None,
    }


def _values_table(values: list[dict[str, Any]]) -> str:
    rows = []
    for entry in values:
        row = [f"{entry['slices']}", entry["prior"], f"{entry['budget']}"]
        for found in entry["strategies"].values():
            if found is None:
                row.append("–")
                continue
            share = 100 * found["value"] / entry["bound"]
            spread = found["interval"]
            more = f"±{50 * (spread[1] - spread[0]) / entry['bound']:.1f}" if spread else ""
            row.append(f"{share:.1f}{more} ({found['cost']:.0f})")
        best = entry.get("optimum")
        row.append(f"{100 * best['value'] / entry['bound']:.1f}" if best else "–")
        rows.append(row)
    return table(["L", "prior", "B", *STRATEGIES, "optimum"], rows)


def _matches_table(matches: list[dict[str, Any]]) -> str:
    rows = [
        [
            m["slices"],
            m["prior"],
            f"{100 * m['grown']:.1f}",
            f"{100 * m['searched']:.1f}",
            f"{100 * m['optimum']:.1f}" if m["optimum"] else "–",
            f"{100 * m['prototype']:.0f}" if m["prototype"] else "–",
        ]
        for m in matches
    ]
    header = ["L", "prior", "greedy growth", "with local search", "optimum", "prototype"]
    return table(header, rows)


def _draw(figure: Any, values: list[dict[str, Any]], matches: list[dict[str, Any]]) -> None:
    panels = figure.subplots(1, 3)
    sizes = sorted({entry["slices"] for entry in values})
    for panel, prior in zip(panels, PRIORS, strict=False):
        for name in STRATEGIES:
            found = {
                e["slices"]: e["strategies"][name]["value"] / e["bound"]
                for e in values
                if e["prior"] == prior and e["budget"] == e["slices"]
            }
            panel.plot(sizes, [100 * found[size] for size in sizes], "o-", ms=3, label=name)
        panel.set(xlabel="slices L = sequences B", title=f"{prior} deletions")
        panel.set_ylabel("served, % of all permutations")
    panels[0].legend(fontsize=7)
    for prior, colour in zip(PRIORS, ("C0", "C3"), strict=True):
        chosen = [m for m in matches if m["prior"] == prior]
        at = [m["slices"] for m in chosen]
        panels[2].plot(at, [100 * m["searched"] for m in chosen], "o-", color=colour, label=prior)
        panels[2].plot(at, [100 * m["grown"] for m in chosen], ":", color=colour)
    panels[2].axhline(100, color="grey", linestyle="--", label="cyclic B = L")
    panels[2].set(xlabel="slices L", ylabel="training cost, % of cyclic", title="same service")
    panels[2].set_ylim(bottom=0)
    panels[2].legend(fontsize=7)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
