"""What risk tiers bring: like risks in the same slices, against a hash over all.

    python -m benchmarks.deletion_budget.tiers [--output DIR] [--quick]

3,000 persons on 5 shards × 6 slices ask to be forgotten, each once; person i at rate 1/i (Zipf), or
all alike. The share of data served is averaged along a horizon of one request per slice, exactly
(independent clocks per person), over partitions with several salts:

    hashed          every slice a sample of all persons; a tree for equal rates
    tiers           slice c of every shard holds the c-th sixth of the persons by estimated risk; a
                    tree for the rates of those sixths
    tiers as shards the riskiest fifth of the persons in one shard, and so on; trees for equal rates
    all permutations, hashed    the bound without tiers

with a right estimate, one off by a factor of e^{N(0, 1)} per person, and a useless one.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

from benchmarks.deletion_budget import OUTPUT
from benchmarks.environment import table
from benchmarks.reports import Report, interval, main
from s3t.plan import prefixes
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.survival.lengths import length_law, length_table, served
from s3t.plan.survival.untouched import after_time, set_sizes

__all__ = ["run"]

PERSONS, SHARDS, SLICES = 3000, 5, 6
ESTIMATES = ("right", "noisy", "useless")
MOMENTS = 24


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    salts = 4 if quick else 20
    entries = []
    for prior in ("zipf", "uniform"):
        rates = np.ones(PERSONS) if prior == "uniform" else 1 / np.arange(1, PERSONS + 1)
        for estimate in ESTIMATES if prior == "zipf" else ("useless",):
            runs = [_measure(rates, estimate, salt) for salt in range(salts)]
            means = {name: statistics.fmean(r[name] for r in runs) for name in runs[0]}
            gains = [r["tiers"] / r["hashed"] - 1 for r in runs]
            entries.append(
                {
                    "prior": prior,
                    "estimate": estimate,
                    "served": means,
                    "tiers_over_hashed": statistics.fmean(gains),
                    "interval": interval(gains),
                }
            )
    print("share of data served along the horizon, mean over partitions")
    print(_table(entries))
    return Report("tiers", output).finish({"salts": salts, "entries": entries})


def _measure(rates: np.ndarray[Any, Any], estimate: str, salt: int) -> dict[str, float]:
    draws = np.random.Generator(np.random.PCG64(salt))
    guess = {
        "right": rates,
        "noisy": rates * np.exp(draws.normal(size=PERSONS)),
        "useless": draws.permutation(1 / np.arange(1, PERSONS + 1)),
    }[estimate]
    order = np.argsort(guess, kind="stable")  # lowest risk first
    slices, shards = draws.integers(SLICES, size=PERSONS), draws.integers(SHARDS, size=PERSONS)
    rank = np.empty(PERSONS, dtype=np.int64)
    rank[order] = np.arange(PERSONS)
    tier, shard_tier = rank * SLICES // PERSONS, rank * SHARDS // PERSONS
    believed = tuple(float(guess[tier == c].sum()) for c in range(SLICES))
    plain = _tree(())
    placed = {
        "hashed": (shards, slices, plain),
        "tiers": (shards, tier, _tree(believed)),
        "tiers as shards": (shard_tier, slices, plain),
        "all permutations, hashed": (shards, slices, set_sizes(SLICES)),
    }
    return {name: _served(rates, *place) for name, place in placed.items()}


def _tree(rates: tuple[float, ...]) -> np.ndarray[Any, Any]:
    """Table of the set tree with as many leaves as slices."""
    return length_table(prefixes(sequences_for("tree", Brief(SLICES, SLICES, rates=rates))), SLICES)


def _served(
    rates: np.ndarray[Any, Any],
    shards: np.ndarray[Any, Any],
    slices: np.ndarray[Any, Any],
    found: np.ndarray[Any, Any],
) -> float:
    """Mean share of all data served at the moments when 0 … N persons are expected to be gone."""
    clocks = np.zeros((SHARDS, SLICES))
    np.add.at(clocks, (shards, slices), rates)
    total = []
    for gone in np.linspace(0, SHARDS * SLICES, MOMENTS):
        time = _when(rates, gone)
        lengths = [served(length_law(found, after_time(list(row), time))) for row in clocks]
        total.append(sum(lengths) / (SHARDS * SLICES))
    return statistics.fmean(total)


def _when(rates: np.ndarray[Any, Any], gone: float) -> float:
    """The moment at which so many persons are expected to have asked."""
    if not gone:
        return 0.0
    high = 1.0
    while -np.expm1(-rates * high).sum() < gone:
        high *= 2
    return float(brentq(lambda t: -np.expm1(-rates * t).sum() - gone, 0, high))


def _table(entries: list[dict[str, Any]]) -> str:
    names = list(entries[0]["served"])
    rows = [
        [
            e["prior"],
            e["estimate"],
            *(f"{100 * e['served'][name]:.1f} %" for name in names),
            f"{100 * e['tiers_over_hashed']:+.1f} % "
            f"({100 * e['interval'][0]:+.1f} to {100 * e['interval'][1]:+.1f})",
        ]
        for e in entries
    ]
    return table(["who asks", "estimate", *names, "tiers over hashed"], rows)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
