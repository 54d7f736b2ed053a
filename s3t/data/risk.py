"""Risk tiers from the risk column (``partition.risk``).

    cell ─► value: a number, or the age of a date in days ─► tier: number of thresholds it reaches
                     thresholds: from the config, or quantiles of public data

Invariant E3: a tier follows from the row itself, the config and public data. It is never computed
from several rows of a person, such as their mean or maximum: without one of them the others could
move to another tier. All rows of a person must have one tier, and so must exact copies without a
subject, since both lie in one slot (``partition.py``); otherwise a problem is reported.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

__all__ = ["quantile_thresholds", "risk_value", "tier_of"]


def risk_value(cell: Any, as_of: date | None) -> float:
    """The value of a cell that is not blank.

    Args:
        cell: a number, or text of one; with ``as_of`` a date, a time, or ISO text of one.
        as_of: the day by which the age of a date is counted; None if cells are numbers.

    Returns:
        the number, or the age in days.

    Raises:
        ValueError, OverflowError: the cell is something else, or not finite.
    """
    if as_of is not None:
        return float((as_of - _day(cell)).days)
    if (
        isinstance(cell, bool)
        or not isinstance(cell, (int, float, str, Decimal))
        or "_" in str(cell)
    ):
        raise ValueError("no number")
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _day(cell: Any) -> date:
    if isinstance(cell, str):
        cell = datetime.fromisoformat(cell.strip())
    if isinstance(cell, datetime):
        return cell.date()
    if isinstance(cell, date):
        return cell
    raise ValueError("no date")


def tier_of(value: float, thresholds: Sequence[float]) -> int:
    """The tier of a value: the number of ascending thresholds that it reaches, from 0."""
    return bisect_right(thresholds, value)


def quantile_thresholds(quantiles: Sequence[float], public: Iterable[float]) -> tuple[float, ...]:
    """Thresholds between tiers: quantiles of the values of public data.

    Args:
        quantiles: numbers in (0, 1), ascending.
        public: values of public rows, at least one.

    Raises:
        ValueError: a tier would hold no value.
    """
    ordered = sorted(public)
    # a value that is there, not one between two: no rounding decides on a tier
    found = tuple(ordered[int(part * len(ordered))] for part in quantiles)
    if any(low >= high for low, high in pairwise((ordered[0], *found))):
        raise ValueError(
            f"the quantiles {list(quantiles)} of its {len(ordered)} values are {list(found)}, "
            "which leaves a tier without any: give thresholds, or fewer quantiles"
        )
    return found
