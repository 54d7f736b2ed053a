"""Temporary folders for models trained again by an audit, and for copies of private data.

    scratch(run) ─► RUN/.scratch/s3t-scratch-XXXX/  ┐ locked by its process, and removed at the end,
    scratch()    ─► TMPDIR/s3t-scratch-XXXX/        ┘ on an error, on SIGINT, SIGTERM or SIGHUP
    process killed ─► the lock is free: the next command removes the folder

Invariant: a folder is removed before its process ends, unless the process is killed. Only the owner
may read it.
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
"""Folder in a run directory that holds the scratch folders."""

PREFIX = "s3t-scratch-"
"""Prefix of the names of scratch folders."""

_HELD = "held"
"""File in a scratch folder that its process keeps locked."""

_MAKING = 60.0
"""Seconds after which a folder without a lock file counts as left by a killed process."""


def places(run: Path | None = None) -> list[Path]:
    """Folders that may hold scratch folders: that of the run, and ``TMPDIR``."""
    own = Path(tempfile.gettempdir())
    return [own] if run is None else [run / FOLDER, own]


@contextmanager
def scratch(run: Path | None = None) -> Iterator[Path]:
    """An empty folder for this process, removed when the block ends.

    Args:
        run: the run directory in which to make it; without one, or if it cannot be written, the
            folder lies in ``TMPDIR``.

    Raises:
        S3TError: the folder cannot be removed at the end.
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
    """Remove the scratch folders whose process has ended.

    Args:
        run: the run directory to look in, besides ``TMPDIR``.
        remove: False only counts.

    Returns:
        the number of folders whose process has ended; and of folders that stay, because their
        process lives or they belong to another user.
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
    """Create the lock file under another name, lock it, then rename it, so it is never seen
    unlocked."""
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
    """Whether the folder's process has ended; removes the folder if asked for."""
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
    """Turn SIGTERM and SIGHUP into ``SystemExit``, so that ``finally`` blocks clean up."""

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
