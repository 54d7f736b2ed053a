"""The best that any choice of sequences or of slice sets can do, by integer programming.

Reference for the strategies, not part of the library: exact for L ≤ 6 in seconds.

    x_S      set S is trained                      (binary)
    y_U,k    untouched set U holds a trained set of k slices:  y ≤ Σ x_S over S ⊆ U, |S| = k
    value    Σ_U law(U) Σ_k (u_k − u_{k−1}) y_U,k

With a cost: S needs one trained set of one slice less inside it; Σ cost_|S| x_S ≤ budget.
With a number of sequences: that many units flow from the empty set up the lattice, and S is trained
if some of the flow passes through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from s3t.plan.strategies.brief import Brief

__all__ = ["cheapest", "optimum"]


def optimum(brief: Brief, seconds: float = 60.0) -> tuple[float, float]:
    """Best value of a tree for the brief's budget, and a proved upper bound on it.

    Args:
        brief: L ≤ 6; ``costs`` or a number of sequences.
        seconds: after which the best so far and the bound are returned.

    Returns:
        (value, bound), above that of an empty prefix; equal if the optimum is proved.
    """
    model = _Model(brief)
    if brief.costs is None:
        model.flow(brief.budget)
    else:
        model.rows.add(model.costs(brief.costs), 0.0, brief.budget)
        model.chains()
    found = model.solve({column: -gain for column, gain in model.gains()}, seconds)
    return -float(found.fun), -float(found.mip_dual_bound)


def cheapest(brief: Brief, value: float, seconds: float = 60.0) -> tuple[float, float]:
    """Least cost of a tree that is worth ``value``, and a proved lower bound on it.

    Args:
        brief: L ≤ 6; its budget is not looked at.
        value: above that of an empty prefix.
        seconds: as in ``optimum``.
    """
    model = _Model(brief)
    model.chains()
    model.rows.add(model.gains(), value, np.inf)
    found = model.solve(dict(model.costs(brief.node_costs)), seconds)
    return float(found.fun), float(found.mip_dual_bound)


class _Model:
    """Columns: x per set, y per (untouched set, size), f per arc of the lattice if it flows."""

    def __init__(self, brief: Brief) -> None:
        self._brief = brief
        slices = brief.slices
        self._sets = range(1, 1 << slices)
        self._x = {mask: number for number, mask in enumerate(self._sets)}
        covers = [(mask, k) for mask in self._sets for k in range(1, mask.bit_count() + 1)]
        self._y = {cover: len(self._x) + number for number, cover in enumerate(covers)}
        self._f: dict[tuple[int, int], int] = {}
        self._most = 1.0
        self.rows = _Rows()
        for (untouched, k), column in self._y.items():  # y ≤ Σ x
            inside = [s for s in self._sets if s & ~untouched == 0 and s.bit_count() == k]
            self.rows.add([(column, 1.0), *((self._x[s], -1.0) for s in inside)], -np.inf, 0.0)

    def gains(self) -> list[tuple[int, float]]:
        """Worth of each y."""
        law, steps = self._brief.law, np.diff(self._brief.worth)
        return [(column, float(law[u] * steps[k - 1])) for (u, k), column in self._y.items()]

    def costs(self, costs: Sequence[float]) -> list[tuple[int, float]]:
        """Cost of each x."""
        return [(self._x[s], costs[s.bit_count() - 1]) for s in self._sets]

    def chains(self) -> None:
        """A set needs one trained set of one slice less inside it."""
        for mask in self._sets:
            parents = [mask & ~(1 << c) for c in range(self._brief.slices) if mask >> c & 1]
            if all(parents):
                row = [(self._x[mask], 1.0), *((self._x[parent], -1.0) for parent in parents)]
                self.rows.add(row, -np.inf, 0.0)

    def flow(self, sequences: float) -> None:
        """A set is trained only if one of so many sequences passes through it."""
        slices = self._brief.slices
        arcs = [(m, m | 1 << c) for m in (0, *self._sets) for c in range(slices) if not m >> c & 1]
        self._f = {arc: len(self._x) + len(self._y) + n for n, arc in enumerate(arcs)}
        self._most = sequences
        self.rows.add([(self._f[arc], 1.0) for arc in arcs if not arc[0]], 0.0, sequences)
        for mask in self._sets:
            inflow = [(self._f[arc], 1.0) for arc in arcs if arc[1] == mask]
            outflow = [(self._f[arc], -1.0) for arc in arcs if arc[0] == mask]
            self.rows.add([*inflow, *outflow], 0.0, np.inf)
            self.rows.add([(self._x[mask], -1.0), *inflow], 0.0, np.inf)

    def solve(self, objective: dict[int, float], seconds: float) -> Any:
        """Minimise; y follows from x, so it may be fractional."""
        total = len(self._x) + len(self._y) + len(self._f)
        weights, upper, integral = np.zeros(total), np.ones(total), np.ones(total)
        for column, weight in objective.items():
            weights[column] = weight
        upper[list(self._f.values())] = self._most
        integral[list(self._y.values())] = 0
        return milp(
            weights,
            constraints=self.rows.constraint(total),
            bounds=Bounds(0, upper),
            integrality=integral,
            options={"time_limit": seconds, "mip_rel_gap": 1e-6},
        )


class _Rows:
    """Rows of a sparse constraint matrix."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, float]] = []
        self._bounds: list[tuple[float, float]] = []

    def add(self, entries: list[tuple[int, float]], low: float, high: float) -> None:
        row = len(self._bounds)
        self._entries += [(row, column, value) for column, value in entries]
        self._bounds.append((low, high))

    def constraint(self, columns: int) -> LinearConstraint:
        row, column, value = zip(*self._entries, strict=True)
        shape = (len(self._bounds), columns)
        low, high = zip(*self._bounds, strict=True)
        return LinearConstraint(coo_array((value, (row, column)), shape=shape).tocsc(), low, high)
