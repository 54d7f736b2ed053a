"""The sections of a config, each possible in itself.

Invariant: what a section alone can refuse is refused here, with the value and what to do instead.
"""

from __future__ import annotations

import re
from datetime import date
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "MADE_BASES",
    "AdaptConfig",
    "AggregationConfig",
    "ColumnsConfig",
    "DataConfig",
    "LoraConfig",
    "MakeConfig",
    "ModelConfig",
    "Natural",
    "PartitionConfig",
    "PublicConfig",
    "ReceiptsConfig",
    "RepairConfig",
    "RiskConfig",
    "Section",
    "SequencesConfig",
    "SourceConfig",
    "StageConfig",
    "StoreConfig",
    "TrainingConfig",
]

DIGITS_SPLITS = ("public", "private", "test")
MADE_BASES = ("make:vit", "make:bert", "make:roberta", "make:gpt2", "make:llama")

Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true is not 1
Natural = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, no NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class SourceConfig(Section):
    """Where rows come from.

    ``format`` is one of ``digits`` (scikit-learn's 1,797 images, embedded), ``csv``, ``json``
    (JSON lines), ``parquet``, ``imagefolder`` and ``hub``. ``split`` takes Hugging Face split
    expressions such as ``train[:80%]``; ``digits`` has ``public``, ``private`` and ``test``.
    """

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub"]
    files: str | tuple[str, ...] | None = Field(None, description="path, glob or list (not hub)")
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = "train"

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format in ("csv", "json", "parquet", "imagefolder") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


class ColumnsConfig(Section):
    """Names of the columns. ``id`` is optional: without it an id is a content digest."""

    text: str = "text"
    image: str = "image"
    label: str = "label"
    id: str | None = None


class PublicConfig(Section):
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing."""

    adapt: SourceConfig | None = None
    validation: SourceConfig
    test: SourceConfig


class DataConfig(Section):
    """Private and public data, their columns, and how a row becomes a tensor."""

    private: SourceConfig
    public: PublicConfig
    columns: ColumnsConfig = ColumnsConfig()
    labels: tuple[str, ...] | None = Field(
        None, description="label names in order; without them the public data gives them"
    )
    max_length: Positive = Field(64, description="tokens per text, a multiple of 16")
    image_size: Positive | None = Field(None, description="pixels; by default the base's own")
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _multiple(self) -> DataConfig:
        if self.max_length % 16:
            raise ValueError(f"max_length {self.max_length} is not a multiple of 16")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels holds a name twice")
        return self


class MakeConfig(Section):
    """Shape of a small base that is made here (``model.base: make:…``)."""

    hidden: Positive = 64
    layers: Positive = 4
    heads: Positive = 4
    intermediate: Positive | None = Field(None, description="default 4 × hidden")
    patch: Positive = Field(2, description="pixels per patch side (ViT)")
    channels: Positive = Field(1, description="image channels (ViT)")
    init_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies the initial weight matrices"
    )

    @model_validator(mode="after")
    def _divides(self) -> MakeConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class AdaptConfig(Section):
    """Training of the whole base on the public ``adapt`` data, before any private sample."""

    steps: Positive = 300
    batch_size: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    rotations: bool = Field(
        False, description="images: show each only turned by 90, 180, 270°, as 3 × labels classes"
    )
    shift: Natural = Field(0, description="images: move each by up to so many pixels")


class ModelConfig(Section):
    """The frozen base: hub name, local path, or ``make:vit|bert|roberta|gpt2|llama``."""

    base: str
    revision: str | None = None
    make: MakeConfig = MakeConfig()
    adapt: AdaptConfig | None = None
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.base.startswith("make:") and self.base not in MADE_BASES:
            raise ValueError(f"base {self.base!r} cannot be made: use one of {list(MADE_BASES)}")
        return self


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


class PartitionConfig(Section):
    """m shards of L slices; a sample's place is a keyed hash of its subject or content."""

    shards: Positive = 4
    slices: Positive = 4
    salt: str = "s3t"
    subject: str | None = Field(None, description="column that names the person of a row")
    risk: RiskConfig | None = Field(None, description="without it all slices are one tier")

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


class LoraConfig(Section):
    """Low-rank adapters; ``targets: auto`` is the query and value projections."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    dropout: Fraction = 0.0


class StageConfig(Section):
    """Recipe of one stage, the same for all.

    ``isolation: layers`` is S3T (stage i trains block i from the top); ``snapshot`` is SISA with
    LoRA (every node carries the whole adapter, continued from its parent's).
    """

    isolation: Literal["layers", "snapshot"] = "layers"
    epochs: Positive = 10
    batch_size: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = Field(0.0, description="share of the steps")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    slices: Literal["cumulative", "current"] = "cumulative"
    head: Literal["fresh", "public"] = Field(
        "fresh", description="stage 1 starts from a random head, or from one of public data"
    )


class AggregationConfig(Section):
    """How the shards' answers become one, and what answers when no shard is left.

    ``mean-adapters`` averages the shards' adapters and heads instead of their answers: one forward
    pass for all of them, which may cost accuracy.
    """

    method: Literal["mean-probabilities", "mean-logits", "vote", "mean-adapters"] = (
        "mean-probabilities"
    )
    weights: Literal["uniform", "data"] = "uniform"
    on_exhausted: Literal["raise", "base"] = "raise"


class TrainingConfig(Section):
    """How the work is spread. Nothing here changes a node's bytes."""

    workers: Literal["auto"] | Positive = "auto"
    group_bytes: Literal["auto"] | Positive = Field(
        "auto", description="hidden states of one stacked step; auto: 512 KiB, on a GPU 256 MiB"
    )
    trunk_cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto",
        description="where hidden states that enter a block are kept: in each process's memory, or "
        "on disk, shared by the workers of a machine (auto: disk if there are several and "
        "store.encrypt is off)",
    )
    trunk_cache_mb: Natural = Field(
        4096, description="above this the frozen layers below a block run anew at each step"
    )
    gradient_checkpointing: bool = Field(
        False, description="run layers again in the backward pass: less memory, more time"
    )
    trackers: tuple[str, ...] = Field((), description="accelerate trackers; public metrics only")

    @field_validator("trunk_cache", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # which is what YAML reads ``off`` as


class StoreConfig(Section):
    """Where the nodes are kept, and how machines that see the same store tell who is at work.

    Nothing here changes a node's bytes.
    """

    url: str | None = Field(
        None, description="any fsspec URL or shared folder, of one run; default: the run's nodes/"
    )
    cache: str | None = Field(
        None, description="folder of copies of what lies at the URL; default: the run's nodes/"
    )
    lease: Annotated[float, Field(gt=0)] = Field(
        60.0, description="seconds without a sign of life after which others take a node up"
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
    """What stands behind the log of deletions, plans and purges."""

    signing_key: str | None = Field(
        None, description="PEM file of an Ed25519 private key, outside the run: entries are signed"
    )


class RepairConfig(Section):
    """When ``s3t repair --if-due`` and ``--watch`` repair. Nothing here changes a node's bytes."""

    when: Literal["hand", "forecast", "schedule"] = "hand"
    event: Literal["first_death", "exhaustion"] = Field(
        "first_death", description="forecast: of which event, see s3t forecast"
    )
    below_requests: Annotated[float, Field(gt=0)] | None = Field(
        None, description="forecast: due when in 5 % of futures so few requests, or fewer, are left"
    )
    below_days: Annotated[float, Field(gt=0)] | None = Field(
        None, description="forecast: or so few days, at the observed rate"
    )
    every_days: Annotated[float, Field(gt=0)] | None = Field(
        None, description="schedule: due so long after the last plan, if anything was deleted since"
    )

    @model_validator(mode="after")
    def _told(self) -> RepairConfig:
        if self.when == "forecast" and self.below_requests is None and self.below_days is None:
            raise ValueError("when 'forecast' needs below_requests or below_days")
        if self.when == "schedule" and self.every_days is None:
            raise ValueError("when 'schedule' needs every_days")
        return self
