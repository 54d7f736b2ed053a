"""What shapes a node's bytes apart from its data: it goes into every key (E1).

Invariant: two runs with equal recipes, bases and slices produce equal bytes; whatever could break
that (library versions, the processor's instruction set, thread count) is part of the recipe.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from s3t.config import Config, StageConfig
from s3t.model.base import Base
from s3t.model.encode import ImageEncoder, TextEncoder
from s3t.model.quantized import has_quantized, quantizer_version
from s3t.plan.blocks import block_layers
from s3t.types import Digest

__all__ = ["blocks_of", "environment", "recipe_of", "stage_bytes"]

ENGINE = 2
"""Raised whenever a change of this code changes the bytes of nodes."""

_LATER = ("adapter", "gradient_accumulation", "group_by_length", "processes", "parallel")
"""Values of a stage that older recipes do not have."""


def blocks_of(config: Config, depth: int) -> tuple[tuple[int, int], ...]:
    """Layers (lo, hi) that stage 1, 2, … L trains: all for snapshots, none for prompts.

    Raises:
        ConfigError: more slices than layers.
    """
    slices = config.partition.slices
    if config.stage.adapter == "prompt":
        return ((0, 0),) * slices
    if config.stage.isolation == "snapshot":
        return ((0, depth),) * slices
    return block_layers(depth, slices)


def recipe_of(
    config: Config,
    base: Base,
    encoder: TextEncoder | ImageEncoder,
    labels: Sequence[str],
    device: torch.device,
    head: Digest | None,
    prototypes: Digest | None = None,
) -> dict[str, Any]:
    """Everything in config, code and environment that shapes bytes, as JSON values.

    Args:
        config, base, encoder: the run's.
        labels: label names in order.
        device: what nodes are trained on.
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
        "stage": _stage(config.stage),
        "environment": environment(device),
    }
    if has_quantized(base.layers):
        bits, version = config.model.quantization, quantizer_version()
        found["quantization"] = {"bits": bits, "bitsandbytes": version}
    return found if prototypes is None else found | {"prototypes": prototypes}


def _adapter(config: Config) -> dict[str, Any]:
    """The section of what is trained beside the head; the other one has no part in it."""
    if config.stage.adapter == "prompt":
        return {"prompt": config.prompt.model_dump(mode="json")}
    return {"lora": config.lora.model_dump(mode="json", exclude={"targets"})}


def _stage(stage: StageConfig) -> dict[str, Any]:
    """The stage's values; those that came after the first release only where they are used, so
    that the keys of runs from before stay what they are."""
    plain = StageConfig()
    unused = {name for name in _LATER if getattr(stage, name) == getattr(plain, name)}
    return stage.model_dump(mode="json", exclude=unused)


def stage_bytes(config: Config, base: Base, classes: int) -> tuple[int, ...]:
    """Bytes of the float32 weights of a node of stage 1, 2, … L, head included."""
    rank = config.lora.rank
    head = 4 * classes * (base.hidden_size + 1)
    if config.stage.adapter == "prompt":
        return (head + 4 * config.prompt.tokens * base.hidden_size,) * config.partition.slices
    return tuple(
        head + sum(4 * rank * (t.inputs + t.outputs) for t in base.targets if lo <= t.layer < hi)
        for lo, hi in blocks_of(config, base.depth)
    )


def environment(device: torch.device) -> dict[str, Any]:
    """Fingerprint of the software and of the machine type that the arithmetic runs on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
    }
    if device.type == "cuda":
        return found | {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found | {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
        "flags": _cpu_flags(),
        "threads": 1,
    }


@cache
def _cpu_flags() -> str:
    """Digest of the processor's instruction sets, by which BLAS chooses its kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:16]
