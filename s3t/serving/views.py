"""The views of a process: the one in force, those before it that still have readers.

    put(view 8) ─► in force: 8       pinned by answers under way
                   leaving:  7, 6    until their last reader has gone

Invariant: a view is immutable, so nobody sees half of one; whoever waits until older views have no
readers knows that nothing comes from them any more. Where there are ``Readers``, other processes
are told of a reader before ``pin`` has returned. A version is ``spoilt`` once a node that it served
is found dead, even if nothing has served that node for some views. What was served too long ago to
be remembered counts as spoilt.
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
    from s3t.store import Stamp

__all__ = ["View", "Views"]

_REMEMBERED = 64
"""Views that went out of force, of which it is known what they served."""


@dataclass(eq=False)
class View:
    """What is served at one version.

    Attributes:
        version: the ledger's view.
        nodes: each shard's last node, None where none is left.
        ensemble: what answers; None if nothing can.
        files: stamps of the node files, as they were before they were read.
        readers: answers under way on it.
    """

    version: int
    nodes: tuple[Node | None, ...]
    ensemble: Ensemble | None
    files: dict[NodeKey, Stamp | None]
    readers: int = 0


class Views:
    """Views of one process, shared by its threads.

    Args:
        told: by which other processes know of the readers, if they do not know otherwise.
    """

    def __init__(self, told: Readers | None = None) -> None:
        self._told = told
        self._gate = threading.Condition()
        self._current: View | None = None
        self._leaving: list[View] = []
        self._served: deque[tuple[int, frozenset[NodeKey]]] = deque(maxlen=_REMEMBERED)
        self._sound_from = 0

    @property
    def current(self) -> View | None:
        """The one in force."""
        return self._current

    def pin(self) -> View | None:
        """The one in force, with this reader counted on it.

        Raises:
            UnavailableError: other processes cannot be told of it.
        """
        with self._gate:
            if self._current is not None:
                if self._told is not None:
                    self._told.enter(self._current.version)
                self._current.readers += 1
            return self._current

    def unpin(self, view: View) -> None:
        """Count a reader off."""
        with self._gate:
            view.readers -= 1
            if self._told is not None:
                self._told.leave(view.version)
            if not view.readers:
                self._gate.notify_all()

    def untold(self) -> None:
        """From now on other processes know of the readers otherwise: by a lease."""
        with self._gate:
            told, self._told = self._told, None
            if told is not None:
                told.close()

    def put(self, view: View, is_alive: Callable[[NodeKey], bool]) -> None:
        """Put a view in force.

        Args:
            view: the view; those before it go out of force.
            is_alive: whether a node can serve at this view.
        """
        with self._gate:
            if self._current is None:
                self._sound_from = view.version  # what was served before is not known
                self._served.clear()
            else:
                keys = frozenset(node.key for node in self._current.nodes if node is not None)
                self._served.append((self._current.version, keys))
            for version, keys in self._served:
                if not all(map(is_alive, keys)):
                    self._sound_from = max(self._sound_from, version + 1)
            if len(self._served) == _REMEMBERED:
                self._sound_from = max(self._sound_from, self._served[0][0])
            self._leave(view)

    def drop(self, version: int) -> None:
        """Let nothing answer until a view is put in force; all before ``version`` are spoilt."""
        with self._gate:
            self._sound_from = max(self._sound_from, version)
            self._leave(None)

    def spoilt(self, version: int) -> bool:
        """Whether something that served at a version has died since, as far as is known here."""
        return version < self._sound_from

    def wait(self, version: int, seconds: float | None = None) -> bool:
        """Wait for the readers of views older than ``version``; False if it takes longer."""
        with self._gate:
            gone = self._gate.wait_for(lambda: self._oldest(version) >= version, seconds)
            self._leaving = [view for view in self._leaving if view.readers]
            return gone

    def oldest(self, version: int) -> int:
        """The oldest view that still has readers, at most ``version``."""
        with self._gate:
            return self._oldest(version)

    def _leave(self, view: View | None) -> None:
        old, self._current = self._current, view
        self._leaving = [one for one in (*self._leaving, old) if one and one.readers]

    def _oldest(self, version: int) -> int:
        return min([version, *(view.version for view in self._leaving if view.readers)])
