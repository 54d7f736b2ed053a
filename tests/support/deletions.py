"""Deletions that hit what a test wants to have hit."""

from __future__ import annotations

from s3t.service import S3T

__all__ = ["emptied", "hit", "shortened"]


def hit(service: S3T, *slots: tuple[int, int]) -> None:
    """Delete a sample of each slot."""
    ids = []
    for slot in slots:
        first = next(iter(service._forgetting.ledger.samples(slot, deleted=False)))
        ids.append(str(first.sample_id))
    service.deactivate(ids)


def shortened(service: S3T, shard: int) -> None:
    """Delete so that a shard's prefix loses its last slice."""
    prefix = service.status().shards[shard].prefix
    hit(service, (shard, prefix[-1]))


def emptied(service: S3T, shard: int) -> None:
    """Delete from every slice of a shard."""
    hit(service, *((shard, part) for part in range(service.status().slices)))
