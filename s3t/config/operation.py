"""How a run answers, and where and how it is kept."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3t.config.section import Section

__all__ = [
    "AggregationConfig",
    "ReceiptsConfig",
    "RepairConfig",
    "StoreConfig",
]


class AggregationConfig(Section):
    """How the shards' answers become one, and what answers when no shard is left.

    ``mean-adapters`` averages the shards' adapters and heads instead of their answers. That is one
    forward pass for all of them, and may cost accuracy. ``route`` asks only the shard whose
    prototype is nearest to the input, and needs ``partition.clusters``.
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


class StoreConfig(Section):
    """Where the nodes are kept, and how machines that share a store divide the work.

    Nothing here changes a node's bytes.
    """

    url: str | None = Field(
        None, description="any fsspec URL or shared folder, of one run; default: the run's nodes/"
    )
    cache: str | None = Field(
        None, description="folder for local copies of nodes from url; default: the run's nodes/"
    )
    lease: Annotated[float, Field(gt=0)] = Field(
        60.0,
        description="seconds without a sign of life after which other processes take over a node",
    )
    encrypt: bool = Field(
        False, description="seal each node under a data key of its own, kept in the key ring"
    )
    keys: str | None = Field(
        None,
        description="the key ring, of one run and outside it: path of a file, made when needed, or "
        "python:package.module:factory",
    )

    @property
    def hooked(self) -> bool:
        """Whether ``keys`` names a factory of key rings, not a file."""
        return self.keys is not None and self.keys.startswith("python:")

    @model_validator(mode="after")
    def _goes_together(self) -> StoreConfig:
        found = []
        if self.cache and not self.url:
            found.append("cache holds copies of what lies at url: give both, or none")
        if self.encrypt and not self.keys:
            found.append(
                "encrypt needs keys, a key ring outside the run: name a file, such as "
                "store.keys=/secure/RUN.keys, or python:package.module:factory"
            )
        if self.keys and not self.encrypt:
            found.append("keys is the key ring of nodes that encrypt seals: give both, or none")
        if self.hooked and not re.fullmatch(r"python:[\w.]+:\w+", self.keys or ""):
            found.append(f"keys {self.keys!r} is not of the form python:package.module:factory")
        if not self.hooked and "://" in (self.keys or ""):
            found.append(
                f"keys {self.keys!r} is a URL: give the path of a file, or a hook, "
                "python:package.module:factory"
            )
        if found:
            raise ValueError("; ".join(found))
        return self


class ReceiptsConfig(Section):
    """Signatures of the log."""

    signing_key: str | None = Field(
        None,
        description="PEM file of an Ed25519 private key, outside the run; signs every "
        "entry of the log",
    )


class RepairConfig(Section):
    """When ``s3t repair --if-due`` and ``--watch`` repair. Nothing here changes a node's bytes."""

    when: Literal["hand", "forecast", "schedule"] = Field(
        "hand", description="hand: only when s3t repair is called without a policy"
    )
    event: Literal["first_death", "exhaustion"] = Field(
        "first_death",
        description="forecast: the event counted to: the first dead shard, or exhaustion",
    )
    below_requests: Annotated[float, Field(gt=0)] | None = Field(
        None, description="forecast: due when p5 of the requests left is at most this"
    )
    below_days: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="forecast: due when p5 of the days left, at the observed rate, is at most this",
    )
    every_days: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="schedule: due this many days after the last plan, if anything was "
        "deleted since",
    )

    @model_validator(mode="after")
    def _told(self) -> RepairConfig:
        if self.when == "forecast" and self.below_requests is None and self.below_days is None:
            raise ValueError("when 'forecast' needs below_requests or below_days")
        if self.when == "schedule" and self.every_days is None:
            raise ValueError("when 'schedule' needs every_days")
        return self
