"""Folders for what must not stay: trained again for an audit, or copied out of private data.

    scratch(run) ─► RUN/.scratch/s3t-scratch-XXXX/  locked by its process ─► removed: at the end, by
    scratch()    ─► TMPDIR/s3t-scratch-XXXX/                an error, by SIGINT, SIGTERM or SIGHUP
    killed or switched off meanwhile ─► without a holder: swept by the next command, told by purge

Invariant: what lies here outlives no process that can still act. Only its owner may enter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from s3t.errors import S3TError

__all__ = ["FOLDER", "PREFIX", "ended_by_signals", "places", "scratch", "sweep"]

FOLDER = ".scratch"
"""Where they are in a run directory."""

PREFIX = "s3t-scratch-"
"""How their names begin."""

_HELD = "held"
"""File that is locked as long as the process that made the folder lives."""

_MAKING = 60.0
"""Seconds after which a folder that is not locked yet is one of a process that was killed."""


def places(run: Path | None = None) -> list[Path]:
    """Folders in which there may be some: of a run, and of the user here (``TMPDIR``)."""
    own = Path(tempfile.gettempdir())
    return [own] if run is None else [run / FOLDER, own]


@contextmanager
def scratch(run: Path | None = None) -> Iterator[Path]:
    """An empty folder for this process alone.

    Args:
        run: the run directory that it is for; where that cannot be written, and without one, it
            lies in the system's temporary folder.

    Raises:
        S3TError: at the end, if it cannot be removed.
    """
    sweep(run)
    with ended_by_signals():
        folder = _made(run)
        held: TextIO | None = None
        try:
            held = _hold(folder)
            yield folder
        finally:
            _remove(folder)
            if held is not None:
                held.close()
            if run is not None:
                with suppress(OSError):  # others have theirs in it
                    (run / FOLDER).rmdir()


def sweep(run: Path | None = None, *, remove: bool = True) -> tuple[int, int]:
    """Remove the folders whose process is no more.

    Args:
        run: its directory; without it only the system's temporary folder is looked at.
        remove: remove them, or only look.

    Returns:
        how many there were; and how many stay, since their process lives or since they are not
        ours to remove.
    """
    gone = stay = 0
    for place in places(run):
        for folder in sorted(place.glob(f"{PREFIX}*")):
            if _is_abandoned(folder, remove):
                gone += 1
            elif place.name == FOLDER or _is_ours(folder):
                stay += 1
    return gone, stay


def _made(run: Path | None) -> Path:
    while run is not None:
        try:
            (run / FOLDER).mkdir(mode=0o700, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=run / FOLDER)).absolute()
        except FileNotFoundError:
            if not run.is_dir():
                raise
            # else another process that was done has removed it just now
        except OSError:
            break
    return Path(tempfile.mkdtemp(prefix=PREFIX))


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
            f"{folder} holds models or data that may have seen deleted samples and cannot be "
            f"removed ({error}): remove it by hand"
        ) from None


def _is_ours(folder: Path) -> bool:
    try:
        return folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def _is_abandoned(folder: Path, remove: bool) -> bool:
    """Whether it was abandoned and, if asked for, is removed now."""
    if not _is_ours(folder):
        return False
    try:
        with (folder / _HELD).open("r+", encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove:
                shutil.rmtree(folder)
    except FileNotFoundError:  # never locked: it is being made, or its maker was killed
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _MAKING:
                if remove:
                    shutil.rmtree(folder)
                return True
        return False
    except OSError:
        return False
    return True


@contextmanager
def ended_by_signals() -> Iterator[None]:
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
