"""What an isolation of stages costs, holds, and is worth beside snapshots.

    a stage runs    the layers from the lowest that it trains up to the top: what enters them comes
                    from the trunk cache
    a node holds    the layers that its stage trains
    a prefix        is worth what its samples are worth to an adapter of all layers (the curve),
                    times a measured factor of the isolation

Sources of ``_REACHED``, ``_LATER`` and ``one_lora_curve``: measured on four tasks (digits over a
weak base, Shakespeare by speaker, TOFU on stories260k, banking77 on MiniLM; one or two seeds;
docs/figures.md, "Isolation of stages"). A full prefix is the mean over the tasks; shorter prefixes
are of digits alone. The standard error is 0.012 for digits and 0.02 for banking77. Other tasks,
bases, and plans with more slices differ by more than that, and the table cannot know by how much.

Invariant: a factor is over 0, and 1 for snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from s3t.plan.blocks import stage_time, trained_layers
from s3t.plan.budget.curve import Measured
from s3t.plan.survival.untouched import Floats

__all__ = ["KINDS", "Isolation", "Stages", "one_lora_curve"]

Isolation = Literal["nested", "residual", "layers", "snapshot"]

_REACHED = ((0.0, 0.25, 0.5, 0.75, 1.0), (0.766, 0.859, 0.952, 0.990, 1.0))
"""Fraction of the layers that a prefix has adapted, from the top → its worth beside a snapshot.

digits, 4 shards × 4 slices, nested against snapshot, accuracy of the shards together: 70.4/81.9,
86.6/91.0, 92.1/93.1 and 94.5/94.5 %. Full prefixes on the four tasks: 0.997, 1.013, 0.998, 0.990.
The value for no layer goes on in a straight line; it is not measured."""

_LATER = {"nested": 0.0, "snapshot": 0.0, "layers": -0.10, "residual": 0.01, "current": -0.03}
"""What a full prefix gains or loses beside a snapshot, in proportion to its stages after the first.

layers: 0.983, 0.912, 0.74, 0.956; residual: 0.995, 1.035, 1.001 (not on banking77); residual on
the current slice: 0.978, on digits alone, where prefixes of 2 to 4 slices have 0.974, 0.972 and
0.974."""

_FALLING = -0.07
"""What a full prefix loses where later stages take fewer epochs, so that all take as many steps.

digits, three seeds: 92.1 for 93.9 % nested, 93.3 for 94.5 residual; banking77: 88.8 for 88.8; TOFU,
of the gain in log-likelihood: 0.82 nested, 0.85 residual. Recall loses, and skill hardly any."""


@dataclass(frozen=True)
class Stages:
    """What stages train: an isolation, with its options.

    Attributes:
        isolation: as ``stage.isolation``.
        wider: layers that block 1 has more than by default, as far as there are layers.
        current: whether a stage trains on its last slice alone, so that all stages take as many
            steps (``stage.slices: current``).
        falling: whether stage k takes a k-th of the first stage's epochs, rounded up, so that all
            stages take about as many steps (``stage.epochs`` as a list).
    """

    isolation: Isolation = "nested"
    wider: int = 0
    current: bool = False
    falling: bool = False

    def __str__(self) -> str:
        options = [", wide"] * bool(self.wider) + [", current"] * self.current
        options += [", equal steps"] * self.falling
        return self.isolation + "".join(options)

    @property
    def needs_layers(self) -> bool:
        """Whether each slice needs a layer of its own."""
        return self.isolation == "layers"

    def slices(self, slices: int, epochs: int) -> Floats:
        """Slice passes of stage 1, 2, … L, in the epochs of the first stage, [L]."""
        seen = np.ones(slices) if self.current else np.arange(1.0, slices + 1)
        found: Floats = seen * self.epochs(slices, epochs) / epochs
        return found

    def epochs(self, slices: int, epochs: int) -> list[int]:
        """Epochs of stage 1, 2, … L, of which the first has ``epochs``, [L]."""
        return [-(-epochs // (stage if self.falling else 1)) for stage in range(1, slices + 1)]

    def held(self, layers: int, slices: int) -> Floats:
        """Fraction of the layers that a node of stage 1, 2, … L holds, [L]."""
        return np.array([(hi - lo) / layers for lo, hi in self._trained(layers, slices)])

    def time(self, layers: int, slices: int) -> Floats:
        """Time of a sample pass in stage 1, 2, … L, where one LoRA on all layers takes 1, [L]."""
        return np.array(stage_time(self.isolation, self._trained(layers, slices), layers))

    def factor(self, layers: int, slices: int) -> Floats:
        """Worth of a prefix of 1, 2, … L slices beside a snapshot on the same samples, [L]."""
        later = np.arange(slices) / max(slices - 1, 1)
        change = _LATER["current" if self.current else self.isolation] + _FALLING * self.falling
        reached = [(layers - lo) / layers for lo, _ in self._trained(layers, slices)]
        factor: Floats = np.interp(reached, *_REACHED) * (1 + change * later)
        return factor

    def section(self, layers: int, slices: int, epochs: int) -> str:
        """The keys of the config's section ``stage`` that ask for it."""
        first = f", first_block: {self._first(layers, slices)}" if self.wider else ""
        first += ", slices: current" if self.current else ""
        each = self.epochs(slices, epochs)
        return f"isolation: {self.isolation}{first}, epochs: {each if self.falling else epochs}"

    def _trained(self, layers: int, slices: int) -> tuple[tuple[int, int], ...]:
        first = self._first(layers, slices) if self.wider else None
        return trained_layers(self.isolation, layers, slices, first)

    def _first(self, layers: int, slices: int) -> int:
        """Layers of block 1; all only if that is the default, or it would be a snapshot."""
        default = -(-layers // slices)
        return max(default, min(default + self.wider, layers - 1))


KINDS = (
    Stages("nested"),
    Stages("nested", wider=2),
    Stages("residual"),
    Stages("residual", current=True),
    Stages("nested", falling=True),
    Stages("residual", falling=True),
    Stages("layers"),
    Stages("snapshot"),
)
"""What the planner chooses among. At the same cost and worth the first is preferred."""


def one_lora_curve(samples: int) -> Measured:
    """What a prefix of a snapshot is worth, where one LoRA on all of the samples is worth 1.

    Worth is the score for accuracy, and for perplexity the gain in log-likelihood over the base.
    The shards answer together; with fewer samples than a sixteenth of all nothing is measured.

    digits, prefixes of 1/16, 2/16 and 3/16 of the samples: 0.866, 0.963 and 0.985 of a full prefix.
    Full prefixes, of a quarter (TOFU: half) of the samples: 0.988, 0.968, 0.964, 0.969.

    Args:
        samples: number of private samples.
    """
    points = ((0.0, 0.0), (1 / 16, 0.842), (1 / 8, 0.936), (3 / 16, 0.957), (1 / 4, 0.972), (1, 1))
    return Measured(
        "four tasks, in fractions of one LoRA",
        tuple(share * samples for share, _ in points),
        tuple(worth for _, worth in points),
    )
