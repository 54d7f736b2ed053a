"""The layers that stages train, in blocks from the top; and which nodes serve together.

    N = 8, L = 3:   layers 7 6 5 │ 4 3 2 │ 1 0
                      block 1      block 2  block 3

Sizes of blocks differ by one layer at most. The upper blocks get the remainder, because they are
trained on the fewest slices and survive the longest. A size that is given for block 1 leaves the
others to be divided so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from s3t.errors import ConfigError

__all__ = ["serving_nodes", "stage_time", "trained_layers"]

_Node = TypeVar("_Node")

_BESIDE = 1.1
"""A later stage of ``residual`` takes 1.03 to 1.19 times as long as a snapshot's, since the frozen
components run beside the new one (docs/figures.md, "Isolation of stages")."""


def _blocks(
    depth: int, slices: int, first_block: int | None, empty: bool
) -> tuple[tuple[int, int], ...]:
    """The layers lo … hi − 1 of each block, as L pairs (lo, hi), block 1 first.

    Args:
        depth: number of layers N of the base.
        slices: number of blocks L.
        first_block: layers of block 1; None for about as many as the others have.
        empty: whether the lowest blocks may be empty (0, 0), where stages train the layers above
            theirs too.

    Raises:
        ConfigError: a block without a layer, or more layers in block 1 than there are.
    """
    if slices > depth and not empty:
        raise ConfigError(
            [
                f"partition.slices {slices} is over the {depth} layers of the base: each slice "
                f"needs a block of its own; use at most {depth} slices, or stage.isolation=nested"
            ]
        )
    if first_block is None:
        return _divided(depth, slices)
    most = depth if empty else depth - slices + 1
    if first_block > most:
        raise ConfigError(
            [
                f"stage.first_block {first_block} is too many of the {depth} layers of the base "
                f"for {slices} slices: use at most {most}"
            ]
        )
    lowest = depth - first_block
    return ((lowest, depth), *(_divided(lowest, slices - 1) if slices > 1 else ()))


def trained_layers(
    isolation: str,
    depth: int,
    slices: int,
    first_block: int | None = None,
    span: str = "all",
) -> tuple[tuple[int, int], ...]:
    """The layers lo … hi − 1 that stage 1, 2, … L trains, as L pairs (lo, hi).

    ``layers`` trains a block; ``nested``, and ``residual`` that spans "up", train a block and all
    layers above it; ``snapshot`` and ``residual`` train all. A stage runs the layers from lo to
    the top; what enters layer lo is the same for all nodes, and comes from the trunk cache.

    Args:
        isolation, first_block, span: values of the config's section ``stage``.
        depth: number of layers N of the base.
        slices: number of stages L.

    Raises:
        ConfigError: of ``layers`` more stages than layers; more layers in block 1 than there are.
    """
    if isolation == "snapshot" or (isolation == "residual" and span == "all"):
        return ((0, depth),) * slices
    layers = isolation == "layers"
    blocks = _blocks(depth, slices, first_block, empty=not layers)
    return blocks if layers else tuple((lo, depth) for lo, _ in blocks)


def stage_time(isolation: str, trained: Sequence[tuple[int, int]], depth: int) -> tuple[float, ...]:
    """Time of a sample pass in stage 1, 2, … L, where one LoRA on all layers takes 1.

    A pass counts by the layers that it runs, forward and backward: those from the lowest that the
    stage trains up to the top. Filling the trunk cache, once for each stage, is not counted.

    Args:
        isolation: value of ``stage.isolation``.
        trained: [L], layers (lo, hi) that each stage trains (``trained_layers``).
        depth: number of layers N of the base.
    """
    later = _BESIDE if isolation == "residual" else 1.0
    return tuple(
        (depth - lo) / depth * (later if stage else 1.0) for stage, (lo, _) in enumerate(trained)
    )


def serving_nodes(isolation: str, lineage: Sequence[_Node]) -> Sequence[_Node]:
    """Those of a lineage's nodes whose tensors its last prefix serves, in the order of stages."""
    return lineage[-1:] if isolation in ("nested", "snapshot") else lineage


def _divided(hi: int, blocks: int) -> tuple[tuple[int, int], ...]:
    """Layers 0 … hi − 1 in blocks from the top."""
    even, rest = divmod(hi, blocks)
    ranges = []
    for block in range(blocks):
        lo = hi - even - (block < rest)
        ranges.append((lo, hi))
        hi = lo
    return tuple(ranges)
