"""What a stage is trained and scored on: encoded rows with their labels.

Invariant: the order of a node's rows depends on the node alone: its own rows in the order of their
sample ids, shuffled anew in each epoch by a generator that belongs to the node's key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.encode import Encoded, padded_lengths
from s3t.plan.lineage import node_seed
from s3t.types import NodeKey

__all__ = ["Batches", "LabelledSet"]


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Encoded rows, in the order of their sample ids where they have some.

    Attributes:
        rows: the inputs.
        labels: class numbers [n] int64; None for language models, whose labels are the tokens.
    """

    rows: Encoded
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.rows)

    def longest(self, index: Tensor) -> int | None:
        """Tokens of the longest of the rows ``index``, up to a multiple of 16; None for images."""
        if self.rows.mask is None:
            return None
        return int(padded_lengths(self.rows.mask[index]).max())


class Batches:
    """The batches of one node, all of one size.

    Args:
        key: the node's key, from which the shuffling is seeded.
        rows: numbers of the node's rows in the labelled set, sorted.
        batch_size: rows of a batch; the last one of an epoch is filled up with rows of weight 0.
        epochs: passes over the rows.
    """

    def __init__(self, key: NodeKey, rows: Tensor, batch_size: int, epochs: int) -> None:
        self._rows, self._size = rows, batch_size
        self._generator = torch.Generator().manual_seed(node_seed(key, "order"))
        self._order = rows
        self._per_epoch = math.ceil(len(rows) / batch_size)
        self.steps = self._per_epoch * epochs

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Row numbers [B] and weights [B] (1 or 0) of a step; steps are asked for in order."""
        place = step % self._per_epoch
        if place == 0:
            shuffled = torch.randperm(len(self._rows), generator=self._generator)
            self._order = self._rows[shuffled]
        chosen = self._order[place * self._size : (place + 1) * self._size]
        weights = torch.zeros(self._size)
        weights[: len(chosen)] = 1.0
        return torch.cat([chosen, chosen[:1].expand(self._size - len(chosen))]), weights
