"""Answers under way in all processes on one SQLite file, told by locks that die with a process.

    reader    lock byte v of LEDGER-readers ─► is v still the ledger's view? ─► compute ─► unlock
    deletion  commit view d ─► is a byte before d locked? wait ─► effective

The file is empty for ever: only its locks say something. They belong to an open file
(``F_OFD_SETLK``), so closing another file of the same name drops none. A deletion takes no lock, it
asks for those in its way; so deletions never wait for each other, nor readers for them.

Invariant: a reader looks at the ledger after it has locked, a deletion looks for locks after it has
committed. So a reader that the deletion does not see sees the deletion, and lets go of its view.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from s3t.errors import UnavailableError
from s3t.ledger import Ledger
from s3t.system.locks import file_lock, is_unlocked

__all__ = ["Readers"]

_POLL = 0.001
_POLL_MOST = 0.02


class Readers:
    """The answers under way on one ledger's file: those of this object, and all of them.

    ``enter`` and ``leave`` are called one at a time.

    Args:
        path: the file that is locked; it is made by the first reader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: dict[int, tuple[int, int]] = {}  # view: file and how many are under way
        _all.add(self)

    @classmethod
    def of(cls, ledger: Ledger) -> Readers | None:
        """Of a ledger that is a file; None where machines share it, and answers go by leases."""
        return None if ledger.shared else cls(Path(f"{os.path.realpath(ledger.name)}-readers"))

    def enter(self, view: int) -> None:
        """An answer of a view begins; the caller then looks whether the view is in force.

        Raises:
            UnavailableError: it cannot be told to others.
        """
        file, count = self._held.get(view) or (self._locked(view), 0)
        self._held[view] = file, count + 1

    def leave(self, view: int) -> None:
        """An answer of a view has ended."""
        held = self._held.pop(view, None)
        if held is None:
            return  # the parent's, in the child of a fork
        file, count = held
        if count > 1:
            self._held[view] = file, count - 1
        else:
            _unlock(file)

    def close(self) -> None:
        """All answers of this object have ended, or others are told of them in another way."""
        while self._held:
            _unlock(self._held.popitem()[1][0])

    def behind(self, view: int) -> bool:
        """Whether an answer of an older view is under way, in any process.

        Raises:
            UnavailableError: it cannot be seen.
        """
        if view <= 0:
            return False
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # who makes it from now on looks at the ledger afterwards
        except OSError as error:
            raise self._unusable(error) from None
        try:
            found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, file_lock(fcntl.F_WRLCK, 0, view))
        except OSError as error:
            raise self._unusable(error) from None
        finally:
            os.close(file)
        return not is_unlocked(found)

    def wait(self, view: int, seconds: float) -> bool:
        """Wait until no answer of an older view is under way; False if it takes longer.

        Raises:
            UnavailableError: it cannot be seen.
        """
        limit, pause = time.monotonic() + seconds, _POLL
        while self.behind(view):
            left = limit - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, pause))
            pause = min(2 * pause, _POLL_MOST)
        return True

    def forked(self) -> None:
        """In the child of a fork: the answers under way are the parent's."""
        for file, _ in self._held.values():
            os.close(file)  # the lock stays, as long as the parent has it
        self._held.clear()

    def _locked(self, view: int) -> int:
        """The file, opened and locked: the one that others find under its name."""
        try:
            while True:
                file = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.fcntl(file, fcntl.F_OFD_SETLK, file_lock(fcntl.F_RDLCK, view, 1))
                    if os.path.samestat(os.fstat(file), os.stat(self.path)):
                        return file
                except FileNotFoundError:
                    pass  # it was removed a moment ago: the next one is made
                except BaseException:
                    os.close(file)
                    raise
                os.close(file)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> UnavailableError:
        return UnavailableError(
            f"{self.path} cannot be locked ({error.strerror}), by which answers under way are told "
            "to deletions by other processes: let this user write there, on a disk with locks"
        )


_all: weakref.WeakSet[Readers] = weakref.WeakSet()


def _unlock(file: int) -> None:
    """Let go, even if a child that was forked by other means still has the file open."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, file_lock(fcntl.F_UNLCK))
    finally:
        os.close(file)


def _forget_parents() -> None:
    for readers in list(_all):
        readers.forked()


os.register_at_fork(after_in_child=_forget_parents)
