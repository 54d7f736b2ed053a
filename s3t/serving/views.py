"""What a process serves, view by view: the one in force, those before it that still have readers.

    put(view 8) ─► in force: 8       pinned by answers under way
                   leaving:  7, 6    until their last reader has gone

Invariant: a ``ServingView`` never changes, so no answer sees half of one. Once older views have no
readers, nothing comes from them any more. Where there are ``Readers``, a lock tells other processes
of an answer before ``pin`` has returned. A view is hit once a node that it served is found dead,
even if nothing has served that node for some views. What was served too long ago to be remembered
counts as hit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3t.plan.trie import Node
from s3t.serving.readers import Readers
from s3t.types import NodeKey

if TYPE_CHECKING:
    from s3t.serving.ensemble.ensemble import Ensemble
    from s3t.serving.ensemble.mixture import Mixture
    from s3t.store import Stamp

__all__ = ["ServingView", "Views"]

_REMEMBERED = 64
"""Views that went out of force, of which it is known what they served."""


@dataclass(eq=False)
class ServingView:
    """What is served at one view of the ledger.

    Attributes:
        view: its number.
        nodes: each shard's last node, None where none is left.
        ensemble: what answers; None if nothing can.
        files: stamps of the node files, as they were before they were read.
        mixture: the fitted weights of the ensemble; None as long as it has none.
        uniform: in that case, the ensemble of the same nodes without them.
        readers: answers under way on it.
    """

    view: int
    nodes: tuple[Node | None, ...]
    ensemble: Ensemble | None
    files: dict[NodeKey, Stamp | None]
    mixture: Mixture | None = None
    uniform: Ensemble | None = None
    readers: int = 0

    @property
    def unweighted(self) -> Ensemble | None:
        """What answers without fitted weights; None if nothing can."""
        return self.uniform or self.ensemble


class Views:
    """Views of one process, shared by its threads.

    Args:
        locks: by which other processes know of the readers; None where leases tell them.
    """

    def __init__(self, locks: Readers | None = None) -> None:
        self._locks = locks
        self._gate = threading.Condition()
        self._current: ServingView | None = None
        self._leaving: list[ServingView] = []
        self._served: deque[tuple[int, frozenset[NodeKey]]] = deque(maxlen=_REMEMBERED)
        self._sound_from = 0

    @property
    def current(self) -> ServingView | None:
        """The one in force."""
        return self._current

    def pin(self) -> ServingView | None:
        """The one in force, with this reader counted on it.

        Raises:
            UnavailableError: other processes cannot be told of it.
        """
        with self._gate:
            if self._current is not None:
                if self._locks is not None:
                    self._locks.enter(self._current.view)
                self._current.readers += 1
            return self._current

    def unpin(self, pinned: ServingView) -> None:
        """Count a reader off."""
        with self._gate:
            pinned.readers -= 1
            if self._locks is not None:
                self._locks.leave(pinned.view)
            if not pinned.readers:
                self._gate.notify_all()

    def unlock(self) -> None:
        """Let go of the locks: from now on a lease tells other processes of the readers."""
        with self._gate:
            locks, self._locks = self._locks, None
            if locks is not None:
                locks.close()

    def put(self, new: ServingView, is_alive: Callable[[NodeKey], bool]) -> None:
        """Put a view in force.

        Args:
            new: the view, or the one in force with another ensemble of the same nodes; those
                before it go out of force.
            is_alive: whether a node can serve at this view.
        """
        with self._gate:
            if self._current is None:
                self._sound_from = new.view  # what was served before is not known
                self._served.clear()
            elif self._current.view != new.view:
                keys = frozenset(node.key for node in self._current.nodes if node is not None)
                self._served.append((self._current.view, keys))
            for view, keys in self._served:
                if not all(map(is_alive, keys)):
                    self._sound_from = max(self._sound_from, view + 1)
            if len(self._served) == _REMEMBERED:
                self._sound_from = max(self._sound_from, self._served[0][0])
            self._leave(new)

    def drop(self, view: int) -> None:
        """Let nothing answer until a view is put in force; all before ``view`` count as hit."""
        with self._gate:
            self._sound_from = max(self._sound_from, view)
            self._leave(None)

    def is_hit(self, view: int) -> bool:
        """Whether something that served at a view has died since, as far as is known here."""
        return view < self._sound_from

    def wait(self, view: int, seconds: float | None = None) -> bool:
        """Wait for the readers of views older than ``view``; False if it takes longer."""
        with self._gate:
            gone = self._gate.wait_for(lambda: self._oldest(view) >= view, seconds)
            self._leaving = [one for one in self._leaving if one.readers]
            return gone

    def oldest(self, view: int) -> int:
        """The oldest view that still has readers, at most ``view``."""
        with self._gate:
            return self._oldest(view)

    def _leave(self, new: ServingView | None) -> None:
        old, self._current = self._current, new
        self._leaving = [one for one in (*self._leaving, old) if one and one.readers]

    def _oldest(self, view: int) -> int:
        return min([view, *(one.view for one in self._leaving if one.readers)])
