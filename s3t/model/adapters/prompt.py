"""Soft prompts: vectors beside a row's own tokens, trained instead of adapters of layers.

    stage 1   [x0, P1, x1 … xT]            first token pooled: prompts stand behind it
    stage 2   [x0, P1, P2, x1 … xT]
    stage 1   [P1, x0 … xT]                all other bases: before the first token
    stage 2   [P1, P2, x0 … xT]

Stage i trains p vectors P_i of its own, beside those of its prefix, which stand still (progressive
prompts, arXiv 2301.12314). They enter at layer 0, behind the embeddings, so they carry no learnt
position; a base that turns positions inside its layers counts them like tokens. They attend and are
attended, and have no part in the mean of a row, nor in the next tokens of a text.

Invariant: a lane's rows see its own prompts alone, and no layer of the base is adapted: what is
trained is the vectors and the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from s3t.errors import InputError
from s3t.model.base import Base

__all__ = [
    "beside",
    "check_room",
    "features",
    "fresh_prompt",
    "prompt_name",
    "prompts_of",
    "stacked",
    "states",
]

_NAME = "prompt."


def prompt_name(stage: int) -> str:
    """Name of the tensor [p, H] that stage 1, 2, … trains."""
    return f"{_NAME}{stage:03d}"


def fresh_prompt(
    inherited: Mapping[str, Tensor],
    shape: tuple[int, int],
    scale: float,
    drawn: np.random.Generator,
) -> dict[str, Tensor]:
    """The prompt of the stage that follows on a lineage, by name, before it is trained.

    Args:
        inherited: tensors of the lineage.
        shape: p and H.
        scale: standard deviation; the mean is 0.
        drawn: the node's own numbers.
    """
    stage = len(_names(inherited)) + 1
    normal = torch.from_numpy(drawn.standard_normal(shape).astype(np.float32))
    return {prompt_name(stage): normal * scale}


def prompts_of(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """All prompts of a lineage in the order of their stages, [p, H]; None if there are none.

    Raises:
        KeyError: those of a stage between are missing.
    """
    stages = range(1, len(_names(tensors)) + 1)
    return torch.cat([tensors[prompt_name(stage)] for stage in stages]) if stages else None


def stacked(lineages: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """The prompts of lineages of equal length, [G, p, H]; None if they have none."""
    found = [prompts for held in lineages if (prompts := prompts_of(held)) is not None]
    return torch.stack(found) if found else None


def beside(frozen: Tensor | None, leaves: Mapping[str, Tensor]) -> Tensor | None:
    """What lanes train, [G, p, H], behind what stands still of each; None without prompts."""
    trained = [leaves[name] for name in _names(leaves)]
    parts = trained if frozen is None else [frozen, *trained]
    return torch.cat(parts, dim=1) if parts else None


def states(
    base: Base, hidden: Tensor, lo: int, mask: Tensor | None, prompts: Tensor | None
) -> Tensor:
    """Hidden states of a row's own tokens after the last layer, [G · n, T, H].

    Args:
        base: the frozen base.
        hidden: what enters layer ``lo``, [G · n, T, H].
        lo: first layer to run; 0 if there are prompts.
        mask: padding mask [G · n, T], None for images.
        prompts: of each lane, [G, p, H]; None to run the layers as they are.
    """
    if prompts is None:
        return base.run(hidden, lo, base.depth, base.attention(mask))
    wide, longer = _joined(base, hidden, mask, prompts)
    wide = base.run(wide, lo, base.depth, base.attention(longer))
    at, count = _place(base), prompts.shape[1]
    return torch.cat([wide[:, :at], wide[:, at + count :]], dim=1) if at else wide[:, count:]


def features(
    base: Base, hidden: Tensor, lo: int, mask: Tensor | None, prompts: Tensor | None
) -> Tensor:
    """One vector per row, [G · n, H]: ``Base.features`` with prompts; arguments as ``states``."""
    if prompts is None:
        return base.features(hidden, lo, mask)
    if base.pooling == "mean":
        return base.pool(base.finish(states(base, hidden, lo, mask, prompts)), mask)
    wide, longer = _joined(base, hidden, mask, prompts)  # the pooled position moves with the mask
    return base.features(wide, lo, longer)


def check_room(base: Base, tokens: int) -> None:
    """Refuse a base that cannot take rows that are longer by ``tokens``.

    Raises:
        InputError: naming what is too long, or why prompts do not fit the base at all.
    """
    if base.causal and base.lm_head is None and base.pooling == "first":
        raise InputError(
            "model.pooling=first reads a position that is blind to prompts in a decoder: use last "
            "or mean with stage.adapter=prompt"
        )
    if base.length is None:
        if base.positioned:
            raise InputError(
                f"{type(base.model).__name__} tells its layers where each patch lies, and prompts "
                "lie nowhere: use stage.adapter=lora, or another base"
            )
        return
    longest = base.length + tokens
    for what, limit in _limits(base):
        if limit and longest > limit:
            raise InputError(
                f"data.max_length {base.length} and {tokens} prompt tokens (prompt.tokens × "
                f"partition.slices) are over the base's {what} of {limit} tokens: lower one of them"
            )


def _limits(base: Base) -> list[tuple[str, int | None]]:
    """Limits that prompts count for: learnt positions are given to tokens alone."""
    config = base.model.config
    window = getattr(config, "sliding_window", None)
    positions = getattr(config, "max_position_embeddings", None) if base.positioned else None
    return [("sliding window", window), ("positions", positions)]


def _joined(
    base: Base, hidden: Tensor, mask: Tensor | None, prompts: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Rows with their lane's prompts among their tokens, [G · n, T + p, H], and their mask."""
    lanes, count, width = prompts.shape
    rows, at = len(hidden) // lanes, _place(base)
    # spread before the cast, so that gradients of rows are added up in float32
    spread = prompts.unsqueeze(1).expand(lanes, rows, count, width).reshape(-1, count, width)
    wide = torch.cat([hidden[:, :at], spread.to(hidden.dtype), hidden[:, at:]], dim=1)
    if mask is None:
        return wide, None
    real = mask.new_ones((len(mask), count))
    return wide, torch.cat([mask[:, :at], real, mask[:, at:]], dim=1)


def _place(base: Base) -> int:
    """Tokens that stand before the prompts."""
    return 1 if base.pooling == "first" and base.lm_head is None else 0


def _names(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name in tensors if name.startswith(_NAME)]
