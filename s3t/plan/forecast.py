"""How many deletion requests a running system has left: until a shard dies, until exhaustion.

    RunningSystem (persons left, living first slices) ──► Forecast: quantiles, in requests and days

A request deletes one person who is left: a subject with all samples, or a sample without a subject.
A person lies in one slot. So a first slice dies at the first request for one of its persons, a
shard dies with the last of its first slices, and the system is exhausted when no shard is left. A
person is deleted once, so there are at most as many requests as persons left.

    persons alike   ``survival.exhaustion``: the exact law
    risk rates      ``survival.persons``: simulated; the next person is drawn in proportion to the
                    rates of those left

Invariant: no I/O, no clock, no global random state; the same state, trials and seed give the same
forecast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from s3t.errors import InputError
from s3t.plan.survival.exhaustion import until_exhausted, until_first_death
from s3t.plan.survival.law import RequestLaw
from s3t.plan.survival.persons import Counts, Mask, median_requests, simulate_deaths
from s3t.plan.survival.stream import Floats, finite

__all__ = [
    "Forecast",
    "Observed",
    "Outlook",
    "RunningSystem",
    "ShardOutlook",
    "forecast",
    "observed_rate",
    "person_weights",
]

QUANTILES = (0.05, 0.5, 0.95)

TRIALS = 20_000
"""Default number of simulated streams of requests."""

_DRAWS = 1 << 22
"""Maximum of first slices × trials, which takes half a second; there are at least ``_FEWEST``."""

_FEWEST = 500


@dataclass(frozen=True, eq=False)
class RunningSystem:
    """What a forecast starts from.

    Attributes:
        view: view of the ledger.
        left: int [m, L], number of persons left in each slot.
        living: bool [m, L], whether the slot is a first slice whose node is alive.
        missing: number of first slices that are not hit and whose node is not trained or damaged.
        weights: [L], relative rate at which a person of each slice asks to be deleted; None if all
            are equal (``person_weights``).
    """

    view: int
    left: Counts
    living: Mask
    missing: int = 0
    weights: Floats | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """The observed rate of deletions.

    Attributes:
        persons: number of persons deleted after the first request.
        days: days from the first request until now.
    """

    persons: int
    days: float

    @property
    def per_day(self) -> float:
        """Persons per day."""
        return self.persons / self.days


@dataclass(frozen=True, slots=True)
class Outlook:
    """Quantiles and mean of the number of requests until an event; inf if it may never happen."""

    p5: float
    p50: float
    p95: float
    mean: float

    def to_dict(self, observed: Observed | None) -> dict[str, Any]:
        """As JSON values: ``requests``, and ``days`` at the observed rate; null for inf."""
        requests = asdict(self)
        days = None if observed is None else _divided(requests, observed.per_day)
        return {"requests": _divided(requests, 1), "days": days}


@dataclass(frozen=True, slots=True)
class ShardOutlook:
    """The forecast of one shard.

    Attributes:
        shard: its number.
        first_slices: first slices whose node is alive, ascending; empty if the shard is dead.
        persons_left: number of persons left in all its slices.
        median_requests: median number of requests until it dies, to about one request; inf if it
            may never die, None if it is dead.
    """

    shard: int
    first_slices: tuple[int, ...]
    persons_left: int
    median_requests: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a running system.

    Attributes:
        view: view of the ledger that it was computed from.
        persons_left: number of persons left, the maximum number of requests.
        first_slices_left: number of (shard, first slice) whose node is alive.
        first_slices_missing: number of first slices that are not hit and whose node is not trained
            or damaged. They count as dead.
        first_death: requests until one of the shards that serve dies; None if no shard serves.
        exhaustion: requests until no shard serves; None if none does now.
        observed: the rate that turns requests into days; None if it is unknown.
        trials, seed: of the simulation; None where the figures are exact.
        shards: forecasts of all shards, by number.
        in_each_shard: whether a person may have rows in several shards and counts in each of them.
            One request then deletes from several shards, so events may come sooner than forecast.
    """

    view: int
    persons_left: int
    first_slices_left: int
    first_slices_missing: int
    first_death: Outlook | None
    exhaustion: Outlook | None
    observed: Observed | None
    trials: int | None
    seed: int | None
    shards: tuple[ShardOutlook, ...]
    in_each_shard: bool = False

    @property
    def exhausted(self) -> bool:
        """Whether no shard serves any more."""
        return self.exhaustion is None

    def __str__(self) -> str:
        """What is left until exhaustion: the median, and the range that holds 90 %."""
        if self.exhaustion is None:
            return "no shard serves any more"
        low, middle, high = self.exhaustion.p5, self.exhaustion.p50, self.exhaustion.p95
        if math.isinf(middle):
            return "more requests than persons are left, until no shard serves"
        most = "more" if math.isinf(high) else f"{high:,.0f}"
        return (
            f"about {middle:,.0f} more requests until no shard serves "
            f"({low:,.0f} to {most} at 90 %)"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: null for inf; ``in_each_shard`` only if true."""
        seen = self.observed
        each = {"in_each_shard": True} if self.in_each_shard else {}
        return {
            "view": self.view,
            "persons_left": self.persons_left,
            "first_slices_left": self.first_slices_left,
            "first_slices_missing": self.first_slices_missing,
            "exhausted": self.exhausted,
            "first_death": self.first_death and self.first_death.to_dict(seen),
            "exhaustion": self.exhaustion and self.exhaustion.to_dict(seen),
            "observed": None if seen is None else asdict(seen) | {"per_day": seen.per_day},
            "trials": self.trials,
            "seed": self.seed,
            "shards": [
                asdict(shard) | {"median_requests": _finite(shard.median_requests)}
                for shard in self.shards
            ],
            **each,
        }


def person_weights(registered: Counts, tiers: Sequence[int], rates: Sequence[float]) -> Floats:
    """The relative rate at which a person of each slice asks to be deleted.

    Tier k owns s_k slices in each of m shards, each hit at the relative rate r_k. Persons of a tier
    are alike, so each of the P_k persons that the tier had at the start gets an equal part of its
    rate: w_k = m · s_k · r_k / P_k. The rate of the tier falls as persons leave.

    Args:
        registered: [m, L], number of persons in each slot at the start.
        tiers: s_k for each tier; they sum to L.
        rates: r_k for each tier (``partition.risk.rates``).

    Returns:
        [L].
    """
    owner = np.repeat(np.arange(len(tiers)), tiers)
    persons = np.bincount(owner, weights=registered.sum(axis=0), minlength=len(tiers))
    wanted = len(registered) * np.asarray(tiers) * np.asarray(rates, dtype=np.float64)
    weights: Floats = (wanted / np.maximum(persons, 1))[owner]
    return weights


def observed_rate(history: Iterable[tuple[datetime, int]], now: datetime) -> Observed | None:
    """The rate of deletions since the first one.

    The first request starts the clock and is not counted, so the rate of a Poisson stream is
    unbiased even for few requests.

    Args:
        history: time and number of persons of each deletion (``Ledger.history``).
        now: end of the observation, unless a deletion is later; with a time zone.

    Returns:
        None if there are fewer than two deletions, or all have the same time.

    Raises:
        InputError: ``now`` without a time zone.
    """
    if now.tzinfo is None:
        raise InputError(f"now {now} has no time zone: give one, for example with tz=UTC")
    ordered = sorted(history, key=lambda one: one[0])
    if len(ordered) < 2:
        return None
    time = max(now, ordered[-1][0]) - ordered[0][0]
    persons = sum(count for _, count in ordered[1:])
    return Observed(persons, time / timedelta(days=1)) if time else None


def forecast(
    state: RunningSystem,
    *,
    observed: Observed | None = None,
    trials: int | None = None,
    seed: int = 0,
) -> Forecast:
    """Requests until the first shard dies, and until the system is exhausted.

    Args:
        state: the system now.
        observed: the rate that turns requests into days; None leaves days out.
        trials: number of simulated streams, used only if persons differ in weight; default
            20,000, fewer if that would take seconds.
        seed: seed of the simulation, from 0.

    Raises:
        InputError: no trials, or a negative seed.
    """
    if trials is not None and trials < 1:
        raise InputError(f"{trials} trials: expected 1 or more")
    if seed < 0:
        raise InputError(f"seed {seed}: expected 0 or more")
    living = int(state.living.sum())
    weights = state.weights
    death: Outlook | None = None
    end: Outlook | None = None
    made: int | None = None
    if living and weights is None:
        stream = finite(state.left)
        death = _exact(until_first_death(stream, state.living))
        end = _exact(until_exhausted(stream, state.living))
    elif living and weights is not None:
        made = trials or min(TRIALS, max(_FEWEST, _DRAWS // living))
        both = simulate_deaths(state.left, state.living, weights, made, seed=seed)
        death, end = _simulated(both[0]), _simulated(both[1])
    return Forecast(
        view=state.view,
        persons_left=int(state.left.sum()),
        first_slices_left=living,
        first_slices_missing=state.missing,
        first_death=death,
        exhaustion=end,
        observed=observed,
        trials=made,
        seed=None if made is None else seed,
        shards=_shards(state),
    )


def _exact(law: RequestLaw) -> Outlook:
    p5, p50, p95 = (law.quantile(quantile) for quantile in QUANTILES)
    return Outlook(p5, p50, p95, law.mean)


def _simulated(requests: Floats) -> Outlook:
    ranked = np.sort(requests)
    p5, p50, p95 = (float(ranked[math.ceil(quantile * len(ranked)) - 1]) for quantile in QUANTILES)
    return Outlook(p5, p50, p95, float(ranked.mean()))


def _shards(state: RunningSystem) -> tuple[ShardOutlook, ...]:
    weights = np.ones(state.left.shape[1]) if state.weights is None else state.weights
    medians = median_requests(state.left, state.living, weights)
    return tuple(
        ShardOutlook(
            shard,
            tuple(np.flatnonzero(living).tolist()),
            int(left.sum()),
            float(medians[shard]) if living.any() else None,
        )
        for shard, (living, left) in enumerate(zip(state.living, state.left, strict=True))
    )


def _divided(values: Mapping[str, float], by: float) -> dict[str, float | None]:
    return {name: _finite(value / by) for name, value in values.items()}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
