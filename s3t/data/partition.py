"""Which shard and slice a sample lies in.

    HMAC-SHA256(salt, subject or content) ─► 64 bits ─► mod m·W ─► shard = h div W, slice = h mod W

W is L, the number of slices. With risk tiers it is the number of those that the sample's tier owns,
and the slice is counted from the first one of the tier:

              tier 0       tier 1
    shard 0   0  1  2      3          each tier is dealt across all shards; within a shard like
    shard 1   0  1  2      3          risks lie together, so that deletions hit few slices

With clusters the shard is the number of the nearest public prototype, which the sample carries
(``model/prototypes.py``), and the hash gives only the slice: slice = bits mod W.

Invariant E3: a slot is a function of the sample alone. No sample's slot depends on another sample,
so a run without the deleted samples puts all others into the same slots. All samples of a subject
lie in one slot, and so do exact copies, so deleting a person hits one slot. Therefore all samples
of a subject, and all exact copies, must have one risk tier: other data are refused when they are
read (``data/risk.py``). With clusters this holds for copies; the rows of a person may lie in
several shards, in one slice of each.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from s3t.config import PartitionConfig
from s3t.errors import DataError, named
from s3t.types import Digest, Sample, Slot, digest

__all__ = ["Partition", "partition", "slice_digest", "slice_rates", "slot_of", "tier_slices"]

NAMED_EMPTY = 10
"""If more slices are empty, one sentence gives their number; otherwise each has a sentence."""

TOO_MANY = 100_000
"""More slices than this, and than samples, are refused before any list of them is made."""


def tier_slices(shape: PartitionConfig) -> tuple[int, ...]:
    """Number of slices of each risk tier, in every shard; one tier of all without ``risk``.

    Tiers own consecutive slices, the lowest tier the first ones.
    """
    if shape.risk is None:
        return (shape.slices,)
    if shape.risk.slices is not None:
        return shape.risk.slices
    even, more = divmod(shape.slices, shape.risk.tiers)
    return tuple(even + (tier < more) for tier in range(shape.risk.tiers))


def slice_rates(shape: PartitionConfig) -> tuple[float, ...] | None:
    """Relative deletion rate of each slice, [L], the same in every shard; None if all are equal."""
    rates = shape.risk.rates if shape.risk is not None else None
    if rates is None or len(set(rates)) == 1:
        return None
    owned = zip(rates, tier_slices(shape), strict=True)
    return tuple(rate for rate, count in owned for _ in range(count))


def slice_digest(samples: Iterable[Sample]) -> Digest:
    """Digest of a slice: its sorted sample ids, each with its content digest."""
    return digest(sorted((sample.id, sample.content) for sample in samples))


def slot_of(
    sample: Sample, shards: int, slices: int, salt: str, tiers: Sequence[int] | None = None
) -> Slot:
    """The slot of a sample: a keyed hash of its subject or, without one, of its content.

    Args:
        sample: of a tier that ``tiers`` has. Its cluster, if it has one, is below ``shards``.
        shards: m, at least 1.
        slices: L, at least 1.
        salt: key of the hash; another salt is another partition.
        tiers: slices of each risk tier (``tier_slices``), L in all; by default one tier.
    """
    if sample.subject is not None:
        message = b"subject\0" + sample.subject.encode()
    else:
        message = b"content\0" + sample.content.encode()
    bits = int.from_bytes(hmac.digest(salt.encode(), message, "sha256")[:8], "big")
    tiers = tiers or (slices,)
    width, first = tiers[sample.tier], sum(tiers[: sample.tier])
    if sample.cluster is not None:
        return sample.cluster, first + bits % width
    shard, within = divmod(bits % (shards * width), width)
    return shard, first + within


@dataclass(frozen=True)
class Partition:
    """All samples by slot.

    Attributes:
        shards: m, the number of shards.
        slices: L, the number of slices of each shard.
        members: ``members[shard][slice]``, the samples of a slice, sorted by id.
    """

    shards: int
    slices: int
    members: tuple[tuple[tuple[Sample, ...], ...], ...]

    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """Number of samples, ``sizes()[shard][slice]``."""
        return tuple(tuple(len(members) for members in shard) for shard in self.members)

    def digests(self) -> tuple[tuple[Digest, ...], ...]:
        """Digest of each slice, ``digests()[shard][slice]`` (see ``slice_digest``)."""
        return tuple(tuple(slice_digest(members) for members in shard) for shard in self.members)

    def slots(self) -> Iterator[tuple[Sample, Slot]]:
        """Every sample with its slot, ordered by shard, slice and id."""
        for shard, row in enumerate(self.members):
            for slice_, members in enumerate(row):
                for sample in members:
                    yield sample, (shard, slice_)


def partition(
    samples: Iterable[Sample],
    shards: int,
    slices: int,
    salt: str,
    tiers: Sequence[int] | None = None,
    *,
    allow_empty: bool = False,
) -> Partition:
    """Sort samples into slots.

    Args:
        samples: in any order, each id once.
        shards: m, at least 1.
        slices: L, at least 1.
        salt: key of the hash; another salt is another partition.
        tiers: slices of each risk tier, L in all; by default one tier.
        allow_empty: accept empty slices (after deletions all of a slice may be gone).

    Raises:
        DataError: naming every empty slice (a stage without data cannot be trained), or ids that
            occur twice (a lineage could not tell the two apart).
    """
    ordered = sorted(samples, key=lambda sample: sample.id)
    if not allow_empty and shards * slices > max(len(ordered), TOO_MANY):
        raise DataError([*_repeated(ordered), _too_few(shards * slices, ordered)], "partition")
    cells: list[list[list[Sample]]] = [[[] for _ in range(slices)] for _ in range(shards)]
    for sample in ordered:
        shard, slice_ = slot_of(sample, shards, slices, salt, tiers)
        cells[shard][slice_].append(sample)
    problems = [*_repeated(ordered), *([] if allow_empty else _empty(cells, ordered, tiers))]
    if problems:
        raise DataError(problems, "partition")
    return Partition(
        shards, slices, tuple(tuple(tuple(members) for members in row) for row in cells)
    )


def _repeated(ordered: list[Sample]) -> list[str]:
    ids = sorted({one.id for one, next_ in pairwise(ordered) if one.id == next_.id})
    return [f"ids occur twice: {named(ids)}; give every sample its own id"] if ids else []


def _too_few(total: int, samples: list[Sample]) -> str:
    return (
        f"{total} slices cannot all get one of the {_facts(samples)}: use fewer shards or slices, "
        "or more data"
    )


def _facts(samples: list[Sample]) -> str:
    units = len({(sample.subject is None, sample.subject or sample.content) for sample in samples})
    return f"{len(samples)} samples ({units} subjects or distinct contents)"


def _empty(
    cells: list[list[list[Sample]]], samples: list[Sample], tiers: Sequence[int] | None
) -> list[str]:
    tiers = tiers if tiers and len(tiers) > 1 else ()
    owners = [f" (tier {tier})" for tier, count in enumerate(tiers) for _ in range(count)]
    empty = [
        f"shard {shard} slice {slice_}" + (owners[slice_] if owners else "")
        for shard, row in enumerate(cells)
        for slice_, members in enumerate(row)
        if not members
    ]
    facts = _facts(samples)
    advice = "use fewer shards or slices, another partition.salt, or more data"
    if any(sample.cluster is not None for sample in samples):
        sizes = ", ".join(f"{shard}: {sum(map(len, row))}" for shard, row in enumerate(cells))
        advice = (
            f"clusters have so many samples each: {sizes}; use fewer slices, fewer shards, a "
            "larger partition.clusters.distance, or more data"
        )
    if owners:
        advice += ", or other thresholds or slices in partition.risk"
    if len(empty) > NAMED_EMPTY:
        total = len(cells) * len(cells[0])
        shown = ", ".join(empty[:NAMED_EMPTY])
        return [
            f"{len(empty)} of {total} slices got none of the {facts}: {shown} and "
            f"{len(empty) - NAMED_EMPTY} more; {advice}"
        ]
    return [f"{name} got none of the {facts}: {advice}" for name in empty]
