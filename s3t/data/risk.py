"""From the risk column to tiers (``partition.risk``).

    cell ─► value: a number, or the age of a date in days ─► tier: how many thresholds it reaches
                     thresholds: of the config, or quantiles of public data

Invariant E3: a tier follows from the row itself, the config and public data. So the values of a
person are never put together, as a mean or a maximum: with one row gone the person's others could
move to another tier, and a run without that row would not find them where they were. The rows of
one person must agree on the tier by themselves, and so must exact copies of no subject, since both
are promised to lie in one slice (``partition.py``); where they do not, that is a problem.
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
        cell: a number or its text; with ``as_of`` a date, a time or its ISO text.
        as_of: the day on which the age of dates is counted.

    Raises:
        ValueError, OverflowError: it is no such thing, or not finite.
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
    """How many of the ascending thresholds the value reaches."""
    return bisect_right(thresholds, value)


def quantile_thresholds(quantiles: Sequence[float], public: Iterable[float]) -> tuple[float, ...]:
    """The values of public data below which these shares of it lie.

    Args:
        quantiles: shares in (0, 1), ascending.
        public: at least one value.

    Raises:
        ValueError: some tier would hold none of the values.
    """
    ordered = sorted(public)
    # a value that is there, not one between two: no rounding decides on a tier
    found = tuple(ordered[int(share * len(ordered))] for share in quantiles)
    if any(low >= high for low, high in pairwise((ordered[0], *found))):
        raise ValueError(
            f"the quantiles {list(quantiles)} of its {len(ordered)} values are {list(found)}, "
            "which leaves a tier without any: give thresholds, or fewer quantiles"
        )
    return found
