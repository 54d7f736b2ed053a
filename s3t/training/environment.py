"""The environment of a node: the software, and what its arithmetic does (E2).

    versions, switches, processor ─┐
    one step of the training code ─┴─► environment ──digest──► key of every node trained here
      on rows that are drawn

Why a probe: which bits a product has follows from kernels that libraries choose by the processor
and by switches, and a switch is not always seen. So the training code takes a step at the shapes of
the recipe, in the first two stages, and the digest of all that it computed is part of the
environment.

Invariant: what changes a bit of training changes the environment. To tell two
environments apart without need costs nothing but a name; to take two for one would give other bytes
under one key.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from s3t.config import Config
from s3t.errors import InputError
from s3t.model.adapters.lineage import composed
from s3t.model.base import Base
from s3t.model.determinism import draws, processor_flags
from s3t.model.inputs.encoders import Encoded
from s3t.store import tensors_digest
from s3t.system.pinned import arithmetic_here, switches
from s3t.training.node.assignment import CacheSettings, StageRows, StageSettings
from s3t.training.node.rows import LabelledSet
from s3t.training.node.trainer import StageTrainer
from s3t.training.prepare.recipe import blocks_of
from s3t.types import Digest, digest

__all__ = ["environment_of"]

_ROWS = 4
"""Validation rows of the probe: none is scored."""

_probes: dict[Digest, Digest] = {}


def environment_of(
    config: Config, base: Base, classes: int, device: torch.device
) -> dict[str, Any]:
    """The environment in which this process trains nodes of a run, as JSON values.

    Args:
        config: the run's.
        base: its frozen base, whole.
        classes: number of labels; 0 for a language model.
        device: what nodes are trained on.

    Raises:
        InputError: portable arithmetic, which this machine or this torch does not have.
    """
    found: dict[str, Any] = {
        "arithmetic": arithmetic_here() or "not pinned",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device.type,
        **_encoding(base),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    else:
        found |= _processor()
    if config.stage.sharded and device.type != "cpu":
        return found  # no device need hold the base whole
    return found | {"probe": _probe(config, base.to(device), classes)}


def _encoding(base: Base) -> dict[str, Any]:
    """What makes tensors of rows: it is no part of the base, and may be upgraded too."""
    name = "pillow" if base.length is None else "tokenizers"
    try:
        return {name: version(name)}
    except PackageNotFoundError:  # images of the right size need none
        return {name: None}


def _processor() -> dict[str, Any]:
    machine = {"machine": platform.machine(), "threads": 1, "switches": switches()}
    if arithmetic_here() != "portable":
        return machine | {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "flags": digest(sorted(processor_flags()))[:16],
        }
    if machine["machine"] != "x86_64" or not torch.backends.mkl.is_available():
        raise InputError(
            "training.arithmetic=portable is of x86-64 processors and a torch with MKL: use native"
        )
    if "avx2" not in processor_flags():
        raise InputError(
            "training.arithmetic=portable needs a processor with AVX2, since the C library rounds "
            "otherwise without it: use native"
        )
    return machine | {"libc": " ".join(platform.libc_ver())}


def _probe(config: Config, base: Base, classes: int) -> Digest:
    """Digest of one step of the first two stages at the recipe's shapes."""
    recipe = {"stage": config.stage, "lora": config.lora, "prompt": config.prompt}
    shaped = {name: part.model_dump(mode="json") for name, part in recipe.items()}
    known = digest([base.fingerprint, str(base.device), classes, config.partition.slices, shaped])
    if known not in _probes:
        _probes[known] = tensors_digest(_step(config, base, classes))
    return _probes[known]


def _step(config: Config, base: Base, classes: int) -> dict[str, Tensor]:
    rows, drawn = config.stage.step_rows, draws(1)
    stage = config.stage.model_copy(update={"epochs": 1, "group_by_length": False})
    prompt = config.prompt if stage.prompts else None
    private, validation = (_drawn_rows(base, classes, count, drawn) for count in (rows, _ROWS))
    trainer = StageTrainer(
        base,
        StageSettings(stage, config.lora, prompt),
        StageRows(private, validation, classes),
        CacheSettings(2**40),
    )
    base.passed_together.clear()  # what is tried here no other process of a group has tried
    found = {"sums": torch.tensor(_odd_numbers(drawn))}
    nodes: list[dict[str, Tensor]] = []
    for number, block in enumerate(blocks_of(config, base.depth)[:2]):
        before = composed(stage.isolation, nodes, lambda tensors: tensors)
        tensors = trainer.step_of(block, f"probe of stage {number}", torch.arange(rows), before)
        found |= {f"{number}.{name}": tensor for name, tensor in tensors.items()}
        nodes.append({name: one for name, one in tensors.items() if name != "gradient"})
    base.passed_together.clear()
    return found


def _drawn_rows(base: Base, classes: int, count: int, drawn: np.random.Generator) -> LabelledSet:
    """Rows of the shape that the base takes, of several lengths if they are texts."""
    labels = torch.from_numpy(drawn.integers(0, classes, count)) if classes else None
    shape = base.model.config
    if base.length is None:
        size = shape.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        images = drawn.random((count, shape.num_channels, *sides), dtype=np.float32)
        return LabelledSet(Encoded(torch.from_numpy(images * 2 - 1), None), labels)
    tokens = torch.from_numpy(drawn.integers(0, shape.vocab_size, (count, base.length)))
    mask = torch.ones_like(tokens)
    for row in range(1, count):
        mask[row, base.length - row * base.length // (2 * count) :] = 0
    return LabelledSet(Encoded(tokens, mask), labels)


def _odd_numbers(drawn: np.random.Generator) -> list[float]:
    """What a step may not meet: numbers so small that a switch may flush them to zero."""
    small = torch.from_numpy(drawn.random(64, dtype=np.float32)) * 1e-39
    return [float(small.sum()), float((small * 0.5).max()), float(small.double().mean())]
