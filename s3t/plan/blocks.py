"""Which layers belong to which block: block 1 is the top one.

    N = 8, L = 3:   layers 7 6 5 │ 4 3 2 │ 1 0
                      block 1      block 2  block 3

The blocks are as even as they can be; the upper ones take the remainder, because they are trained
on the fewest slices and survive the longest.
"""

from __future__ import annotations

from s3t.errors import ConfigError

__all__ = ["block_layers"]


def block_layers(depth: int, slices: int) -> tuple[tuple[int, int], ...]:
    """Half-open ranges (lo, hi) of layer numbers, block 1 first.

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
