"""How the shards' answers become one answer."""

from __future__ import annotations

from typing import Literal

from s3t.config.section import Section

__all__ = ["AggregationConfig"]


class AggregationConfig(Section):
    """How the shards' answers become one, and what answers when no shard is left.

    ``mean-adapters`` averages the shards' adapters and heads instead of their answers: one forward
    pass serves all of them, which may cost accuracy. ``route`` asks the one shard whose prototype
    is nearest to the input; it needs ``partition.clusters``. The function of each name stands in
    ``serving/ensemble/members.py``.
    """

    method: Literal["mean-probabilities", "mean-logits", "vote", "mean-adapters", "route"] = (
        "mean-probabilities"
    )
    weights: Literal["uniform", "data"] = "uniform"
    on_exhausted: Literal["raise", "base"] = "raise"
