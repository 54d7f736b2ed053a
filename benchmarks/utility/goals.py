"""What each task is held to: a value of a side, and the limit that it shall keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

from benchmarks.utility.found import Found
from benchmarks.utility.sides import LORA, SISA, TODAY

__all__ = ["GOALS", "Goal"]


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        title: as the table shows it.
        value: of a side; None where it was not measured.
        limit: that the value shall not pass.
        least: whether the limit is the least value; else it is the greatest.
        scale: what values are multiplied by to be shown.
    """

    title: str
    value: Callable[[Found, str], float | None]
    limit: float
    least: bool = False
    scale: float = 1

    def margin(self, found: Found, side: str) -> float | None:
        """How far inside the limit a side is, below 0 if it misses; None if not measured."""
        value = self.value(found, side)
        if value is None:
            return None
        return self.scale * ((value - self.limit) if self.least else (self.limit - value))


def _start(found: Found, side: str) -> float | None:
    return _mean(found.at(side, 0))


def _last(found: Found, side: str) -> float | None:
    return _mean(found.at(side, found.points[-1]))


def _along(found: Found, side: str) -> float | None:
    return _mean(found.along(side))


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _of_lora(value: Callable[[Found, str], float | None]) -> Callable[[Found, str], float | None]:
    """A side's value as a multiple of what one LoRA has at the start."""

    def ratio(found: Found, side: str) -> float | None:
        ours = value(found, side)
        return None if ours is None else ours / fmean(found.at(LORA, 0))

    return ratio


def _over_base(found: Found, side: str) -> float | None:
    """The least difference to the base at any point."""
    values = [found.at(side, point) for point in found.points]
    return min((fmean(one) for one in values if one), default=0) - fmean(found.base())


def _over_base_within_error(found: Found, side: str) -> float | None:
    over = _over_base(found, side)
    return None if over is None else over + found.error()


def _over_sisa(found: Found, side: str) -> float | None:
    """The greatest ratio to SISA at the same plan, at any point."""
    pairs = [(found.at(side, point), found.at(SISA, point)) for point in found.points]
    ratios = [fmean(ours) / fmean(theirs) for ours, theirs in pairs if ours and theirs]
    return max(ratios, default=None)


def _repaired(found: Found, side: str) -> float | None:
    ours = _mean(found.repaired(side))
    return None if ours is None else ours / fmean(found.repaired(LORA))


def _holdout(found: Found, side: str) -> float | None:
    """The greatest ratio to today's defaults on the holdout, at the start or the end."""
    ends = (found.points[0], found.points[-1])
    pairs = [(found.at(side, at, "holdout"), found.at(TODAY, at, "holdout")) for at in ends]
    ratios = [fmean(ours) / fmean(theirs) for ours, theirs in pairs if ours and theirs]
    return max(ratios, default=None)


_COST = Goal("CPU ≤ 2.5 × one LoRA", Found.of_lora, 2.5)
_BANKING = (
    Goal("start ≥ 82", _start, 0.82, least=True, scale=100),
    Goal("every point ≥ base", _over_base, 0.0, least=True, scale=100),
    _COST,
)
_SHAKESPEARE = (
    Goal("start ≤ 1.02 × one LoRA", _of_lora(_start), 1.02),
    Goal("end ≤ 1.15 × one LoRA", _of_lora(_last), 1.15),
    _COST,
)
GOALS: Mapping[str, tuple[Goal, ...]] = {
    "digits": (
        Goal("start ≥ 94.5", _start, 0.945, least=True, scale=100),
        Goal("mean along ≥ 91", _along, 0.91, least=True, scale=100),
        Goal("every point ≥ base − error", _over_base_within_error, 0.0, least=True, scale=100),
        _COST,
    ),
    "shakespeare": _SHAKESPEARE,
    "shakespeare-public-start": _SHAKESPEARE,
    "tofu": (
        Goal("start ≤ 1.1 × one LoRA", _of_lora(_start), 1.1),
        Goal("end ≤ 11", _last, 11.0),
        Goal("never above SISA", _over_sisa, 1.0),
        Goal("repaired ≤ 1.15 × one LoRA without them", _repaired, 1.15),
        Goal("holdout ≤ today's", _holdout, 1.0),
        _COST,
    ),
    "banking77": _BANKING,
    "banking77-public-head": _BANKING,
}
"""By task. Goals of accuracy are in points, ratios as such."""
