"""A folder for models that have seen deleted samples: there while an attack is measured, no longer.

    scratch() ─► s3t-leakage-XXXX/, locked by its process ─► removed: at the end, by an error,
                                                             by SIGINT, SIGTERM or SIGHUP
    killed or switched off meanwhile ─► whoever calls scratch() next finds it without a holder

Invariant: what was trained here outlives no process that can still act. Only its owner may enter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from s3t.errors import S3TError

__all__ = ["scratch"]

_PREFIX = "s3t-leakage-"
_HELD = "held"
"""File that is locked as long as the process that made the folder lives."""


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder in the system's temporary one (``TMPDIR``), for this process alone.

    Raises:
        S3TError: at the end, if it cannot be removed.
    """
    _remove_abandoned()
    with _ended_by_signals():
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        held: TextIO | None = None
        try:
            held = _hold(folder)
            yield folder
        finally:
            _remove(folder)
            if held is not None:
                held.close()


def _hold(folder: Path) -> TextIO:
    """Lock the folder; it has the lock's name only once it is held."""
    coming = folder / f".{_HELD}"
    held = coming.open("w", encoding="utf-8")
    fcntl.flock(held, fcntl.LOCK_EX)
    coming.rename(folder / _HELD)
    return held


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise S3TError(
            f"{folder} holds models that have seen deleted samples and cannot be removed "
            f"({error}): remove it by hand"
        ) from None


def _remove_abandoned() -> None:
    """Remove the folders of ours whose process is no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_HELD}"):
        with suppress(OSError), path.open("r+", encoding="utf-8") as held:
            if path.parent.stat().st_uid == os.getuid():
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn what would end the process at once into an exit that cleans up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                ours.append(number)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
