"""Which layers each stage trains."""

from __future__ import annotations

from itertools import pairwise

import pytest

from s3t.errors import ConfigError
from s3t.plan.blocks import serving_nodes, trained_layers


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("slices", range(1, 9))
@pytest.mark.parametrize("first", [None, 1, 2, 5])
def test_blocks_follow_one_another_from_the_top(depth: int, slices: int, first: int | None) -> None:
    if first is not None and first > depth:
        with pytest.raises(ConfigError, match=f"use at most {depth}"):
            trained_layers("nested", depth, slices, first)
        return
    found = trained_layers("nested", depth, slices, first)
    assert len(found) == slices and all(hi == depth for _, hi in found)
    lows = [depth, *(lo for lo, _ in found)]
    assert lows[-1] == 0 or (slices == 1 and first is not None)
    sizes = [above - lo for above, lo in pairwise(lows)]
    assert first is None or sizes[0] == first
    even = sizes if first is None else sizes[1:]
    assert even == sorted(even, reverse=True) and max(even, default=0) - min(even, default=0) <= 1
    if min(sizes) > 0:
        blocks = trained_layers("layers", depth, slices, first)
        assert blocks == tuple((lo, above) for above, lo in pairwise(lows))
    else:
        with pytest.raises(ConfigError, match=f"{depth} layers of the base"):
            trained_layers("layers", depth, slices, first)


def test_what_serves_of_a_lineage() -> None:
    for isolation in ("nested", "snapshot"):
        assert serving_nodes(isolation, "abc") == "c"
        assert serving_nodes(isolation, "") == ""
    for isolation in ("layers", "residual"):
        assert serving_nodes(isolation, "abc") == "abc"
