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
    """Risk tiers: samples of similar deletion risk share slices of every shard.

    The value of a row is the number in ``column`` or, with ``as_of``, the age in days of the date
    there. Its tier is the number of thresholds that the value reaches; 0 is the lowest.
    """

    column: str = Field(description="column with a number, or with a date if as_of is given")
    as_of: date | None = Field(
        None, description="the column holds dates; the value is their age in days on this day"
    )
    thresholds: tuple[float, ...] | None = Field(None, description="lowest value of tier 1, 2, …")
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        None, description="in place of thresholds: quantiles of the column in data.public.adapt"
    )
    rates: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="for each tier, how often one of its slices is hit, relative to the others",
    )
    slices: tuple[Positive, ...] | None = Field(
        None, description="for each tier, its slices in each shard; default: as even as possible"
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
        description="clusters whose prototypes (of unit length) are nearer than this are merged; "
        "default: none are",
    )
    layer: Natural | None = Field(
        None, description="cluster by what enters this layer; default: by what leaves the last"
    )


class PartitionConfig(Section):
    """m shards of L slices. A keyed hash of its person or content places a sample."""

    shards: Positive = Field(4, description="m; with clusters.distance, the most there may be")
    slices: Positive = Field(4, description="L, slices of each shard and stages of training")
    salt: str = Field("s3t", description="key of the hash that places samples")
    subject: str | None = Field(
        None,
        description="column that names the person of a row; all rows of a person lie in one slice",
    )
    risk: RiskConfig | None = Field(None, description="risk tiers; default: one tier")
    clusters: ClustersConfig | None = Field(
        None, description="shards by likeness; default: by the keyed hash"
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

    A slice pass is one slice trained through one stage. Sample passes are samples × epochs; they
    are computed from ``samples`` as given here, since private data must not shape the tree.
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
    ] = Field("tree", description="how sequences are chosen")
    budget: Positive | None = Field(
        None, description="B of each shard, in the unit; default: slices"
    )
    unit: Literal["sequences", "nodes", "slice-passes", "sample-passes", "bytes"] = Field(
        "sequences", description="what the budget counts"
    )
    samples: Positive | None = Field(
        None, description="number of private samples, for unit sample-passes"
    )
    horizon: Annotated[float, Field(gt=0)] = Field(
        1.0, description="deletion requests per slice that the plan is made for"
    )
    utility: tuple[float, ...] | None = Field(
        None, description="value of a prefix of 0, 1, … slices; default: its share of the data"
    )
    explicit: tuple[tuple[Natural, ...], ...] | None = Field(
        None,
        description="the sequences, for strategy explicit: slice numbers from 0, the "
        "same for every shard",
    )

    @model_validator(mode="after")
    def _counts(self) -> SequencesConfig:
        if self.unit != "sequences" and self.budget is None:
            raise ValueError(f"unit {self.unit!r} needs budget")
        if self.unit == "sample-passes" and self.samples is None:
            raise ValueError("unit 'sample-passes' needs samples, the number to calculate with")
        if self.utility and any(low > high for low, high in pairwise(self.utility)):
            raise ValueError(f"utility {list(self.utility)} falls: more data is not worth less")
        return self
