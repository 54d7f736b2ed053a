"""The Pareto front: the plans that no other plan beats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["non_dominated"]


def non_dominated(points: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """The Pareto front of some points.

    A point beats another if no coordinate is greater and one is smaller. Of equal points the first
    stays. In lexicographic order no point is beaten by a later one, so the first of those left is
    in the front, and all that it beats are removed: O(points × front).

    Args:
        points: [n, d], smaller is better.

    Returns:
        row numbers of the front, ascending.
    """
    table = np.asarray(points, dtype=np.float64)
    if not table.size:
        return np.zeros(0, dtype=np.intp)
    left = np.lexsort(table.T[::-1])  # stable: of equal points the first comes first
    found = []
    while len(left):
        found.append(left[0])
        rest = left[1:]
        left = rest[(table[rest] < table[left[0]]).any(axis=1)]
    return np.sort(np.array(found, dtype=np.intp))
