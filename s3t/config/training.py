"""How a stage is trained, and how the work is spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from s3t.config.section import Fraction, Natural, Positive, Section
from s3t.system.pinned import Arithmetic

__all__ = [
    "StageConfig",
    "TrainingConfig",
]


class StageConfig(Section):
    """The recipe of a stage, the same for all stages."""

    isolation: Literal["nested", "residual", "layers", "snapshot"] = Field(
        "nested",
        description="what stage i trains. nested: block i from the top and all layers above it, "
        "which go on from the parent's; residual: a new adapter beside the frozen ones of the "
        "stages before; layers: block i alone, as in the S3T paper; snapshot: all layers, which "
        "go on from the parent's, as SISA does with LoRA",
    )
    first_block: Positive | None = Field(
        None,
        description="layers of block 1, at the top; null: blocks of about the same size",
    )
    span: Literal["all", "up"] = Field(
        "all", description="residual: a stage adapts all layers, or those from its block up"
    )
    orthogonality: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="residual: weight of O-LoRA's penalty, the squared products of a stage's A "
        "with those of the stages before",
    )
    adapter: Literal["lora", "prompt"] = Field(
        "lora", description="what is trained beside the head: LoRA blocks or soft prompts"
    )
    epochs: Positive | Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        10,
        description="passes over the rows of a node; a list: of stage 1, 2, …, and its last "
        "number of all after",
    )
    batch_size: Positive = Field(8, description="rows of a batch")
    gradient_accumulation: Positive = Field(1, description="batches of one step of the optimizer")
    group_by_length: bool = Field(
        False, description="texts: put rows of similar length into a batch, to save padding"
    )
    processes: Positive = Field(
        1, description="processes that train one node together; changes its bytes"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="what these divide: batches, or batches and the base's weights (fsdp)"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(3e-3, description="peak learning rate")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="optimizer")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    warmup: Fraction = Field(0.0, description="share of the steps in which the rate rises")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="longer gradients are cut to this norm"
    )
    slices: Literal["cumulative", "current"] = Field(
        "cumulative", description="a stage trains on all slices of its prefix, or on the last one"
    )
    head: Literal["fresh", "public"] = Field(
        "fresh", description="stage 1 starts from a random head, or from one of public data"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_prompts(cls, values: Any) -> Any:
        """Prompts of a stage stand beside those before it, so they are isolated as layers are."""
        if isinstance(values, Mapping) and values.get("adapter") == "prompt":
            return {"isolation": "layers", **values}
        return values

    @model_validator(mode="after")
    def _fits_isolation(self) -> StageConfig:
        blocks = self.isolation in ("nested", "layers") or self.span == "up"
        if self.prompts and self.isolation != "layers":
            raise ValueError(
                f"adapter 'prompt' does not fit isolation={self.isolation}: each stage trains "
                "prompts of its own, and those before them stand still; leave isolation out"
            )
        if self.first_block is not None and (self.prompts or not blocks):
            raise ValueError(
                f"first_block {self.first_block} is given, and isolation '{self.isolation}' has no "
                "blocks here: leave it out"
            )
        for name, value, none in (
            ("span", self.span, "all"),
            ("orthogonality", self.orthogonality, 0.0),
        ):
            if value != none and self.isolation != "residual":
                raise ValueError(
                    f"{name} {value} is given, and isolation '{self.isolation}' has no use for it: "
                    "set isolation to residual, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _divides(self) -> StageConfig:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of processes {self.processes}, "
                "each of which takes an equal part of every batch"
            )
        if self.sharded and self.processes == 1:
            raise ValueError(
                "parallel 'fsdp' divides the base among several processes: give processes, or "
                "leave it out"
            )
        return self

    @property
    def prompts(self) -> bool:
        """Whether a stage trains soft prompts, and no LoRA."""
        return {"lora": False, "prompt": True}[self.adapter]

    @property
    def sharded(self) -> bool:
        """Whether the processes of a node divide the base's weights too."""
        return {"ddp": False, "fsdp": True}[self.parallel]

    @property
    def cumulative(self) -> bool:
        """Whether a stage trains on all slices of its prefix, and not on the last one alone."""
        return {"cumulative": True, "current": False}[self.slices]

    @property
    def starts_public(self) -> bool:
        """Whether stage 1 starts from a head of public data."""
        return {"fresh": False, "public": True}[self.head]

    def epochs_of(self, stage: int) -> int:
        """Passes over the rows of a node of this stage, counted from 1."""
        if isinstance(self.epochs, int):
            return self.epochs
        return self.epochs[min(stage, len(self.epochs)) - 1]

    @property
    def step_rows(self) -> int:
        """Rows of one step of the optimizer."""
        return self.batch_size * self.gradient_accumulation


class TrainingConfig(Section):
    """How the work is spread.

    Only ``arithmetic`` changes the bytes of a node, and the node's key names it.
    """

    arithmetic: Arithmetic = Field(
        "native",
        description="native: what the processor does fastest; portable: the same bytes on every "
        "x86-64 processor with AVX2 (same torch, same C library), several times slower",
    )
    workers: Literal["auto"] | Positive = Field(
        "auto", description="processes that train nodes; auto: by cores and devices"
    )
    group_bytes: Literal["auto"] | Positive = Field(
        "auto",
        description="bytes of hidden states in one stacked step; auto: 512 KiB, on a GPU 256 MiB",
    )
    trunk_cache: Literal["auto", "memory", "disk", "off"] = Field(
        "auto",
        description="where hidden states that enter a block are kept: in each process's memory, or "
        "on disk, shared by the workers of a machine (auto: disk if there are several and "
        "store.encrypt is off)",
    )
    trunk_cache_mb: Natural = Field(
        4096,
        description="MB; where the cache would be larger, the layers below a block run "
        "at each step",
    )
    gradient_checkpointing: bool = Field(
        False, description="run layers again in the backward pass: less memory, more time"
    )
    trackers: tuple[str, ...] = Field(
        (), description="accelerate's trackers that get metrics of public data"
    )

    @field_validator("trunk_cache", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # which is what YAML reads ``off`` as
