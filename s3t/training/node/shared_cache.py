"""Hidden states that the workers of a machine share: files that each of them maps.

    RUN/trunk/<base, boot>/cut-006/    rows     64 bytes a row: digest of the sample's content
                                       filled   1 byte a row
                                       hidden   [n, T, H]

Size: samples × (tokens × hidden × bytes of a number + 65) a cut, and at most one cut per slice of
the plan. Files are reserved whole before they are mapped, so a full disk is told, not met.

Invariants: a row is marked as filled after it lies there, both under one lock; files of another
base, of other samples, or from before the machine was started (its memory may not have reached
the disk) are never read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from s3t.types import Digest, digest

__all__ = ["Cut", "SharedCache"]

_LOCK = ".lock"


class Cut:
    """The hidden states of all rows at one cut, some of them filled.

    Args:
        hidden: [n, T, H].
        filled: [n] uint8.
        lock: file to lock while others may look; None if no other process does.
    """

    def __init__(self, hidden: Tensor, filled: Tensor, lock: Path | None = None) -> None:
        self.hidden, self._filled, self._lock = hidden, filled, lock

    def missing(self, index: Tensor) -> Tensor:
        """Those of the rows ``index`` that are not filled, sorted."""
        with _locked(self._lock):
            missing: Tensor = index[self._filled[index] == 0]
        found: Tensor = missing.unique()
        return found

    def fill(self, index: Tensor, hidden: Tensor) -> None:
        """Put the hidden states of rows ``index`` there."""
        with _locked(self._lock):
            self.hidden[index.to(self.hidden.device)] = hidden
            self._filled[index] = 1


class SharedCache:
    """The folder of one base.

    Args:
        root: the run's folder for hidden states.
        base: fingerprint of the base, and of the environment that computes them.
        samples: digest of each row's content.
    """

    def __init__(self, root: Path, base: Digest, samples: Sequence[Digest]) -> None:
        self._folder = root / digest({"base": base, "boot": _boot()})[:16]
        self._samples = "".join(samples).encode()

    def open(self, cut: int, shape: tuple[int, ...], dtype: torch.dtype) -> Cut | None:
        """The hidden states of all rows at one cut; None if the disk has no room for them.

        Args:
            cut: number of the layer that they enter.
            shape: (n, T, H).
            dtype: of a number.
        """
        folder = self._folder / f"cut-{cut:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        lock, numbers = folder / _LOCK, torch.Size(shape).numel()
        with _locked(lock):
            try:
                self._reserve(folder, numbers * dtype.itemsize)
            except OSError:
                return None
        hidden = torch.from_file(str(folder / "hidden"), True, numbers, dtype=dtype)
        filled = torch.from_file(str(folder / "filled"), True, shape[0], dtype=torch.uint8)
        return Cut(hidden.view(shape), filled, lock)

    def _reserve(self, folder: Path, size: int) -> None:
        """Files of the right size that belong to these samples; new and empty if they did not."""
        rows, hidden, filled = (folder / name for name in ("rows", "hidden", "filled"))
        if rows.is_file() and rows.read_bytes() == self._samples and hidden.stat().st_size == size:
            return
        for path in (rows, hidden, filled):
            path.unlink(missing_ok=True)  # who has the old ones mapped keeps them
        for path, length in ((hidden, size), (filled, len(self._samples) // 64)):
            with path.open("xb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, length)
                else:
                    file.truncate(length)
        rows.write_bytes(self._samples)


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _boot() -> str:
    """Names the present run of the machine's system."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
