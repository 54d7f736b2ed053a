"""The blocks of layers that stages train, block 1 at the top; and which nodes serve together.

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

__all__ = ["block_layers", "serving_nodes"]

_Node = TypeVar("_Node")


def block_layers(
    depth: int, slices: int, first_block: int | None = None, empty: bool = False
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
