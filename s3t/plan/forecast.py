"""How many requests a running system has left: until its first shard dies, until exhaustion.

    State (persons left, living first slices) ──► Forecast: p5, p50, p95, mean, in requests and days

A request deletes one person who is still there: a subject with all samples, or a sample of no
subject. A person lies in one slot, so a first slice dies at the first request for one of its
persons, a shard dies with the last of its first slices, and the system is exhausted when no shard
is left. Nobody asks twice, so the persons left are all that can come.

    persons alike   ``survival.exhaustion``: the exact law, nothing is drawn
    risk rates      ``survival.persons``: the next one is drawn in proportion to the rates of those
                    left; simulated

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
    "ShardOutlook",
    "State",
    "forecast",
    "observed_rate",
    "person_weights",
]

SHARES = (0.05, 0.5, 0.95)

TRIALS = 20_000
"""Simulated streams, unless there are so many first slices that it would take seconds."""

_DRAWS = 1 << 22
"""First slices × trials that take half a second; ``_FEWEST`` trials are made in any case."""

_FEWEST = 500


@dataclass(frozen=True, eq=False)
class State:
    """What a forecast starts from.

    Attributes:
        view: of the ledger, passed on.
        left: int [m, L], persons of each slot who are still there.
        living: bool [m, L], first slices that still carry a prefix: trained, and not hit.
        missing: first slices that no deletion has hit and that cannot serve all the same.
        weights: [L], how likely a person of each slice is to ask next, relative to the others;
            None if all are alike (``person_weights``).
    """

    view: int
    left: Counts
    living: Mask
    missing: int = 0
    weights: Floats | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """How fast persons were deleted so far.

    Attributes:
        persons: deleted after the first request.
        days: from the first request until now.
    """

    persons: int
    days: float

    @property
    def per_day(self) -> float:
        """Persons per day."""
        return self.persons / self.days


@dataclass(frozen=True, slots=True)
class Outlook:
    """When something happens, counted in requests; inf where it need not happen at all."""

    p5: float
    p50: float
    p95: float
    mean: float

    def to_dict(self, observed: Observed | None) -> dict[str, Any]:
        """As JSON values: in ``requests`` and, at the observed rate, ``days``; null for inf."""
        requests = asdict(self)
        days = None if observed is None else _divided(requests, observed.per_day)
        return {"requests": _divided(requests, 1), "days": days}


@dataclass(frozen=True, slots=True)
class ShardOutlook:
    """One shard.

    Attributes:
        first_slices: those that live, ascending; none if the shard is dead.
        persons_left: in all its slices.
        median_requests: until it dies, right to about one request; inf if it need not die, None
            if it is dead.
    """

    shard: int
    first_slices: tuple[int, ...]
    persons_left: int
    median_requests: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What lies ahead of a running system.

    Attributes:
        view: of the ledger that it was made from.
        persons_left: the most requests that can come.
        first_slices_left: distinct (shard, first slice) that still carry a prefix.
        first_slices_missing: those that no deletion has hit but that cannot serve: not trained, or
            damaged. They count as dead.
        first_death: until the first of the shards that still serve dies; None if none serves.
        exhaustion: until no shard serves; None if none does.
        observed: the rate that turns requests into days, None if there is none.
        trials, seed: of the simulation; None where the figures are exact.
        shards: by number.
        in_each_shard: a person may have rows in several shards, and counts in each of them. One
            request then deletes from several: fewer of them may be enough than is told here.
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what need not happen at all is null, and ``in_each_shard`` is there only
        where it is true."""
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
    """How likely each person is to ask next, from how often the slices of their tier are hit.

    Tier k owns s_k slices of each of m shards, and each of them is to be hit at the relative rate
    r_k. All persons of a tier are alike. So the rate m · s_k · r_k of the tier is shared among the
    P_k persons that it had at the start, and keeps falling as they go: w_k = m · s_k · r_k / P_k.

    Args:
        registered: [m, L], persons of each slot at the start.
        tiers: s_k, L in all.
        rates: r_k (``partition.risk.rates``).

    Returns:
        [L], by slice.
    """
    owner = np.repeat(np.arange(len(tiers)), tiers)
    persons = np.bincount(owner, weights=registered.sum(axis=0), minlength=len(tiers))
    wanted = len(registered) * np.asarray(tiers) * np.asarray(rates, dtype=np.float64)
    weights: Floats = (wanted / np.maximum(persons, 1))[owner]
    return weights


def observed_rate(history: Iterable[tuple[datetime, int]], now: datetime) -> Observed | None:
    """The rate of deletions since the first one.

    Counting starts with the first request and leaves it out: its moment is chosen by where the
    counting starts. For a Poisson stream the rate is then unbiased however few requests there are.

    Args:
        history: moment and persons of each deletion (``Ledger.history``).
        now: end of the counting, unless a deletion is later.

    Returns:
        None with fewer than two deletions, or all of them in one moment.

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
    state: State, *, observed: Observed | None = None, trials: int | None = None, seed: int = 0
) -> Forecast:
    """Requests until the first shard dies, and until the system is exhausted.

    Args:
        state: the system as it is.
        observed: turns requests into days.
        trials: simulated streams if persons differ in weight; by default 20,000, fewer if that
            would take seconds.
        seed: of the simulation, from 0.

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
    p5, p50, p95 = (law.quantile(share) for share in SHARES)
    return Outlook(p5, p50, p95, law.mean)


def _simulated(requests: Floats) -> Outlook:
    ranked = np.sort(requests)
    p5, p50, p95 = (float(ranked[math.ceil(share * len(ranked)) - 1]) for share in SHARES)
    return Outlook(p5, p50, p95, float(ranked.mean()))


def _shards(state: State) -> tuple[ShardOutlook, ...]:
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
