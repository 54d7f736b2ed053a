"""What the planner is asked: how much data, how deep a base, how many deletions, at what price.

Invariant: a Question that exists can be planned: its grid has a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from s3t.errors import ConfigError
from s3t.plan.budget.curve import DEFAULT, Curve
from s3t.plan.survival.untouched import Floats

__all__ = ["Question"]

SLICES = (1, 2, 3, 4, 6, 8, 10, 12)
"""L that are tried, and the number of layers if that is below the last. Each slice needs a layer of
its own, tables over slice sets grow like 2^L, and so does what further slices cost in training: the
cyclic plan trains on all data (L + 1)·L/2 times."""

SHARDS = 8
"""Powers of two that m is tried at: 64 cells with ``SLICES``."""

LONGEST = 32.0
"""Requests per slice that a tree is grown for at most; by then nearly nothing is left."""


@dataclass(frozen=True)
class Question:
    """What is to be planned, and what it may cost and risk.

    Attributes:
        samples: private samples in all.
        layers: of the base; each slice of a shard needs one at least.
        deletions: R, requests along the horizon.
        curve: worth of a prefix by its samples.
        epochs: of each stage.
        least: samples per slice at the least, on average. The hash deals them at random: with 8 one
            slice in 3,000 comes out empty.
        overhead: sample passes that starting a stage costs on top of its own.
        layer_bytes: bytes of one layer's adapter, None if unknown.
        risk: greatest probability of exhaustion after R deletions, between 0 and 1.
        max_passes: greatest training cost in samples × epochs, overhead included.
        max_bytes: greatest storage; needs ``layer_bytes``.

    Raises:
        ConfigError: every value that is impossible.
    """

    samples: int
    layers: int
    deletions: int
    curve: Curve = field(default=DEFAULT)
    epochs: int = 10
    least: int = 8
    overhead: float = 0.0
    layer_bytes: int | None = None
    risk: float = 0.01
    max_passes: float = math.inf
    max_bytes: float = math.inf

    def __post_init__(self) -> None:
        counts = (("samples", self.samples), ("layers", self.layers), ("epochs", self.epochs))
        found = [f"{name} {value}: at least 1 is needed" for name, value in counts if value < 1]
        if self.deletions < 0:
            found.append(f"deletions {self.deletions}: give a number from 0")
        if self.least < 1:
            found.append(f"min-slice {self.least}: a slice needs a sample at least")
        elif 1 <= self.samples < self.least:
            found.append(
                f"samples {self.samples} do not fill one slice of {self.least} (min-slice)"
            )
        if not 0 <= self.overhead < math.inf:
            found.append(f"stage-overhead {self.overhead:g}: give sample passes from 0")
        if self.layer_bytes is not None and self.layer_bytes < 1:
            found.append(f"bytes-per-layer {self.layer_bytes}: at least 1 is needed")
        if not 0 < self.risk < 1:
            found.append(f"risk {self.risk:g}: give a probability between 0 and 1")
        for name, value in (("max-passes", self.max_passes), ("max-bytes", self.max_bytes)):
            if not value > 0:
                found.append(f"{name} {value:g}: give a number over 0")
        if self.max_bytes < math.inf and self.layer_bytes is None:
            found.append("max-bytes needs bytes-per-layer")
        if found:
            raise ConfigError(found, "budget")

    @property
    def cells(self) -> dict[int, tuple[int, ...]]:
        """The grid: numbers of shards by number of slices. Up to ``SHARDS`` · 8 cells.

        m goes up to 128, or twice the deletions if that is more: beyond, most shards are never hit.
        """
        most = min(self.samples // self.least, max(128, 2 * self.deletions))
        powers = [1 << power for power in range(most.bit_length())][-SHARDS:]
        tried = sorted({*SLICES, min(self.layers, SLICES[-1])})
        shards = {
            slices: tuple(m for m in powers if m * slices * self.least <= self.samples)
            for slices in tried
            if slices <= self.layers
        }
        return {slices: found for slices, found in shards.items() if found}

    def worth(self, shards: int, slices: int) -> Floats:
        """Utility of prefixes of 0 … L slices: [L + 1]."""
        shard = self.samples / shards
        found = self.curve.utility(np.arange(slices + 1) * (shard / slices), shard)
        return np.maximum.accumulate(found)  # rounding must not make it fall

    def horizon(self, shards: int, slices: int) -> float:
        """Requests per slice, as ``sequences.horizon`` counts them."""
        return min(max(self.deletions, 1) / (shards * slices), LONGEST)
