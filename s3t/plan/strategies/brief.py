"""The input of a strategy: number of slices, budget, deletion rates, utility of prefixes.

Invariant: a Brief can be met by at least one plan. Nothing in it depends on private data; otherwise
a run without the deleted samples could get other sequences (E3).
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
    """What a strategy chooses sequences for.

    Attributes:
        slices: L.
        budget: number of sequences; with ``costs`` the maximum cost of all nodes together.
        costs: [L], cost of a node of stage 1, 2, … L; None if the budget counts sequences.
        rates: [L], relative deletion rate of each slice, scaled to a mean of 1; default: all equal.
            All zero means that nothing is deleted.
        utility: [L + 1], utility of a prefix of 0, 1, … L slices; default k/L, the fraction of the
            data.
        horizon: number of deletion requests per slice over which utility is averaged.
        seed: seed of strategies that draw.
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
        """[L + 1], utility of a prefix of 0, 1, … L slices."""
        return self.utility or tuple(k / self.slices for k in range(self.slices + 1))

    @property
    def node_costs(self) -> tuple[float, ...]:
        """[L], cost of a node of stage 1, 2, … L; without ``costs`` the number of its slices."""
        return self.costs or tuple(float(stage) for stage in range(1, self.slices + 1))

    @cached_property
    def scaled_rates(self) -> tuple[float, ...]:
        """[L], rates scaled to a mean of 1; zeros if nothing is deleted."""
        rates = np.asarray(self.rates or (1.0,) * self.slices, dtype=np.float64)
        top = rates.max()
        if not top:
            return (0.0,) * self.slices
        rates = rates / top  # first, so that no sum overflows
        return tuple(float(rate) for rate in rates / rates.mean())

    @cached_property
    def law(self) -> Floats:
        """[2^L], for each set of slices the fraction of the horizon in which exactly it is
        untouched."""
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
"""A pure function that chooses the sequences of one shard."""


def spent(sequences: Iterable[Sequence[int]], costs: Sequence[float]) -> float:
    """Cost of all nodes of some sequences; a prefix that several share counts once.

    Args:
        sequences: sequences of slice numbers.
        costs: [L], cost of a node of stage 1, 2, … L.
    """
    return math.fsum(costs[len(prefix) - 1] for prefix in prefixes(sequences))
