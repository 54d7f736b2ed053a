"""How a stage is trained, and how the work is spread."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from s3t.config.section import Fraction, Natural, Positive, Section
from s3t.system.pinned import Arithmetic

__all__ = [
    "StageConfig",
    "TrainingConfig",
]


class StageConfig(Section):
    """Recipe of one stage, the same for all.

    ``isolation: layers`` is S3T (stage i trains block i from the top); ``snapshot`` is SISA with
    LoRA (every node carries the whole adapter, continued from its parent's). ``adapter: prompt``
    trains soft prompts and a head instead of LoRA: each stage its own, beside those before it.
    ``processes`` train one node together, each a part of every batch (``parallel: ddp``), and hold
    a part of the base (``fsdp``); sums are then in another order, so this is part of the recipe.
    """

    isolation: Literal["layers", "snapshot"] = "layers"
    adapter: Literal["lora", "prompt"] = "lora"
    epochs: Positive = 10
    batch_size: Positive = 8
    gradient_accumulation: Positive = Field(
        1, description="passes of batch_size rows before one step of the optimizer"
    )
    group_by_length: bool = Field(
        False, description="texts: batches of like length, so that less is padding"
    )
    processes: Positive = Field(1, description="that train one node together")
    parallel: Literal["ddp", "fsdp"] = "ddp"
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

    @model_validator(mode="after")
    def _divides(self) -> StageConfig:
        if self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of processes {self.processes}, "
                "each of which takes an equal part of every batch"
            )
        if self.parallel == "fsdp" and self.processes == 1:
            raise ValueError(
                "parallel 'fsdp' divides the base among several processes: give processes, or "
                "leave it out"
            )
        return self

    @property
    def step_rows(self) -> int:
        """Rows of one step of the optimizer."""
        return self.batch_size * self.gradient_accumulation


class TrainingConfig(Section):
    """How the work is spread. Nothing here but ``arithmetic`` changes a node's bytes, and that is
    named by the node's key."""

    arithmetic: Arithmetic = Field(
        "native",
        description="native: what the processor does fastest; portable: the same bytes on every "
        "x86-64 processor with AVX2 (same torch, same C library), several times slower",
    )
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
