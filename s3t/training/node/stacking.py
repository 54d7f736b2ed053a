"""Whether nodes may be computed stacked: only where that changes no bit.

Shapes are chosen so that it should not (``determinism``). And the first step of each shape is
computed stacked *and* node by node. Where any gradient of any node differs, that shape is computed
node by node from then on, and a warning says so.

Invariant: a shape is stacked only if this machine was seen to round it alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

from s3t.model.base import Base
from s3t.training.node.process_group import ProcessGroup

__all__ = ["Stacking"]

_log = logging.getLogger(__name__)


class Stacking:
    """Which shapes may be stacked, as far as they have been met.

    Args:
        base: the frozen base.
        process_group: the processes that must all have seen the same.
    """

    def __init__(self, base: Base, process_group: ProcessGroup) -> None:
        self._base, self._process_group = base, process_group
        self._agreed: dict[Hashable, bool] = {}
        self._told = False

    @property
    def one_by_one(self) -> list[Hashable]:
        """Shapes at which nodes are computed one by one, since a stack of them differed here."""
        return [shape for shape, agreed in self._agreed.items() if not agreed]

    def agreed(self, shape: Hashable) -> bool:
        """Whether a shape that was met is stacked."""
        return self._agreed[shape]

    def allows(self, shape: Hashable, same: Callable[[], bool], positions: int) -> bool:
        """Whether a shape may be computed stacked.

        Args:
            shape: names it.
            same: computes it in both ways, and tells whether they agree here.
            positions: of a node's rows in it.
        """
        if shape not in self._agreed:
            why = ""
            if not self._base.rounds_alike(positions):
                why = "arithmetic or numbers that are not strict, or widths that fill no vectors"
            elif not self._process_group.all(same()):
                why = "this machine rounds a stack of them otherwise"
            self._agreed[shape] = not why
            if why:
                self._tell(why, shape)
        return self._agreed[shape]

    def _tell(self, why: str, shape: Hashable) -> None:
        """Say once that nodes are not stacked."""
        if not self._told:
            _log.warning(
                "nodes are trained one by one (%s; shape %s): slower, and the same bytes",
                why,
                shape,
            )
        self._told = True
