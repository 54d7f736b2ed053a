"""Utility curves: what the model of one shard is worth, by the number of samples it has seen.

    linear                       the fraction of its shard's data: a whole shard is worth 1
    power:TOP,GAP,EXPONENT[,U0]  u(d) = TOP − GAP·d^−EXPONENT, never below u(0) = U0, 0 by default
    points                       measured: linear in log(d + 1), constant beyond the last point

Invariant: a curve never falls, so more data is never worth less. A measured point that is below an
earlier one is raised to it, since the difference is noise of the measurement.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError

__all__ = ["DEFAULT", "Curve", "Linear", "Measured", "Power", "parse_curve"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """Utility is the fraction of its shard's data that a prefix has seen: 1 for a whole shard.

    It counts no loss for many small shards, so the planner then chooses as many as possible.
    """

    def __str__(self) -> str:
        return "linear: the share of a shard's data"

    def utility(self, samples: npt.ArrayLike, shard: float) -> Floats:
        """Utility of a model that was trained on some of its shard's samples.

        Args:
            samples: numbers of samples, any shape.
            shard: number of samples of the whole shard.

        Returns:
            the shape of ``samples``.
        """
        return np.asarray(samples, dtype=np.float64) / shard


@dataclass(frozen=True)
class Power:
    """A learning curve with a power law: u(d) = top − gap·d^−exponent.

    Attributes:
        top: utility in the limit of infinite data.
        gap: top minus the utility of one sample.
        exponent: how fast the gap closes.
        nothing: utility without any sample, and the minimum.
    """

    top: float
    gap: float
    exponent: float
    nothing: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.top, self.gap, self.exponent, self.nothing)
        if (
            not all(map(math.isfinite, numbers))
            or self.gap < 0
            or self.exponent <= 0
            or self.top < self.nothing
        ):
            raise InputError(
                f"curve {self}: expected finite numbers, a gap from 0, an exponent over 0, and a "
                "top from the worth of no data"
            )

    def __str__(self) -> str:
        numbers = [self.top, self.gap, self.exponent, *([self.nothing] if self.nothing else [])]
        return "power:" + ",".join(f"{number:g}" for number in numbers)

    def utility(self, samples: npt.ArrayLike, shard: float) -> Floats:
        """As ``Linear.utility``; the size of the shard does not matter."""
        known = np.asarray(samples, dtype=np.float64)
        # The power law has no value below one sample: there it is that of one sample.
        worth = self.top - self.gap * np.maximum(known, 1.0) ** -self.exponent
        return np.where(known > 0, np.maximum(worth, self.nothing), self.nothing)


@dataclass(frozen=True)
class Measured:
    """A curve through measured points. No data is worth 0 unless a point says otherwise.

    Attributes:
        name: where the points come from, for display.
        samples: numbers of samples, ascending, from 0.
        worth: utility of each, never falling.
    """

    name: str
    samples: tuple[float, ...]
    worth: tuple[float, ...]

    def __str__(self) -> str:
        return f"measured, {len(self.samples)} points from {self.name}"

    @classmethod
    def of(cls, points: Iterable[Sequence[Any]], name: str) -> Measured:
        """A curve through (samples, utility) in any order.

        Raises:
            InputError: no points, one that is no pair of finite numbers, negative samples, samples
                that occur twice, or negative utilities without a point for 0 samples.
        """
        pairs = sorted(_pair(point, name) for point in points)
        known = [samples for samples, _ in pairs]
        if not any(known):
            raise InputError(f"curve {name} has no point with samples: give samples and utilities")
        if len(set(known)) < len(known):
            raise InputError(f"curve {name} has two points for the same samples: give their mean")
        if known[0] > 0:
            if pairs[0][1] < 0:
                raise InputError(
                    f"curve {name} has negative utilities: add a point for 0 samples, what nothing "
                    "is worth"
                )
            pairs.insert(0, (0.0, 0.0))
        lifted = np.maximum.accumulate([worth for _, worth in pairs])
        return cls(name, tuple(samples for samples, _ in pairs), tuple(map(float, lifted)))

    @classmethod
    def read(cls, content: str, name: str) -> Measured:
        """The points of a file: CSV ``samples,utility``, with or without that header, or JSON, a
        list of pairs or an object with such a list as ``points``.

        Raises:
            InputError: as ``of``, or content that is neither.
        """
        if not content.lstrip().startswith(("[", "{")):
            try:
                rows = [row for row in csv.reader(content.splitlines()) if any(map(str.strip, row))]
            except csv.Error as error:
                raise InputError(f"curve {name} is not CSV ({error})") from None
            if rows and [cell.strip().lower() for cell in rows[0]] == ["samples", "utility"]:
                del rows[0]
            return cls.of(rows, name)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"curve {name} is not JSON ({error})") from None
        points = found.get("points") if isinstance(found, dict) else found
        if not isinstance(points, list):
            raise InputError(
                f"curve {name}: expected a list of [samples, utility], or it as points"
            )
        return cls.of(points, name)

    def utility(self, samples: npt.ArrayLike, shard: float) -> Floats:
        """As ``Linear.utility``; the size of the shard does not matter."""
        asked = np.log1p(np.asarray(samples, dtype=np.float64))
        return np.interp(asked, np.log1p(self.samples), self.worth)


Curve = Linear | Power | Measured

DEFAULT = Power(1.0, 1.0, 0.3)
"""The default where nothing is measured: 0 with one sample, 0.75 with 100, 0.94 with 10,000.

Errors of deep networks fall like d^−0.07 … d^−0.35 (Hestness et al. 2017, arXiv 1712.00409). A
fine-tuned model has little left to learn, so the exponent is near the steep end. This is an
assumption: a measured curve is better.
"""


def parse_curve(given: str, read: Callable[[str], str]) -> Curve:
    """The curve that a command line names (see the module).

    Args:
        given: ``linear``, ``power:…`` or the path of a file of points.
        read: returns the text of a file; called only for a path.

    Raises:
        InputError: numbers or points that are no curve, or what ``read`` raises.
    """
    if given == "linear":
        return Linear()
    form, colon, rest = given.partition(":")
    if form != "power" or not colon:
        return Measured.read(read(given), given)
    try:
        numbers = [float(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (3, 4):
        raise InputError(f"curve {given!r}: expected power:TOP,GAP,EXPONENT[,WORTH OF NOTHING]")
    return Power(*numbers)


def _pair(point: Any, name: str) -> tuple[float, float]:
    try:
        samples, worth = map(float, point if isinstance(point, list | tuple) else ())
    except (TypeError, ValueError):
        samples, worth = math.nan, math.nan
    if not (math.isfinite(samples) and math.isfinite(worth) and samples >= 0):
        raise InputError(
            f"curve {name} holds {point!r}: expected samples from 0 and a utility, both finite"
        )
    return samples, worth
