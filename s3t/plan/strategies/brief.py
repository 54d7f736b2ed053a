"""What a strategy is asked: how many slices, what may be spent, and what protection is worth.

Invariant: a Brief that exists can be met. It holds nothing that depends on private data: sequences
that did would not be those of a run without the deleted samples (E3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from s3t.errors import ConfigError
from s3t.plan.sequences import Sequences
from s3t.plan.survival.untouched import Floats, along_time
from s3t.plan.trie import prefixes

__all__ = ["Brief", "Strategy", "spent"]


@dataclass(frozen=True)
class Brief:
    """A strategy's task.

    Attributes:
        slices: L.
        budget: number of sequences; with ``costs`` the most that all nodes may cost together.
        costs: [L], of a node of stage 1, 2, … L; None to count sequences.
        rates: [L], relative rates of deletion per slice, uniform by default. Probabilities do:
            they are scaled to a mean of 1. All zero: nothing is ever deleted.
        utility: [L + 1], worth of a prefix of k slices, by default k/L, the share of data served.
        horizon: deletion requests per slice over which protection counts.
    """

    slices: int
    budget: float
    costs: tuple[float, ...] | None = None
    rates: tuple[float, ...] = ()
    utility: tuple[float, ...] = ()
    horizon: float = 1.0
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        if problems := [*self._shape_problems(), *self._value_problems()]:
            raise ConfigError(problems)

    @property
    def worth(self) -> tuple[float, ...]:
        """[L + 1], worth of a prefix of k slices."""
        return self.utility or tuple(k / self.slices for k in range(self.slices + 1))

    @property
    def node_costs(self) -> tuple[float, ...]:
        """[L], cost of a node of each stage; slices × stages without ``costs``."""
        return self.costs or tuple(float(stage) for stage in range(1, self.slices + 1))

    @cached_property
    def scaled_rates(self) -> tuple[float, ...]:
        """[L], rates with a mean of 1; zeros if nothing is ever deleted."""
        rates = np.asarray(self.rates or (1.0,) * self.slices, dtype=np.float64)
        top = rates.max()
        if not top:
            return (0.0,) * self.slices
        rates = rates / top  # first, so that no sum overflows
        return tuple(float(rate) for rate in rates / rates.mean())

    @cached_property
    def law(self) -> Floats:
        """[2^L], share of the horizon that each set of slices is the untouched one."""
        return along_time(self.scaled_rates, self.horizon)

    def _shape_problems(self) -> list[str]:
        if self.slices < 1:
            return [f"{self.slices} slices: at least 1 is needed"]
        found = []
        for name, values, length in (
            ("rates", self.rates, self.slices),
            ("utility", self.utility, self.slices + 1),
            ("costs", self.costs or (), self.slices),
        ):
            if values and len(values) != length:
                found.append(f"{len(values)} {name} for {self.slices} slices: give {length}")
        return found

    def _value_problems(self) -> list[str]:
        found = []
        if not all(0 <= rate < math.inf for rate in self.rates):
            found.append(f"rates {list(self.rates)}: each must be a number from 0")
        if any(
            later < sooner for sooner, later in zip(self.utility, self.utility[1:], strict=False)
        ):
            found.append(f"utility {list(self.utility)} falls: more data must not be worth less")
        if not all(math.isfinite(value) for value in self.utility):
            found.append(f"utility {list(self.utility)}: each must be a number")
        if not 0 < self.horizon < math.inf:
            found.append(f"horizon {self.horizon}: give a number of requests per slice over 0")
        return found + (self._cost_problems() if self.costs else self._sequence_problems())

    def _sequence_problems(self) -> list[str]:
        if self.budget < 1 or self.budget != int(self.budget):
            return [f"budget {self.budget}: expected a whole number of sequences from 1"]
        if self.slices <= 20 and self.budget > math.factorial(max(self.slices, 1)):
            return [
                f"sequences.budget {self.budget:.0f} is over the {math.factorial(self.slices)} "
                f"permutations of {self.slices} slices: lower it or add slices"
            ]
        return []

    def _cost_problems(self) -> list[str]:
        costs = self.costs or ()
        if not all(0 < cost < math.inf for cost in costs):
            return [f"costs {list(costs)}: each must be a number over 0"]
        if not costs[0] <= self.budget < math.inf:
            return [f"budget {self.budget:g} does not pay for one node of stage 1 ({costs[0]:g})"]
        return []


Strategy = Callable[[Brief], Sequences]
"""Names the sequences of one shard; a pure function of the brief."""


def spent(sequences: Iterable[Sequence[int]], costs: Sequence[float]) -> float:
    """What the nodes of some sequences cost together; shared prefixes count once."""
    return math.fsum(costs[len(prefix) - 1] for prefix in prefixes(sequences))
