"""What a stage is trained and scored on: encoded rows with their labels.

    rows ─► shuffled ─► batches of B ─► steps of k batches
                └ by length: windows of 50 batches, each sorted, then the batches shuffled

Invariant: the order of a node's rows depends on the node alone: its own rows in the order of their
sample ids, shuffled again in each epoch by a generator that belongs to the node's key. An epoch has
each of them once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.data.rows import LabelledRows
from s3t.model.determinism import filled
from s3t.model.inputs.encoders import Encoded, ImageEncoder, TextEncoder, padded_lengths
from s3t.plan.lineage import node_seed
from s3t.types import NodeKey

__all__ = [
    "EVIDENCE_TERMS",
    "Batches",
    "LabelledSet",
    "encode_rows",
    "evidence_rows",
    "evidence_terms",
]

EVIDENCE_TERMS = 100_000
"""Numbers that a node's evidence has at most: rows × classes, or tokens."""

_WINDOW = 50
"""Batches that are sorted by length together: enough for batches of one length, few enough that
an epoch is another draw each time."""


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

    def take(self, index: Tensor) -> LabelledSet:
        """The rows ``index`` alone."""
        labels = None if self.labels is None else self.labels[index]
        return LabelledSet(self.rows.rows(index), labels)

    def longest(self, index: Tensor) -> int | None:
        """Tokens of the longest of the rows ``index``, up to a multiple of 16; None for images."""
        if self.rows.mask is None:
            return None
        return int(self.lengths(index).max())

    def lengths(self, index: Tensor) -> Tensor:
        """Tokens of each of the rows ``index``, up to a multiple of 16; only of texts."""
        assert self.rows.mask is not None
        return padded_lengths(self.rows.mask[index])


def encode_rows(encoder: TextEncoder | ImageEncoder, rows: LabelledRows) -> LabelledSet:
    """Rows as tensors, with their labels.

    Raises:
        DataError: rows that the encoder cannot take.
    """
    labels = None if rows.labels is None else torch.tensor(rows.labels, dtype=torch.int64)
    if isinstance(encoder, TextEncoder):
        return LabelledSet(encoder.encode(rows.inputs, rows.numbers), labels)
    return LabelledSet(encoder.encode(rows.inputs), labels)


def evidence_rows(rows: LabelledSet, classes: int) -> Tensor:
    """Numbers of the validation rows that a node's evidence is of, sorted, int64.

    All of them, unless their terms are more than ``EVIDENCE_TERMS``. Then as many as fit of the
    rows in bit-reversed order of their numbers, so that any part of it is spread over all: which
    they are follows from the number of rows, and of the terms of each.

    Args:
        rows: the public validation rows.
        classes: number of classes, so many terms has a row; 0 for a language model, where a row
            has a term for each scored token but the first of a text.
    """
    bits, count = len(rows).bit_length(), len(rows)
    terms = evidence_terms(rows, classes)
    order = sorted(range(count), key=lambda row: f"{row:0{bits}b}"[::-1])
    fit = terms[order].cumsum(0) <= EVIDENCE_TERMS
    fit[:1] = True
    return torch.tensor(order, dtype=torch.int64)[fit].sort().values


def evidence_terms(rows: LabelledSet, classes: int) -> Tensor:
    """Numbers that each row has in a node's evidence, [n] int64."""
    if classes:
        return torch.full((len(rows),), classes)
    return rows.rows.scored[:, 1:].sum(dim=1).long()


class Batches:
    """The batches of one node, all of one size.

    Args:
        key: the node's key, from which the shuffling is seeded.
        rows: numbers of the node's rows in the labelled set, sorted.
        batch_size: B, rows of a batch; one that has fewer is filled up with rows of weight 0.
        epochs: passes over the rows.
        together: k, batches of a step; what the last one of an epoch lacks is of weight 0.
        lengths: of the rows, [n], to have batches of like length; None for the order of the draw.
    """

    def __init__(
        self,
        key: NodeKey,
        rows: Tensor,
        batch_size: int,
        epochs: int,
        together: int = 1,
        lengths: Tensor | None = None,
    ) -> None:
        self._rows, self._size, self._lengths = rows, batch_size, lengths
        self._step_rows = batch_size * together
        self._generator = torch.Generator().manual_seed(node_seed(key, "order"))
        self._order = self._weights = torch.empty(0)
        self._per_epoch = math.ceil(len(rows) / self._step_rows)
        self.steps = self._per_epoch * epochs

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Row numbers [k · B] and weights [k · B] (1 or 0) of a step, batch by batch; steps are
        asked for in order."""
        place = step % self._per_epoch
        if place == 0:
            self._order, self._weights = self._epoch()
        part = slice(place * self._step_rows, (place + 1) * self._step_rows)
        return self._order[part], self._weights[part]

    def _epoch(self) -> tuple[Tensor, Tensor]:
        """Row numbers and weights of all steps of an epoch."""
        count, size = len(self._rows), self._size
        shuffled = torch.randperm(count, generator=self._generator)
        if self._lengths is not None:
            shuffled = _sorted_in_windows(shuffled, self._lengths, _WINDOW * size)
        batches = [_filled(self._rows[part], size) for part in shuffled.split(size)]
        if self._lengths is not None:
            order = torch.randperm(len(batches), generator=self._generator)
            batches = [batches[at] for at in order.tolist()]
        # rows of weight 0 are copies of one of their own step, so that they are no longer than it
        missing = self._per_epoch * self._step_rows - len(batches) * size
        last = (self._per_epoch - 1) * self._step_rows // size
        spare = batches[last][0][:1].expand(missing)
        index = torch.cat([*(rows for rows, _ in batches), spare])
        return index, torch.cat([*(weights for _, weights in batches), torch.zeros(missing)])


def _filled(rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Up to ``size`` rows, filled up with the first one, and weights."""
    weights = torch.zeros(size)
    weights[: len(rows)] = 1.0
    return filled(rows, size), weights


def _sorted_in_windows(order: Tensor, lengths: Tensor, window: int) -> Tensor:
    """The order with each window of it sorted by length; rows of one length keep theirs."""
    return torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(window)])
