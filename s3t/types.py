"""Ids and values that every part shares, and the one way to digest them.

Invariant: a digest is SHA-256 over canonical JSON (sorted keys, no blanks, UTF-8), so that the
same value gives the same digest on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType

__all__ = [
    "BatchPart",
    "Digest",
    "Draw",
    "NodeKey",
    "Place",
    "Sample",
    "SampleId",
    "Slot",
    "Subject",
    "digest",
]

SampleId = NewType("SampleId", str)
Subject = NewType("Subject", str)
Digest = NewType("Digest", str)
NodeKey = NewType("NodeKey", str)

Json = Mapping[str, Any] | Sequence[Any] | str | int | float | bool | None


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a sample lies: shard and slice, both from 0."""

    shard: int
    slice: int


Slot = tuple[int, int]
"""(shard, slice) as a plain tuple, the form used inside tight loops."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the ledger knows of one private sample.

    Attributes:
        id: stable id, given by the user or derived from subject and content.
        subject: the person that the sample belongs to, if any.
        content: digest of the sample's inputs and label.
        tier: risk tier, 0 without ``partition.risk``. It decides the place and nothing else: no
            digest holds it.
        cluster: number of the public prototype that its row is nearest to; None without
            ``partition.clusters``. It is the sample's shard, and as little of any digest.
    """

    id: SampleId
    subject: Subject | None
    content: Digest
    tier: int = 0
    cluster: int | None = None


@dataclass(frozen=True, slots=True)
class BatchPart:
    """One of ``size`` equal parts of a batch, ``rank`` from 0; by default the whole of it."""

    rank: int = 0
    size: int = 1

    def of(self, count: int) -> slice:
        """Its rows among ``count``, which is a multiple of ``size``."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


@dataclass(frozen=True, slots=True)
class Draw:
    """How a completion is drawn.

    Attributes:
        max_new_tokens: at most so many.
        temperature: 0 takes the likeliest token, above it tokens are drawn.
        seed: of the draws.
        top_k: among the likeliest so many alone; 0 for all.
        top_p: among the likeliest that are that likely together, over 0; 1 for all.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    top_k: int = 0
    top_p: float = 1.0


def digest(value: Json) -> Digest:
    """SHA-256 of the canonical JSON of ``value``, 64 hex digits."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return Digest(hashlib.sha256(text.encode()).hexdigest())
