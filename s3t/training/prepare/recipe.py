"""What of config and code shapes a node's bytes: it goes into every key (E1).

Invariant: nodes of equal recipes, bases, slices and environments have equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3t.config import Config
from s3t.model.base import Base
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.quantized import has_quantized, quantizer_version
from s3t.plan.blocks import trained_layers
from s3t.types import Digest

__all__ = ["blocks_of", "recipe_of", "stage_bytes"]

ENGINE = 3
"""Raised whenever a change of this code changes the bytes of nodes."""


def blocks_of(config: Config, depth: int) -> tuple[tuple[int, int], ...]:
    """Layers (lo, hi) that stage 1, 2, … L trains (``plan.blocks.trained_layers``); none for
    prompts.

    Raises:
        ConfigError: of ``layers`` more slices than layers, or too many layers in block 1.
    """
    slices, stage = config.partition.slices, config.stage
    if stage.prompts:
        return ((0, 0),) * slices
    return trained_layers(stage.isolation, depth, slices, stage.first_block, stage.span)


def recipe_of(
    config: Config,
    base: Base,
    encoder: TextEncoder | ImageEncoder,
    labels: Sequence[str],
    head: Digest | None,
    prototypes: Digest | None = None,
) -> dict[str, Any]:
    """Everything in config and code that shapes bytes, as JSON values.

    Args:
        config, base, encoder: the run's.
        labels: label names in order.
        head: digest of the public head from which stage 1 starts, if it does.
        prototypes: digest of those by which samples are placed, if they are.
    """
    found = {
        "engine": ENGINE,
        "task": config.task,
        "seed": config.seed,
        "labels": list(labels),
        "head": head,
        "encoder": encoder.fingerprint(),
        "pooling": base.pooling,
        "dtype": config.model.dtype,
        "blocks": [list(block) for block in blocks_of(config, base.depth)],
        "targets": sorted({target.path for target in base.targets}),
        **_adapter(config),
        "stage": config.stage.model_dump(mode="json"),
    }
    if has_quantized(base.layers):
        bits, version = config.model.quantization, quantizer_version()
        found["quantization"] = {"bits": bits, "bitsandbytes": version}
    return found if prototypes is None else found | {"prototypes": prototypes}


def _adapter(config: Config) -> dict[str, Any]:
    """The section of what is trained beside the head; the other one has no part in it."""
    if config.stage.prompts:
        return {"prompt": config.prompt.model_dump(mode="json")}
    return {"lora": config.lora.model_dump(mode="json", exclude={"targets"})}


def stage_bytes(config: Config, base: Base, classes: int) -> tuple[int, ...]:
    """Bytes of the float32 weights of a node of stage 1, 2, … L, head included."""
    rank = config.lora.rank
    head = 4 * classes * (base.hidden_size + 1)
    if config.stage.prompts:
        return (head + 4 * config.prompt.tokens * base.hidden_size,) * config.partition.slices
    return tuple(
        head + sum(4 * rank * (t.inputs + t.outputs) for t in base.targets if lo <= t.layer < hi)
        for lo, hi in blocks_of(config, base.depth)
    )
