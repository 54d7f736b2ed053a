"""How large it goes: 10⁸ simulated requests over 64,000 slots, and the reach of the exact laws.

    python -m benchmarks.deletion_budget.scale [--output DIR] [--quick]

m = 1,000 shards × L = 64 slices, on two threads: requests until exhaustion for B = 1, 8 and 64 or
more; and what serves after each request, for the paper's rotations (B = 64, and 256 from four base
permutations), for 256 random sequences and for set trees, all over the same requests. One sequence
and B = 64 have exact laws, which the simulation is held against. Then seconds and memory of the
exact laws: exhaustion by the number K of first slices, alike and with rates of their own; prefixes
by L.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.closed_forms import all_permutations_after, rotations_after
from benchmarks.deletion_budget.simulation import estimate, simulate_exhaustion
from benchmarks.environment import table
from benchmarks.reports import Report, main
from s3t.plan import Sequences, cyclic, prefixes
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.survival.exhaustion import uniform_exhaustion, until_exhausted
from s3t.plan.survival.law import RequestLaw
from s3t.plan.survival.lengths import (
    length_law,
    length_table,
    served,
)
from s3t.plan.survival.stream import endless, uniform
from s3t.plan.survival.trajectories import serve_by_sequences
from s3t.plan.survival.untouched import after_requests

__all__ = ["run"]

SHARDS, SLICES, BUDGET = 1_000, 64, 256
THREADS = 2
ALIKE_POINTS, UNLIKE_POINTS = 1_000, 100
"""Numbers of requests at which an exact law is asked for."""

Answer = TypeVar("Answer")


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("scale", output)
    wanted = 10**7 if quick else 10**8
    exhaustion, prefixes_ = _exhaustion(wanted), _prefixes(wanted)
    print(f"m = {SHARDS:,}, L = {SLICES}, {THREADS} threads")
    print(_simulated_table([exhaustion, prefixes_]))
    print("\nrequests until exhaustion")
    print(_exhaustion_table(exhaustion))
    print(f"\nserved slices of {SHARDS * SLICES:,}")
    print(_served_table(prefixes_))
    laws = [*_alike(quick), *_unlike(quick)]
    tables = list(_tables(quick))
    print(
        "\nexact exhaustion: mean, variance, p5, p50, p95, and P(R > r) at "
        f"{ALIKE_POINTS:,} values of r ({UNLIKE_POINTS} for rates of their own)"
    )
    print(_cost_table("first slices K", laws))
    print("\nexact law of the longest prefix of a shard")
    print(_cost_table("slices L", tables))
    result = {
        "shards": SHARDS,
        "slices": SLICES,
        "threads": THREADS,
        "simulated": {"exhaustion": exhaustion, "prefixes": prefixes_},
        "exact": {"exhaustion": laws, "prefixes": tables},
        "peak_rss_mib": _peak_rss(),
    }
    return report.finish(result, lambda figure: _draw(figure, result))


# ── simulated ────────────────────────────────────────────────────────────────────────────────


def _exhaustion(wanted: int) -> dict[str, Any]:
    budgets = (1, 8, SLICES)
    masks = [np.tile(np.arange(SLICES) < budget, (SHARDS, 1)) for budget in budgets]
    law = uniform_exhaustion(SHARDS * SLICES, SHARDS * SLICES)
    trials = int(wanted / law.mean) + 1
    stream = uniform(SHARDS, SLICES)
    seconds, ends = _timed(
        lambda: simulate_exhaustion(stream, masks, trials, seed=1, threads=THREADS)
    )
    plans = []
    for budget, found in zip(budgets, ends.T, strict=True):
        mean, exact = estimate(found), uniform_exhaustion(stream.slots, SHARDS * budget)
        plans.append(
            {
                "budget": budget,
                "simulated": mean.mean,
                "half_width": mean.half_width,
                "exact": exact.mean,
                "deviation": exact.variance**0.5,
            }
        )
    return {
        "question": "requests until exhaustion, 3 plans",
        "trials": trials,
        "requests": int(ends.max(axis=1).sum()),
        "seconds": seconds,
        "peak_rss_mib": _peak_rss(),
        "plans": plans,
    }


def _prefixes(wanted: int) -> dict[str, Any]:
    law = uniform_exhaustion(SHARDS * SLICES, SHARDS * SLICES)
    trials = int(wanted / law.mean) + 1
    horizon = int(law.quantile(0.999))
    plans: dict[str, Sequences] = {
        "one sequence": cyclic(SLICES, 1),
        f"cyclic, B = {SLICES}": cyclic(SLICES, SLICES),
        f"cyclic, B = {BUDGET}": cyclic(SLICES, BUDGET),
        f"random, B = {BUDGET}": sequences_for("random", Brief(SLICES, BUDGET)),
        f"set tree, B = {BUDGET}": sequences_for("tree", Brief(SLICES, BUDGET)),
        "set tree, half the cost": sequences_for("tree", _half()),
    }
    seconds, found = _timed(
        lambda: serve_by_sequences(
            uniform(SHARDS, SLICES), list(plans.values()), horizon, trials, seed=2, threads=THREADS
        )
    )
    at = [0, 2_000, 20_000, 64_000, 200_000, 400_000]
    means = {name: found.mean[number, at].tolist() for number, name in enumerate(plans)}
    halves = {name: found.half_width[number, at].tolist() for number, name in enumerate(plans)}
    chain = [SHARDS * sum((1 - k / 64_000) ** r for k in range(1, SLICES + 1)) for r in at]
    slots = SHARDS * SLICES
    rotations = [SHARDS * served(rotations_after(SLICES, range(SLICES), slots, r)) for r in at]
    bound = [SHARDS * served(all_permutations_after(SLICES, slots, r)) for r in at]
    return {
        "question": f"served slices after each request, {len(plans)} plans",
        "trials": trials,
        "requests": int(trials * law.mean),  # each trial is followed until nothing is left to hit
        "seconds": seconds,
        "peak_rss_mib": _peak_rss(),
        "at": at,
        "means": means,
        "half_widths": halves,
        "exact": {
            "one sequence": chain,
            f"cyclic, B = {SLICES}": rotations,
            "all permutations": bound,
        },
    }


def _half() -> Brief:
    """Half of the slice passes of as many whole sequences."""
    costs = tuple(float(stage) for stage in range(1, SLICES + 1))
    return Brief(SLICES, BUDGET * sum(costs) / 2, costs=costs)


# ── exact ────────────────────────────────────────────────────────────────────────────────────


def _alike(quick: bool) -> Iterator[dict[str, Any]]:
    """Exhaustion of K slots out of K, all alike."""
    for power in (2, 4, 6) if quick else (2, 3, 4, 5, 6, 7, 8, 9):
        slots = 10**power
        cost = _cost(partial(_asked, partial(uniform_exhaustion, slots, slots), ALIKE_POINTS))
        yield {"kind": "alike", "size": slots, **cost}


def _unlike(quick: bool) -> Iterator[dict[str, Any]]:
    """Exhaustion of K slots with K different rates."""
    for slots in (100, 1_000) if quick else (100, 1_000, 10_000, 64_000):
        stream = endless(np.random.default_rng(slots).random((1, slots)) + 0.1)
        made = partial(until_exhausted, stream, np.ones((1, slots), dtype=bool))
        yield {
            "kind": "rates of their own",
            "size": slots,
            **_cost(partial(_asked, made, UNLIKE_POINTS)),
        }


def _asked(made: Callable[[], RequestLaw], points: int) -> list[float]:
    law = made()
    quantiles = [law.quantile(share) for share in (0.05, 0.5, 0.95)]
    requests = np.linspace(0.5 * quantiles[0], 2 * quantiles[2], points).astype(np.int64)
    return [law.mean, law.variance, *quantiles, float(law.survival(requests).sum())]


def _tables(quick: bool) -> Iterator[dict[str, Any]]:
    """Longest prefix of a shard under 2 L rotations, any rates, by 2^L untouched sets."""
    for slices in (8, 12) if quick else (8, 12, 16, 18, 20):
        rates = (np.arange(1, slices + 1) / (slices * (slices + 1) / 2) / 100).tolist()
        plan = prefixes(cyclic(slices, 2 * slices))

        def law(slices: int = slices, rates: Any = rates, plan: Any = plan) -> float:
            return served(length_law(length_table(plan, slices), after_requests(rates, 100)))

        yield {"kind": "any tree, any rates, 2^L sets", "size": slices, **_cost(law)}
    for slices in (16,) if quick else (16, 32, 64):

        def circle(slices: int = slices) -> float:
            return served(rotations_after(slices, range(slices), 100 * slices, 1_000))

        yield {"kind": "rotations, slots alike", "size": slices, **_cost(circle)}


def _cost(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and in another run, which that slows down, the peak of memory."""
    seconds, _ = _timed(call)
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"seconds": seconds, "peak_mib": peak / 2**20}


def _timed(call: Callable[[], Answer]) -> tuple[float, Answer]:
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def _peak_rss() -> float:
    """Most memory that the process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _simulated_table(simulated: list[dict[str, Any]]) -> str:
    rows = [
        [
            found["question"],
            f"{found['trials']:,}",
            f"{found['requests']:.2e}",
            f"{found['seconds']:.2f}",
            f"{found['requests'] / found['seconds'] / 1e6:,.0f}",
            f"{found['peak_rss_mib']:,.0f}",
        ]
        for found in simulated
    ]
    header = [
        "simulated",
        "trials",
        "requests",
        "seconds",
        "10⁶ requests/s",
        "peak RSS so far, MiB",
    ]
    return table(header, rows)


def _exhaustion_table(found: dict[str, Any]) -> str:
    rows = [
        [
            plan["budget"],
            f"{plan['exact']:,.0f}",
            f"{plan['simulated']:,.0f} ± {plan['half_width']:,.0f}",
            f"{plan['deviation']:,.0f}",
        ]
        for plan in found["plans"]
    ]
    return table(["B", "N·H(K)", "simulated, 95 %", "deviation of a trial"], rows)


def _served_table(found: dict[str, Any]) -> str:
    rows = []
    for name, means in found["means"].items():
        exact = found["exact"].get(name)
        for kind, values in (("simulated", means), ("exact", exact)):
            if values:
                rows.append([name, kind, *(f"{value:,.0f}" for value in values)])
    bound = found["exact"]["all permutations"]
    rows.append(["all permutations", "exact", *(f"{value:,.0f}" for value in bound)])
    return table(["plan", "", *(f"r = {r:,}" for r in found["at"])], rows)


def _cost_table(size: str, costs: list[dict[str, Any]]) -> str:
    rows = [
        [c["kind"], f"{c['size']:,}", f"{c['seconds']:.3f}", f"{c['peak_mib']:,.1f}"] for c in costs
    ]
    return table(["", size, "seconds", "peak memory, MiB"], rows)


def _draw(figure: Any, result: dict[str, Any]) -> None:
    along, exhaustion, lengths = figure.subplots(1, 3)
    found = result["simulated"]["prefixes"]
    for name, means in found["means"].items():
        along.errorbar(
            found["at"], means, yerr=found["half_widths"][name], fmt="o-", ms=3, label=name
        )
    bound = found["exact"]["all permutations"]
    along.plot(found["at"], bound, "k--", label="all permutations")
    along.set(xlabel="requests", ylabel="served slices", yscale="log", title="m = 1,000, L = 64")
    along.set_ylim(bottom=1)
    along.legend(fontsize=7)
    for panel, costs, size in (
        (exhaustion, result["exact"]["exhaustion"], "first slices K"),
        (lengths, result["exact"]["prefixes"], "slices L"),
    ):
        for kind in dict.fromkeys(cost["kind"] for cost in costs):
            chosen = [cost for cost in costs if cost["kind"] == kind]
            at = [cost["size"] for cost in chosen]
            panel.plot(at, [cost["seconds"] for cost in chosen], "o-", ms=3, label=kind)
        panel.set(xlabel=size, ylabel="seconds", yscale="log")
        panel.legend(fontsize=7)
    exhaustion.set(xscale="log", title="exact exhaustion")
    lengths.set(title="exact law of prefixes")


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
