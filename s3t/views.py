"""The views of a process: the one in force, those before it that still have readers.

    put(view 8) ─► in force: 8       pinned by answers under way
                   leaving:  7, 6    until their last reader has gone

Invariant: a view is immutable, so nobody sees half of one; whoever waits until older views have no
readers knows that nothing comes from them any more. A version is ``spoilt`` from the moment at
which a node that it served is found dead.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3t.plan.trie import Node

if TYPE_CHECKING:
    from s3t.ensemble import Ensemble

__all__ = ["View", "Views"]


@dataclass(eq=False)
class View:
    """What is served at one version; ``readers`` counts the answers under way on it."""

    version: int
    nodes: tuple[Node | None, ...]
    ensemble: Ensemble | None
    readers: int = 0


class Views:
    """Views of one process, shared by its threads."""

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self._current: View | None = None
        self._leaving: list[View] = []
        self._sound_from = 0

    @property
    def current(self) -> View | None:
        """The one in force."""
        return self._current

    def pin(self) -> View | None:
        """The one in force, with this reader counted on it."""
        with self._gate:
            if self._current is not None:
                self._current.readers += 1
            return self._current

    def unpin(self, view: View) -> None:
        """Count a reader off."""
        with self._gate:
            view.readers -= 1
            if not view.readers:
                self._gate.notify_all()

    def put(self, view: View | None, *, sound_from: int | None = None) -> None:
        """Put a view in force; None if nothing may answer until there is another.

        Args:
            view: the view.
            sound_from: versions before this one have served what is dead now.
        """
        with self._gate:
            old, self._current = self._current, view
            self._leaving = [one for one in (*self._leaving, old) if one and one.readers]
            if sound_from is not None:
                self._sound_from = max(self._sound_from, sound_from)

    def spoilt(self, version: int) -> bool:
        """Whether something that served at a version has died since, as far as this process knows.

        That of ``put``, so a view that is None at a deletion spoils all before it.
        """
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

    def _oldest(self, version: int) -> int:
        return min([version, *(view.version for view in self._leaving if view.readers)])
