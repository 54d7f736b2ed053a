"""How the shards' answers become one answer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from s3t.config.section import Section

__all__ = ["AggregationConfig"]

_WEIGHED = ("mean-probabilities", "mean-logits", "mean-adapters")
"""Methods whose answer is of a mean: what the shards count for in it can be fitted."""


class AggregationConfig(Section):
    """How the shards' answers become one, and what answers when no shard is left.

    ``mean-adapters`` averages the shards' adapters and heads instead of their answers. That is one
    forward pass for all of them, and may cost accuracy: ``s3t evaluate`` tells how much. ``route``
    asks only the shard whose prototype is nearest to the input, and needs ``partition.clusters``.
    The function of each method stands in ``serving/ensemble/members.py``.

    Weights ``public`` are fitted on ``data.public.validation`` from what serves, again after each
    deletion, and give the base a weight too (``serving/ensemble/mixture.py``). They need a method
    that is a mean, and validation rows that are not among ``data.public.adapt``. Where one of the
    two is missing, the default is ``uniform``. Of ``mean-adapters`` one number is fitted, by which
    the mean is multiplied.
    """

    method: Literal["mean-probabilities", "mean-logits", "vote", "mean-adapters", "route"] = Field(
        "mean-probabilities", description="how the answers of the shards are put together"
    )
    weights: Literal["public", "data", "uniform"] = Field(
        "public",
        description="public: shards and base count by their likelihood on public validation rows; "
        "data: a shard counts by the samples that its prefix has seen",
    )
    tokens: Literal["none", "entropy"] = Field(
        "none",
        description="entropy: a shard also counts less for a token that it is unsure of",
    )
    on_exhausted: Literal["raise", "base"] = Field(
        "raise", description="when no shard is left: refuse, or answer with the base alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_weights(cls, values: Any) -> Any:
        """Of a method that is no mean the default is uniform."""
        if not isinstance(values, dict) or "weights" in values:
            return values
        weighed = values.get("method", _WEIGHED[0]) in _WEIGHED
        return values if weighed else values | {"weights": "uniform"}

    @model_validator(mode="after")
    def _weighable(self) -> AggregationConfig:
        if self.weights == "public" and self.method not in _WEIGHED:
            raise ValueError(
                f"weights 'public' does not fit method {self.method!r}, which is no mean of the "
                "shards: use uniform or data, or another method"
            )
        if self.tokens != "none" and self.method != "mean-probabilities":
            raise ValueError(
                f"tokens {self.tokens!r} does not fit method {self.method!r}: use "
                "mean-probabilities"
            )
        return self

    @property
    def falls_back(self) -> bool:
        """Whether the base answers when no shard is left."""
        return {"raise": False, "base": True}[self.on_exhausted]
