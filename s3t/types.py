"""Ids and small values that all rooms share, and the digest of a value.

Invariant: a digest is SHA-256 over canonical JSON (sorted keys, no blanks, UTF-8), so the same
value has the same digest in every process and on every machine.
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


Slot = tuple[int, int]
"""(shard, slice), both from 0: where a sample lies."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One private sample, as the ledger registers it.

    Attributes:
        id: stable id, given by the user or derived from subject and content.
        subject: the person that the sample belongs to; None if it has none.
        content: digest of the sample's inputs and label.
        tier: risk tier, 0 without ``partition.risk``. It decides in which slices the sample may
            lie, and is in no digest.
        cluster: number of the public prototype that its row is nearest to, which is its shard;
            None without ``partition.clusters``. It is in no digest.
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
    """How the tokens of a completion are drawn.

    Attributes:
        max_new_tokens: maximum number of tokens.
        temperature: 0 takes the most likely token; above 0 tokens are drawn.
        seed: seed of the draws.
        top_k: draw only from so many most likely tokens; 0 for all.
        top_p: draw only from the fewest most likely tokens whose probabilities sum to this, above
            0; 1 for all.
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
