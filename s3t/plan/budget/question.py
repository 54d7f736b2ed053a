"""The question to the budget planner: amount of data, depth of the base, deletions, limits of cost.

Invariant: a Question has at least one cell, a possible pair of shards and slices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s3t.errors import ConfigError
from s3t.plan.budget.curve import DEFAULT, Curve
from s3t.plan.budget.stages import Stages
from s3t.plan.survival.untouched import Floats

__all__ = ["Question"]

SLICES = (1, 2, 3, 4, 6, 8, 10, 12)
"""Numbers of slices L that are tried, and the number of layers if it is below the last of them.
Each slice needs a layer of its own; tables over sets of slices have 2^L entries; and the cyclic
plan trains on all data (L + 1)·L/2 times."""

SHARDS = 8
"""So many powers of two are tried as the number of shards m: 64 cells with ``SLICES``."""

LONGEST = 32.0
"""Maximum horizon that a tree is grown for, in requests per slice; few prefixes last so long."""


@dataclass(frozen=True)
class Question:
    """What is planned for, and limits of cost and risk.

    Attributes:
        samples: number of private samples.
        layers: number of layers of the base; with isolation by ``layers`` each slice of a shard
            needs at least one.
        deletions: R, number of deletion requests that are expected.
        curve: utility of a prefix of snapshots by its number of samples.
        stages: what stages train.
        epochs: epochs of each stage.
        least: minimum average number of samples in a slot. A hash distributes the samples: with 8,
            one slot in 3,000 is empty.
        overhead: fixed cost of a stage, in sample passes.
        layer_bytes: bytes of the adapter of one layer; None if unknown.
        risk: maximum probability of exhaustion after R deletions, between 0 and 1.
        max_passes: maximum training cost in samples × epochs, overhead included.
        max_bytes: maximum storage in bytes; needs ``layer_bytes``.

    Raises:
        ConfigError: lists every value that is impossible.
    """

    samples: int
    layers: int
    deletions: int
    curve: Curve = field(default=DEFAULT)
    stages: Stages = field(default=Stages())
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; null for a limit that is not given."""
        values = {k: None if v == math.inf else v for k, v in vars(self).items()}
        return values | {"curve": str(self.curve), "stages": str(self.stages)}

    @property
    def cells(self) -> dict[int, tuple[int, ...]]:
        """The cells: for each number of slices L, the numbers of shards m to try. At most 64.

        m is at most 128, or twice the deletions if that is more: of more shards most are never hit.
        """
        most = min(self.samples // self.least, max(128, 2 * self.deletions))
        powers = [1 << power for power in range(most.bit_length())][-SHARDS:]
        tried = sorted({*SLICES, min(self.layers, SLICES[-1])})
        deepest = self.layers if self.stages.needs_layers else SLICES[-1]
        shards = {
            slices: tuple(m for m in powers if m * slices * self.least <= self.samples)
            for slices in tried
            if slices <= deepest
        }
        return {slices: found for slices, found in shards.items() if found}

    def worth(self, shards: int, slices: int) -> Floats:
        """Utility of prefixes of 0, 1, … L slices, [L + 1]: the curve's, whose gain over nothing is
        multiplied by the factor of the stages."""
        shard = self.samples / shards
        found = self.curve.utility(np.arange(slices + 1) * (shard / slices), shard)
        found[1:] = found[0] + (found[1:] - found[0]) * self.stages.factor(self.layers, slices)
        return np.maximum.accumulate(found)  # neither rounding nor a factor may make it fall

    def horizon(self, shards: int, slices: int) -> float:
        """Expected requests per slot, in the unit of ``sequences.horizon``."""
        return min(max(self.deletions, 1) / (shards * slices), LONGEST)
