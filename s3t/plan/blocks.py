"""Divides the layers of the base into blocks; block 1 is at the top.

    N = 8, L = 3:   layers 7 6 5 │ 4 3 2 │ 1 0
                      block 1      block 2  block 3

Sizes of blocks differ by one layer at most. The upper blocks get the remainder, because they are
trained on the fewest slices and survive the longest.
"""

from __future__ import annotations

from s3t.errors import ConfigError

__all__ = ["block_layers"]


def block_layers(depth: int, slices: int) -> tuple[tuple[int, int], ...]:
    """The layers lo … hi − 1 of each block, as L pairs (lo, hi), block 1 first.

    Args:
        depth: number of layers N of the base.
        slices: number of blocks L.

    Raises:
        ConfigError: more slices than layers.
    """
    if slices > depth:
        raise ConfigError(
            [
                f"partition.slices {slices} is over the {depth} layers of the base: each slice "
                f"needs a block of its own; use at most {depth} slices, or stage.isolation=snapshot"
            ]
        )
    even, rest = divmod(depth, slices)
    ranges, hi = [], depth
    for block in range(slices):
        lo = hi - even - (block < rest)
        ranges.append((lo, hi))
        hi = lo
    return tuple(ranges)
