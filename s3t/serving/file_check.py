"""Whether the files behind what is served are still those that were read.

Invariant: an answer is given only while the run directory, the ledger's file and the files of the
nodes that serve are the ones that were proved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from s3t.errors import DamagedNodeError, S3TError
from s3t.run.opened import OpenRun
from s3t.store import Stamp, folder_stamp, tensors_digest
from s3t.system.replaced import replaced
from s3t.types import NodeKey

__all__ = ["FileCheck"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
"""How often the files are looked at, at most."""


class FileCheck:
    """Looks at the files of one run, at most a few times a second."""

    def __init__(self, opened: OpenRun) -> None:
        self._opened = opened
        self._looked, self._told = -_LOOK_SECONDS, ""

    def holds(self, known: dict[NodeKey, Stamp | None], view: int) -> bool:
        """Whether the files are the same, looked at if the last look was a while ago.

        A node's file that was replaced is read again: where it holds the same, ``known`` is given
        its new stamp.

        Args:
            known: stamps of the nodes' files from before they were read.
            view: at which they serve.

        Returns:
            False if the ledger has come to another view since, so that they may be gone.

        Raises:
            UnavailableError: the run directory or the ledger's file was replaced or removed.
            IntegrityError: a node's file is gone or holds something else.
        """
        if time.monotonic() < self._looked + _LOOK_SECONDS:
            return True
        with self.logged():
            same = self._look(known, view)
        if self._told:
            _log.warning("the files of %s are as they were: answering", self._opened.run.root)
        self._told, self._looked = "", time.monotonic()
        return same

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Log an error that the block raises, though not the same one twice, and pass it on."""
        try:
            yield
        except S3TError as error:
            if str(error) != self._told:
                _log.error("nothing answers: %s", error)
            self._told = str(error)
            raise

    def _look(self, known: dict[NodeKey, Stamp | None], view: int) -> bool:
        opened, store = self._opened, self._opened.run.store
        opened.ledger.check()
        if (found := folder_stamp(opened.run.root)) != opened.folder:
            raise replaced(opened.run.root, found is None, "another directory")
        stamps = store.stamps(known)
        changed = sorted(key for key, stamp in stamps.items() if stamp != known[key])
        if changed and opened.ledger.view() != view:
            return False
        told = opened.ledger.plans.nodes() if changed else {}
        for key in changed:
            _, tensors = store.read(key)
            if key not in told or tensors_digest(tensors) != told[key].weights:
                raise DamagedNodeError(
                    key, "was replaced by another while it is served", str(store.path(key))
                )
            known[key] = stamps[key]
        return True
