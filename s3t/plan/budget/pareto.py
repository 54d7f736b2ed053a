"""Which of many plans are not worse than another one in everything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["non_dominated"]


def non_dominated(points: npt.ArrayLike) -> npt.NDArray[np.intp]:
    """Points that no other point beats: the Pareto front.

    A point beats another if it is nowhere greater and somewhere smaller. Of equal points the first
    stays. In lexicographic order no point can be beaten by a later one, so the first that is left
    belongs to the front and takes out all that it beats: O(points × front).

    Args:
        points: [n, d], less is better.

    Returns:
        Row numbers, ascending.
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
