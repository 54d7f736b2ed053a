"""Forecasts of running systems: do they hold what they say, and how long do they take?

    python -m benchmarks.deletion_budget.forecast [--output DIR] [--quick]

Calibration. Streams of requests are drawn person by person, in plain Python, until all persons are
gone. After some requests, as many as are 0, ¼, ½ or ¾ of the median exhaustion at the start, the
state is forecast unless it is exhausted, and the rest of the stream tells whether the truth lies
within p5 … p95 (to be 90 % or, since requests are whole, a little more) and on which side of the
median it falls. Systems:

    alike        5 shards × 6 slices, 20 persons in each, every slice a first slice
    two firsts   the same, two first slices in each shard
    few          2 shards × 3 slices, 4 persons in each
    rates        two tiers: 4 slices, and 2 that are hit six times as often; the forecast knows this
    unknown      the same, but the forecast takes persons for alike: what a wrong assumption costs
    Zipf         persons ask at rates 1/i^s, in no relation to slices; also taken for alike

Time. A ledger of persons with three samples each, in random order, of which 100 were deleted one by
one; then reading it, and the forecast itself. Large systems last.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deletion_budget import OUTPUT
from benchmarks.environment import median, table
from benchmarks.reports import Report, main
from s3t.ledger import Deletion, Ledger
from s3t.plan.forecast import (
    Forecast,
    Outlook,
    RunningSystem,
    forecast,
    observed_rate,
    person_weights,
)
from s3t.types import Digest, Sample, SampleId, Slot, Subject

__all__ = ["run"]

TRIALS = 4_000
"""Streams that a forecast by rates simulates here."""

MOMENTS = (0.0, 0.25, 0.5, 0.75)
"""When the forecast is made, in median requests until exhaustion."""


@dataclass(frozen=True)
class System:
    """A system to be forecast.

    Attributes:
        tiers, rates: slices of each tier, and how often one of them is hit.
        first: slices that open a sequence, in each shard.
        zipf: exponent s of the persons' rates; 0 if those of a tier are alike.
        told: whether the forecast knows the rates.
    """

    name: str
    shards: int
    persons: int
    tiers: tuple[int, ...] = (6,)
    rates: tuple[float, ...] = (1.0,)
    first: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    zipf: float = 0.0
    told: bool = False

    @property
    def slices(self) -> int:
        return sum(self.tiers)


SYSTEMS = (
    System("alike", 5, 20),
    System("two firsts", 5, 20, first=(0, 3)),
    System("few", 2, 4, tiers=(3,), first=(0, 1, 2)),
    System("rates", 5, 20, tiers=(4, 2), rates=(1.0, 6.0), told=True),
    System("unknown", 5, 20, tiers=(4, 2), rates=(1.0, 6.0)),
    System("Zipf, s = 0.5", 5, 20, zipf=0.5),
    System("Zipf, s = 1", 5, 20, zipf=1.0),
)


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print; returns what the JSON holds."""
    report = Report("forecast", output)
    streams = 100 if quick else 1000
    calibration = [_calibrated(system, streams) for system in SYSTEMS]
    print(f"truth within p5 … p95, and above p50, of forecasts from {streams:,} streams a system")
    print(_calibration_table(calibration))
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    times = [_timed(samples, 64, 8) for samples in sizes]
    if not quick:
        times.append(_timed(1_000_000, 1000, 16))
    print("\nseconds, median of 5")
    print(_times_table(times))
    result = {
        "streams": streams,
        "trials": TRIALS,
        "moments": MOMENTS,
        "calibration": calibration,
        "times": times,
    }
    return report.finish(result, lambda figure: _draw(figure, calibration))


# ── calibration ──────────────────────────────────────────────────────────────────────────────


def _calibrated(system: System, streams: int) -> dict[str, Any]:
    """How often the truth lay within the forecasts, and above their median."""
    draw = random.Random(system.name)
    expected = _forecast(system, []).exhaustion
    assert expected is not None
    found: dict[str, list[tuple[bool, float]]] = {"first_death": [], "exhaustion": []}
    for number in range(streams):
        order = _stream(system, draw)
        start = int(expected.p50 * MOMENTS[number % len(MOMENTS)])
        predicted = _forecast(system, order[:start])
        if predicted.exhausted:
            continue
        for event, truth in _deaths(system, order, start).items():
            outlook: Outlook = getattr(predicted, event)
            above = (truth > outlook.p50) + (truth == outlook.p50) / 2
            found[event].append((outlook.p5 <= truth <= outlook.p95, above))
    return {
        "system": system.name,
        "told": system.told or not (system.zipf or len(system.rates) > 1),
        "forecasts": len(found["exhaustion"]),
        **{
            event: {
                "within": sum(inside for inside, _ in seen) / len(seen),
                "above_median": sum(above for _, above in seen) / len(seen),
            }
            for event, seen in found.items()
        },
    }


def _stream(system: System, draw: random.Random) -> list[tuple[int, int]]:
    """The slots hit by all persons, one after the other.

    The next person is drawn in proportion to the rates; whoever asked before is passed over.
    """
    owner = [tier for tier, count in enumerate(system.tiers) for _ in range(count)]
    people = [
        (shard, part)
        for shard in range(system.shards)
        for part in range(system.slices)
        for _ in range(system.persons)
    ]
    ranks = draw.sample(range(1, len(people) + 1), len(people))
    rates = [
        system.rates[owner[part]] / rank**system.zipf
        for (_, part), rank in zip(people, ranks, strict=True)
    ]
    left, order = list(range(len(people))), []
    gone: set[int] = set()
    while left:
        for person in draw.choices(left, [rates[one] for one in left], k=len(left)):
            if person not in gone:
                gone.add(person)
                order.append(people[person])
        left = [person for person in left if person not in gone]
    return order


def _deaths(system: System, order: Sequence[tuple[int, int]], start: int) -> dict[str, int]:
    """Requests from ``start`` until the first of the shards that live then dies, and exhaustion."""
    left = {(s, c) for s in range(system.shards) for c in system.first} - set(order[:start])
    alive = {shard for shard, _ in left}
    first = 0
    for number, slot in enumerate(order[start:], 1):
        left.discard(slot)
        if not first and {shard for shard, _ in left} != alive:
            first = number
        if not left:
            return {"first_death": first, "exhaustion": number}
    raise AssertionError("all persons asked, so every slot was hit")


def _forecast(system: System, gone: Sequence[tuple[int, int]]) -> Forecast:
    registered = np.full((system.shards, system.slices), system.persons)
    left = registered.copy()
    for slot in gone:
        left[slot] -= 1
    living = np.zeros(left.shape, dtype=bool)
    living[:, list(system.first)] = True
    living &= left == registered
    weights = person_weights(registered, system.tiers, system.rates) if system.told else None
    return forecast(
        RunningSystem(0, left, living, weights=weights), trials=TRIALS if system.told else None
    )


# ── time ─────────────────────────────────────────────────────────────────────────────────────


def _timed(samples: int, shards: int, slices: int) -> dict[str, Any]:
    """Seconds to read a ledger, and to forecast from it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger.open(Path(folder) / "ledger.db", create=True) as ledger,
    ):
        ledger.register(_samples(samples, shards, slices))
        for number in range(100):
            ledger.delete(Deletion([], [f"person-{number}"]), lambda receipt, _: receipt)
        reading = _seconds(lambda: (ledger.counts.persons(), ledger.counts.history()))
        slots, history = ledger.counts.persons(), ledger.counts.history()
        hits = [(shard, part) for shard, part, _ in ledger.counts.hits()]
    left = np.zeros((shards, slices), dtype=np.int64)
    for slot in slots:
        left[slot.shard, slot.slice] = slot.left
    living = left > 0
    for shard, part in hits:
        living[shard, part] = False
    rates = np.where(np.arange(slices) < slices // 2, 1.0, 4.0)
    now = max(moment for moment, _ in history)
    alike = RunningSystem(100, left, living)
    by_rates = RunningSystem(100, left, living, weights=rates)
    return {
        "samples": samples,
        "shards": shards,
        "slices": slices,
        "first_slices": int(living.sum()),
        "reading": reading,
        "alike": _seconds(lambda: forecast(alike, observed=observed_rate(history, now))),
        "by_rates": _seconds(lambda: forecast(by_rates)),
        "trials": forecast(by_rates).trials,
    }


def _samples(count: int, shards: int, slices: int) -> Iterator[tuple[Sample, Slot]]:
    """Three samples a person, shuffled."""
    draw = random.Random(0)
    places = [(draw.randrange(shards), draw.randrange(slices)) for _ in range(count // 3 + 1)]
    for number in draw.sample(range(count), count):
        person = number // 3
        content = Digest(f"{number:064x}")
        yield (
            Sample(SampleId(f"sample-{number}"), Subject(f"person-{person}"), content),
            places[person],
        )


def _seconds(call: Any) -> float:
    """Median of five calls after one to warm up."""
    call()
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        call()
        spent.append(time.perf_counter() - started)
    return median(spent)


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _calibration_table(found: list[dict[str, Any]]) -> str:
    header = [
        "system",
        "rates known",
        "forecasts",
        "first death within",
        "above",
        "exhaustion within",
        "above",
    ]
    rows = [
        [
            one["system"],
            "yes" if one["told"] else "no",
            f"{one['forecasts']:,}",
            *(
                f"{one[event][name]:.1%}"
                for event in ("first_death", "exhaustion")
                for name in ("within", "above_median")
            ),
        ]
        for one in found
    ]
    return table(header, rows)


def _times_table(found: list[dict[str, Any]]) -> str:
    header = ["samples", "system", "first slices", "ledger", "alike, exact", "by rates", "streams"]
    rows = [
        [
            f"{one['samples']:,}",
            f"{one['shards']} × {one['slices']}",
            f"{one['first_slices']:,}",
            *(f"{one[name]:.3f}" for name in ("reading", "alike", "by_rates")),
            f"{one['trials']:,}",
        ]
        for one in found
    ]
    return table(header, rows)


def _draw(figure: Any, found: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    at = np.arange(len(found))
    for shift, (event, title) in enumerate(
        (("first_death", "first shard dies"), ("exhaustion", "exhaustion"))
    ):
        shares = [one[event]["within"] for one in found]
        axes.bar(at + 0.4 * shift - 0.2, shares, 0.38, label=title)
    axes.axhline(0.9, color="black", linestyle=":")
    axes.set(ylabel="share of the truth within p5 … p95", ylim=(0, 1))
    axes.set_xticks(at, [one["system"] for one in found])
    axes.legend(loc="lower left")


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
