"""How the shards' answers become one answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from s3t.config.section import Section

__all__ = ["AggregationConfig"]


class AggregationConfig(Section):
    """How the shards' answers become one, and what answers when no shard is left.

    ``mean-adapters`` averages the shards' adapters and heads instead of their answers. That is one
    forward pass for all of them, and may cost accuracy. ``route`` asks only the shard whose
    prototype is nearest to the input, and needs ``partition.clusters``. The function of each method
    stands in ``serving/ensemble/members.py``.
    """

    method: Literal["mean-probabilities", "mean-logits", "vote", "mean-adapters", "route"] = Field(
        "mean-probabilities", description="how the answers of the shards are put together"
    )
    weights: Literal["uniform", "data"] = Field(
        "uniform", description="data: a shard counts by the samples that its prefix has seen"
    )
    on_exhausted: Literal["raise", "base"] = Field(
        "raise", description="when no shard is left: refuse, or answer with the base alone"
    )

    @property
    def falls_back(self) -> bool:
        """Whether the base answers when no shard is left."""
        return {"raise": False, "base": True}[self.on_exhausted]
