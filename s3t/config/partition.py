"""Where samples lie, and in which sequences their slices are learnt."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3t.config.section import Above, Natural, Positive, Section

__all__ = [
    "ClustersConfig",
    "PartitionConfig",
    "RiskConfig",
    "SequencesConfig",
]


class RiskConfig(Section):
    """Risk tiers: each owns some slices of every shard, so that like risks lie together.

    The value of a row is the number in ``column`` or, with ``as_of``, the age in days of the date
    there. Its tier is the number of thresholds that the value reaches; 0 is the lowest.
    """

    column: str
    as_of: date | None = Field(None, description="the column holds dates: their age on this day")
    thresholds: tuple[float, ...] | None = Field(None, description="least value of tier 1, 2, …")
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        None, description="or the thresholds are these quantiles of data.public.adapt's column"
    )
    rates: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="by tier, how often one of its slices is hit, relative to the others"
    )
    slices: tuple[Positive, ...] | None = Field(
        None, description="by tier, its slices in each shard; default: as even as possible"
    )

    @property
    def tiers(self) -> int:
        """Number of tiers, one more than thresholds."""
        return len(self.thresholds or self.quantiles or ()) + 1

    @model_validator(mode="after")
    def _fits(self) -> RiskConfig:
        found = []
        clear = bool(self.thresholds) != bool(self.quantiles)
        if not clear:
            found.append("give thresholds or quantiles, one of the two and not empty")
        for name, cuts in (("thresholds", self.thresholds), ("quantiles", self.quantiles)):
            if any(low >= high for low, high in pairwise(cuts or ())):
                found.append(f"{name} {list(cuts or ())} are not in ascending order")
        for name, given in (("rates", self.rates), ("slices", self.slices)):
            if given is not None and clear and len(given) != self.tiers:
                found.append(f"{name} {list(given)} are not one for each of {self.tiers} tiers")
        if self.rates is not None and not any(self.rates):
            found.append(f"rates {list(self.rates)} are all 0: leave them out")
        if found:
            raise ValueError("; ".join(found))
        return self


class ClustersConfig(Section):
    """Shards by likeness (LMEraser): a sample's shard is the nearest of the public prototypes.

    Prototypes are means of clusters of the frozen base's features of ``data.public.adapt``; their
    number is ``partition.shards``, or less by ``distance``. No private sample has a part in them.
    """

    distance: Above | None = Field(
        None,
        description="of partition.shards clusters those whose prototypes, which have unit length, "
        "are nearer than this become one; default: none do",
    )
    layer: Natural | None = Field(
        None, description="features are what enters this layer; default: those after the last"
    )


class PartitionConfig(Section):
    """m shards of L slices; a sample's place is a keyed hash of its subject or content."""

    shards: Positive = Field(4, description="with clusters.distance, the most there may be")
    slices: Positive = 4
    salt: str = "s3t"
    subject: str | None = Field(None, description="column that names the person of a row")
    risk: RiskConfig | None = Field(None, description="without it all slices are one tier")
    clusters: ClustersConfig | None = Field(
        None, description="shards by likeness; without it by the keyed hash, as slices are"
    )

    @model_validator(mode="after")
    def _holds_tiers(self) -> PartitionConfig:
        risk = self.risk
        if risk is not None and risk.slices is not None and sum(risk.slices) != self.slices:
            raise ValueError(
                f"risk.slices {list(risk.slices)} add up to {sum(risk.slices)}, "
                f"but slices is {self.slices}"
            )
        if risk is not None and risk.tiers > self.slices:
            raise ValueError(
                f"risk has {risk.tiers} tiers for {self.slices} slices: each tier needs a slice "
                "of its own, so give fewer tiers or more slices"
            )
        return self


class SequencesConfig(Section):
    """Which sequences of slices each shard trains, and what may be spent on them (budget B).

    ``unit`` says what the budget of a shard counts: ``sequences``; ``nodes``; ``slice-passes`` (one
    slice through one stage); ``sample-passes`` (samples × epochs, of ``samples`` as stated here,
    since the private data must not shape the tree); ``bytes`` of weights.
    """

    strategy: Literal[
        "tree",
        "greedy",
        "cyclic",
        "iterated",
        "even",
        "matching",
        "conditional",
        "random",
        "explicit",
    ] = "tree"
    budget: Positive | None = Field(None, description="B, per shard; default: one per slice")
    unit: Literal["sequences", "nodes", "slice-passes", "sample-passes", "bytes"] = "sequences"
    samples: Positive | None = Field(None, description="private samples, for unit sample-passes")
    horizon: Annotated[float, Field(gt=0)] = Field(
        1.0, description="deletion requests per slice over which protection counts"
    )
    utility: tuple[float, ...] | None = Field(
        None, description="worth of a prefix of 0, 1, … slices; default: the share of data"
    )
    explicit: tuple[tuple[Natural, ...], ...] | None = Field(
        None, description="slice numbers from 0, the same lists for every shard"
    )

    @model_validator(mode="after")
    def _counts(self) -> SequencesConfig:
        if self.unit != "sequences" and self.budget is None:
            raise ValueError(f"unit {self.unit!r} needs budget")
        if self.unit == "sample-passes" and self.samples is None:
            raise ValueError("unit 'sample-passes' needs samples, the number to reckon with")
        if self.utility and any(low > high for low, high in pairwise(self.utility)):
            raise ValueError(f"utility {list(self.utility)} falls: more data is not worth less")
        return self
