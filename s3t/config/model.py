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

    hidden: Positive = Field(64, description="width of a hidden state")
    layers: Positive = Field(4, description="number of layers")
    heads: Positive = Field(4, description="attention heads of a layer")
    intermediate: Positive | None = Field(
        None, description="width inside a layer; default: 4 × hidden"
    )
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
    """Training of the base on the public ``adapt`` data, before any private sample."""

    rank: Positive | None = Field(
        None,
        description="train LoRA of this rank on all linear maps, and merge it into the base; "
        "null: train all weights",
    )
    steps: Positive = Field(300, description="steps of the optimizer")
    batch_size: Positive = Field(64, description="rows of a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1.5e-3, description="peak learning rate")
    rotations: bool = Field(
        False,
        description="images: show each one turned by 90, 180 and 270° only, as 3 × labels classes",
    )
    shift: Natural = Field(0, description="images: move each by up to so many pixels")


class ModelConfig(Section):
    """The frozen base."""

    base: str = Field(
        description="hub name, local folder, or make:vit, make:bert, make:roberta, make:gpt2, "
        "make:llama"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a hub name")
    make: MakeConfig = MakeConfig()
    adapt: AdaptConfig | None = None
    pooling: Literal["auto", "first", "mean", "last"] = Field(
        "auto", description="which position of a row the head reads; auto: as the base does"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the frozen base"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="weights of the frozen base by bitsandbytes (4bit: NF4)"
    )

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.base.startswith("make:") and self.base not in MADE_BASES:
            raise ValueError(f"base {self.base!r} cannot be made: use one of {list(MADE_BASES)}")
        return self


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: Positive = Field(8, description="rank of each adapter")
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="the product of an adapter is multiplied by alpha / rank"
    )
    targets: Literal["auto"] | tuple[str, ...] = Field(
        "auto", description="names of the adapted maps; auto: all linear maps of the layers"
    )
    dropout: Fraction = Field(0.0, description="share of an adapter's inputs that is dropped")

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by: alpha / rank."""
        return self.alpha / self.rank


class PromptConfig(Section):
    """Soft prompts, for ``stage.adapter: prompt``. Each stage adds its own."""

    tokens: Positive = Field(8, description="prompt vectors of one stage")
    init_scale: Above = Field(0.02, description="standard deviation of the initial vectors")
