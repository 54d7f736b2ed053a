"""The exact law of the number of requests until an event, from the law of its time.

On the clock of ``stream`` slots are independent, so S(t), the probability that the event comes
after time t, is a short product. The wanted law is that of R, the number of requests until the
event:

    endless   e^{x} · S(x)                 = Σ_r  x^r / r!    · P(R > r)
    finite    (1 + y)^M · S(log(1 + y))    = Σ_r  C(M, r) y^r · P(R > r)

The left sides hold for complex arguments, so P(R > r) is Cauchy's integral over a circle. Its
radius is the saddle point of the factor before S (x = r; y = r/(M − r)). All coefficients are ≥ 0,
so the integrand is largest on the real axis, and precision is lost only by the factor √(2πr).
(Inclusion–exclusion loses all precision beyond some 30 slices.) The integrand falls like
e^{−rθ²/2}, and the trapezoidal rule over a period converges geometrically: 20 nodes are enough, 45
for small r, for any number of slots and requests.

Invariant: P(R > r) is within 1e-13 + 1e-15·√r of the truth for any rates and sizes; the tests
compare it with exact fractions and with step-by-step recursions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from s3t.errors import InputError
from s3t.plan.survival.stream import Floats

__all__ = ["Event", "RequestLaw"]

Times = npt.NDArray[Any]
"""[n], float64 or complex128."""

_CUT = 80.0
"""Nodes of the integral where the factor before S is below e^{−80} of its peak are left out."""

_ROWS = 1024
"""Numbers of requests that are computed in one block."""

_ROUNDING = 1e-12

_MOST_PANELS = 1 << 13

_NOW = (0.0, 0.0)
"""Bracket of an event that needs no request."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


class Event(Protocol):
    """An event that happens once certain slots are hit, at a time T of the clock."""

    @property
    def certain(self) -> bool:
        """Whether the event is sure to happen; otherwise R may be infinite."""

    @property
    def bracket(self) -> tuple[float, float]:
        """Two times: before the first P(T ≤ t) is below 1e-18, after the second P(T > t) below
        1e-20."""

    def pending(self, times: Times) -> Times:
        """P(T > t), also for complex t ≠ 0, with small relative error where it is small."""

    def happened(self, times: Times) -> Times:
        """P(T ≤ t), also for complex t ≠ 0, with small relative error where it is small."""


@dataclass(frozen=True, eq=False)
class RequestLaw:
    """Law of R, the number of requests until an event.

    Attributes:
        event: the event, with the law of its time.
        samples: M, number of samples of a finite stream; None for an endless one.
    """

    event: Event
    samples: int | None

    @property
    def mean(self) -> float:
        """E[R]; inf if the event may never happen. Relative error about 1e-12.

        Endless: E[R] = E[T] = ∫ P(T > t) dt, since requests come at rate 1. Finite: with
        X = 1 − e^{−T}, T falls on the R-th smallest of M uniform numbers, so E[R] = (M + 1)·E[X].
        """
        return self._moments[0]

    @property
    def variance(self) -> float:
        """Var[R]; inf if the event may never happen.

        Endless: given R, T is a sum of R waits of mean 1, so Var[T] = Var[R] + E[R]. Finite:
        E[R·(R + 1)] = (M + 1)·(M + 2)·E[X²].
        """
        return self._moments[1]

    def survival(self, requests: npt.ArrayLike) -> Floats:
        """P(R > r): the probability that the event has not happened after r requests.

        Args:
            requests: whole numbers r, any shape. Each costs some 20 evaluations of P(T > t).

        Returns:
            The shape of ``requests``. Absolute error up to about 1e-15·√r, 1e-12 at r = 10^6.
        """
        asked = np.asarray(requests)
        if asked.dtype.kind not in "iu":
            raise InputError(f"requests of type {asked.dtype}: they are counted in whole numbers")
        flat = asked.ravel().astype(np.int64)
        found = np.empty(len(flat))
        for start in range(0, len(flat), _ROWS):
            found[start : start + _ROWS] = self._survival(flat[start : start + _ROWS])
        return found.reshape(asked.shape)

    def quantile(self, probability: float) -> float:
        """The smallest r with P(R ≤ r) ≥ probability; inf if the event may never happen.

        Args:
            probability: over 0 and below 1.

        Raises:
            InputError: another probability.
        """
        if not 0 < probability < 1:
            raise InputError(f"probability {probability}: expected a number between 0 and 1")
        if not self.event.certain:
            return math.inf
        above = self.samples or 2 * math.ceil(self.mean) + 1
        while self.samples is None and self._is_pending(above, 1 - probability):
            above *= 2
        below = -1
        while above - below > 1:
            middle = (above + below) // 2
            pending = self._is_pending(middle, 1 - probability)
            below, above = (middle, above) if pending else (below, middle)
        return float(above)

    def _is_pending(self, requests: int, probability: float) -> bool:
        """Whether P(R > r) > probability, up to rounding errors."""
        return bool(self._survival(np.array([requests]))[0] > probability + _ROUNDING)

    def _survival(self, requests: npt.NDArray[np.int64]) -> Floats:
        """P(R > r) for r of shape [n], up to ``_ROWS``."""
        if not self.event.certain:
            return np.ones(len(requests))
        if self.event.bracket == _NOW:
            return np.zeros(len(requests))
        found = np.ones(len(requests))
        if self.samples is not None:
            found[requests >= self.samples] = 0.0
        inside = (requests > 0) & (found > 0)
        if inside.any():
            found[inside] = self._integral(requests[inside].astype(np.float64))
        return found

    def _integral(self, requests: Floats) -> Floats:
        """Cauchy's integral for 0 < r < M, [n], by the trapezoidal rule over half the circle."""
        fraction = np.zeros(len(requests)) if self.samples is None else requests / self.samples
        spread = requests * (1 - fraction)  # variance of the Poisson or binomial weights
        # Weights 9 deviations off are under 1e-17 of the peak; 30 more for the tails of small r.
        # The factor falls like e^{−2·spread·sin²(θ/2)}, or faster.
        period = 2 * np.ceil(4.5 * np.sqrt(spread) + 15) + 1
        widest = 2 * np.arcsin(np.sqrt(np.minimum(1, _CUT / 2 / spread)))
        last = np.minimum((period - 1) // 2, np.ceil(widest * period / (2 * np.pi)))
        node = np.arange(last.max() + 1)
        angle = np.multiply.outer(2 * np.pi / period, node)
        log_factor, times = self._on_circle(requests[:, None], fraction[:, None], angle)
        kept = (node <= last[:, None]) & np.isfinite(times)
        values = np.zeros(angle.shape)
        values[kept] = (np.exp(log_factor[kept]) * self.event.pending(times[kept])).real
        values[:, 1:] *= 2  # the other half is conjugate
        log_peak = np.log(2 * np.pi * spread) / 2 + _stirling_error(requests)
        if self.samples is not None:
            log_peak += _stirling_error(self.samples - requests) - _stirling_error(self.samples)
        found: Floats = np.clip(values.sum(axis=1) * np.exp(log_peak) / period, 0.0, 1.0)
        return found

    def _on_circle(
        self, requests: Floats, fraction: Floats, angle: Floats
    ) -> tuple[npt.NDArray[np.complex128], npt.NDArray[np.complex128]]:
        """Logarithm of the factor before S relative to its peak, less irθ; and the times of S."""
        fall = np.sin(angle / 2) ** 2
        if self.samples is None:
            log_factor = requests * (-2 * fall + 1j * (np.sin(angle) - angle))
            return log_factor, requests * np.exp(1j * angle)
        # 1 + y = (1 − x + x·e^{iθ}) / (1 − x), with x = r/M
        with np.errstate(divide="ignore"):
            size = np.log1p(-4 * fraction * (1 - fraction) * fall) / 2
        turn = np.arctan2(fraction * np.sin(angle), 1 - fraction + fraction * np.cos(angle))
        log_factor = self.samples * size + 1j * (self.samples * turn - requests * angle)
        return log_factor, size - np.log1p(-fraction) + 1j * turn

    @cached_property
    def _moments(self) -> tuple[float, float]:
        if not self.event.certain:
            return math.inf, math.inf
        if self.event.bracket == _NOW:
            return 0.0, 0.0
        first, second = self._converged(from_end=False)
        if self.samples is None:
            return first, max(0.0, second - first**2 - first)
        # Counted from the nearer end: with 1 − X in place of X it is M + 1 − R.
        from_end = first > 0.5
        if from_end:
            first, second = self._converged(from_end=True)
        mean = (self.samples + 1) * first
        variance = (self.samples + 1) * (self.samples + 2) * second - mean**2 - mean
        return self.samples + 1 - mean if from_end else mean, max(0.0, variance)

    def _converged(self, *, from_end: bool) -> tuple[float, float]:
        """First two moments of T (endless), of X or 1 − X (finite): Gauss–Legendre in log t.

        In panels over the bracket, halved until nothing changes.
        """
        low, high = (math.log(time) for time in self.event.bracket)
        panels = math.ceil((high - low) / 0.5)
        before, found = (math.inf, math.inf), self._integrals(low, high, panels, from_end)
        while panels < _MOST_PANELS and not np.allclose(before, found, rtol=1e-13, atol=0):
            panels *= 2
            before, found = found, self._integrals(low, high, panels, from_end)
        return found

    def _integrals(
        self, low: float, high: float, panels: int, from_end: bool
    ) -> tuple[float, float]:
        half = (high - low) / panels / 2
        centres = low + half * (2 * np.arange(panels) + 1)
        times = np.exp(np.add.outer(centres, half * _NODES).ravel())
        steps = np.tile(half * _WEIGHTS, panels) * times
        start, end = math.exp(low), math.exp(high)
        if self.samples is None:
            chance = self.event.pending(times) * steps
            return start + float(chance.sum()), start**2 + 2 * float((chance * times).sum())
        left = np.exp(-times)
        steps *= left
        if from_end:
            chance = self.event.happened(times) * steps
            first, second = math.exp(-end), math.exp(-2 * end)
            return first + float(chance.sum()), second + 2 * float((chance * left).sum())
        chance = self.event.pending(times) * steps
        first = -math.expm1(-start)
        return first + float(chance.sum()), first**2 + 2 * float((chance * (1 - left)).sum())


def _stirling_error(number: npt.ArrayLike) -> Floats:
    """log n! less Stirling's (n + ½)·log n − n + ½·log 2π, for n ≥ 1; by its series from 16."""
    n = np.asarray(number, dtype=np.float64)
    direct = gammaln(n + 1) - (n + 0.5) * np.log(n) + n - np.log(2 * np.pi) / 2
    series = np.polyval([1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12], 1 / n**2) / n
    return np.where(n < 16, direct, series)
