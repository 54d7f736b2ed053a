"""The frozen base, and what is trained beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from s3t.config.section import Above, Fraction, Natural, Positive, Section

__all__ = [
    "MADE_BASES",
    "AdaptConfig",
    "LoraConfig",
    "MakeConfig",
    "ModelConfig",
    "PromptConfig",
]

MADE_BASES = ("make:vit", "make:bert", "make:roberta", "make:gpt2", "make:llama")


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
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="weights of the frozen base by bitsandbytes (4bit: NF4)"
    )

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.base.startswith("make:") and self.base not in MADE_BASES:
            raise ValueError(f"base {self.base!r} cannot be made: use one of {list(MADE_BASES)}")
        return self


class LoraConfig(Section):
    """Low-rank adapters; ``targets: auto`` is the query and value projections."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    dropout: Fraction = 0.0

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by: alpha / rank."""
        return self.alpha / self.rank


class PromptConfig(Section):
    """Soft prompts, for ``stage.adapter: prompt``: each stage adds so many of its own."""

    tokens: Positive = Field(8, description="prompt vectors of one stage")
    init_scale: Above = Field(0.02, description="standard deviation of the initial vectors")
