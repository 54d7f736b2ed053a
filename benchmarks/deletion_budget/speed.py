"""Simulation speed against a plain loop in Python, request by request.

    python -m benchmarks.deletion_budget.speed [--output DIR] [--quick]

m = 5, L = 6, rotations with B = 1 … 6. In one process, in turn: a loop over requests with lists of
sequences, written as one would first (``loops``), the same with bit masks, and the library on one
and two threads. Ratios are of the time per trial for all six budgets, medians over repetitions; the
loops make fewer trials and are compared per trial: a trial takes the same steps however many.
Estimates must agree within a joint interval of 99.9 %, or the benchmark fails.

Kernels (``s3t.plan.survival``): exhaustion of slots alike by ranks and geometric waits, nothing
sorted; prefixes of slots alike by sorted first hits, a table per set of slices and the exact
occupancy. Uneven rates and streams without repeats need one draw and one sum more per hit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.loops import (
    masked_exhaustion,
    masked_prefixes,
    plain_exhaustion,
    plain_prefixes,
)
from benchmarks.deletion_budget.simulation import simulate_exhaustion
from benchmarks.deletion_budget.tables import serve_by_tables
from benchmarks.environment import load_average, median, table
from benchmarks.reports import Report, main
from s3t.plan import cyclic, prefixes
from s3t.plan.survival.lengths import length_table
from s3t.plan.survival.stream import Stream, endless, finite, uniform
from s3t.plan.survival.trajectories import Trajectories

__all__ = ["run"]

SHARDS, SLICES, REQUESTS = 5, 6, 150
PLANS = [cyclic(SLICES, budget) for budget in range(1, SLICES + 1)]
TABLES = [length_table(prefixes(plan), SLICES) for plan in PLANS]
MASKS = [np.tile(np.arange(SLICES) < len(plan), (SHARDS, 1)) for plan in PLANS]
FIRSTS = [sum(1 << int(slot) for slot in np.flatnonzero(mask)) for mask in MASKS]
ALIKE = uniform(SHARDS, SLICES)
UNEVEN = endless(np.random.default_rng(0).random((SHARDS, SLICES)) + 0.5)
ONCE = finite(np.full((SHARDS, SLICES), 50))
TARGETS = {"exhaustion": 1_500, "prefixes": 2_000}
Moments = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Means and standard errors."""

Sums = tuple[int, Any, Any]
"""Trials, sums and sums of squares."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("speed", output)
    repetitions, plain, fast = (3, 100, 60_000) if quick else (9, 400, 400_000)
    questions = {
        "exhaustion": _measured(_exhaustions(), plain, fast, repetitions),
        "prefixes": _measured(_prefixes(), plain, fast, repetitions),
    }
    print(f"m = {SHARDS}, L = {SLICES}, all of B = 1 … {SLICES}; prefixes over {REQUESTS} requests")
    print(_table(questions))
    result = {
        "shards": SHARDS,
        "slices": SLICES,
        "requests": REQUESTS,
        "repetitions": repetitions,
        "targets": TARGETS,
        "questions": questions,
        "load_average_at_end": load_average(),
    }
    return report.finish(result, lambda figure: _draw(figure, questions), size=(9, 4))


@dataclass(frozen=True)
class _Way:
    """One way to answer.

    Attributes:
        name: as printed; what is no loop and not of the library's has another stream of requests.
        call: trials and seed to an answer; timed.
        moments: an answer's means and standard errors; not timed.
    """

    name: str
    call: Callable[[int, int], Any]
    moments: Callable[[Any], Moments]

    @property
    def is_loop(self) -> bool:
        return self.name.startswith("loop")

    @property
    def is_alike(self) -> bool:
        return self.name.startswith(("loop", "library"))


def _measured(
    ways: Sequence[_Way], plain: int, fast: int, repetitions: int
) -> dict[str, dict[str, Any]]:
    """Seconds per trial of each way, in turn, and whether those of the same question agree."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    moments: dict[str, list[Moments]] = {way.name: [] for way in ways}
    for way in ways:
        way.call(10 if way.is_loop else fast // 10, 0)  # warm-up
    for repetition in range(1, repetitions + 1):
        for way in ways:
            trials = plain if way.is_loop else fast
            started = time.perf_counter()
            answer = way.call(trials, repetition)
            seconds[way.name].append((time.perf_counter() - started) / trials)
            moments[way.name].append(way.moments(answer))
    for way in ways[1:]:
        if way.is_alike:
            _assert_agree(way.name, _pooled(moments[ways[0].name]), _pooled(moments[way.name]))
    found = {}
    for way in ways:
        own = seconds[way.name]
        ratios = [loop / it for loop, it in zip(seconds[ways[0].name], own, strict=True)]
        found[way.name] = {
            "trials": plain if way.is_loop else fast,
            "microseconds_per_trial": 1e6 * median(own),
            "ratio": median(ratios),
            "ratios": ratios,
        }
    return found


def _pooled(parts: Sequence[Moments]) -> Moments:
    mean = np.mean([part[0] for part in parts], axis=0)
    return mean, np.sqrt(np.mean([part[1] ** 2 for part in parts], axis=0) / len(parts))


def _assert_agree(name: str, one: Moments, other: Moments) -> None:
    """All points at once within an interval of 99.9 %, whatever their correlation (Bonferroni)."""
    gap, error = np.abs(one[0] - other[0]), np.hypot(one[1], other[1])
    deviations = float(ndtri(1 - 0.0005 / gap.size))
    worst = np.unravel_index(np.argmax(gap - deviations * error), gap.shape)
    assert gap[worst] <= deviations * error[worst] + 1e-9, f"{name} differs from the loop: {worst}"


# ── requests until exhaustion ────────────────────────────────────────────────────────────────


def _exhaustions() -> list[_Way]:
    def library(name: str, stream: Stream, threads: int) -> _Way:
        return _Way(name, partial(_exhaustion, stream, threads), _moments)

    return [
        _Way("loop, lists", _listed_exhaustion, lambda ends: _moments(np.transpose(ends))),
        _Way("loop, bit masks", _masked_exhaustion, _moments),
        library("library, 1 thread", ALIKE, 1),
        library("library, 2 threads", ALIKE, 2),
        library("uneven rates, 1 thread", UNEVEN, 1),
        library("no repeats, 1 thread", ONCE, 1),
    ]


def _listed_exhaustion(trials: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[plain_exhaustion(SHARDS, SLICES, plan, draw) for _ in range(trials)] for plan in PLANS]


def _masked_exhaustion(trials: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [masked_exhaustion(SHARDS * SLICES, FIRSTS, draw) for _ in range(trials)]


def _exhaustion(stream: Stream, threads: int, trials: int, seed: int) -> npt.NDArray[np.int64]:
    return simulate_exhaustion(stream, MASKS, trials, seed=seed, threads=threads)


def _moments(values: npt.ArrayLike) -> Moments:
    """Of [trials, plans]."""
    sample = np.asarray(values, dtype=np.float64)
    return sample.mean(axis=0), sample.std(axis=0) / len(sample) ** 0.5


# ── what serves along the requests ───────────────────────────────────────────────────────────


def _prefixes() -> list[_Way]:
    def library(name: str, stream: Stream, threads: int) -> _Way:
        return _Way(name, partial(_served, stream, threads), _trajectory_moments)

    return [
        _Way("loop, lists", _listed_prefixes, _sum_moments),
        _Way("loop, bit masks", _masked_prefixes, _sum_moments),
        library("library, 1 thread", ALIKE, 1),
        library("library, 2 threads", ALIKE, 2),
        library("uneven rates, 1 thread", UNEVEN, 1),
        library("no repeats, 1 thread", ONCE, 1),
    ]


def _listed_prefixes(trials: int, seed: int) -> Sums:
    draw = random.Random(seed)
    sums = [[0] * (REQUESTS + 1) for _ in PLANS]
    squares = [[0] * (REQUESTS + 1) for _ in PLANS]
    for plan, total, square in zip(PLANS, sums, squares, strict=True):
        for _ in range(trials):
            for at, served in enumerate(plain_prefixes(SHARDS, SLICES, plan, REQUESTS, draw)):
                total[at] += served
                square[at] += served**2
    return trials, sums, squares


def _masked_prefixes(trials: int, seed: int) -> Sums:
    draw = random.Random(seed)
    tables = [bytes(lengths) for lengths in TABLES]
    sums, squares = (np.zeros((len(PLANS), REQUESTS + 1)) for _ in range(2))
    for _ in range(trials):
        served = np.array(masked_prefixes(SHARDS, SLICES, tables, REQUESTS, draw)).T
        sums += served
        squares += served**2
    return trials, sums, squares


def _sum_moments(sums: Sums) -> Moments:
    trials, total, square = sums
    mean = np.asarray(total) / trials
    return mean, np.sqrt(np.maximum(np.asarray(square) / trials - mean**2, 0) / trials)


def _served(stream: Stream, threads: int, trials: int, seed: int) -> Trajectories:
    return serve_by_tables(stream, TABLES, REQUESTS, trials, seed=seed, threads=threads)


def _trajectory_moments(found: Trajectories) -> Moments:
    return found.mean, np.sqrt(found.variance / found.trials)


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _table(questions: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = [
        [
            question,
            way,
            f"{found['trials']:,}",
            f"{found['microseconds_per_trial']:,.2f}",
            f"{found['ratio']:,.0f}",
            f"{min(found['ratios']):,.0f}–{max(found['ratios']):,.0f}",
            f"{TARGETS[question]:,}" if way.startswith("library") else "",
        ]
        for question, ways in questions.items()
        for way, found in ways.items()
    ]
    header = ["question", "way", "trials", "µs per trial", "times the loop", "range", "target"]
    return table(header, rows)


def _draw(figure: Any, questions: dict[str, dict[str, dict[str, Any]]]) -> None:
    for panel, (question, ways) in zip(figure.subplots(1, 2), questions.items(), strict=True):
        names = list(ways)[::-1]
        panel.barh(names, [ways[name]["ratio"] for name in names], color="C0")
        panel.axvline(TARGETS[question], color="C3", linestyle="--", label="target")
        panel.set(xscale="log", xlabel="times the loop with lists", title=question)
        panel.legend(fontsize=7)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
