"""Which layers each stage trains."""

from __future__ import annotations

from itertools import pairwise

import pytest

from s3t.errors import ConfigError
from s3t.plan.blocks import block_layers, serving_nodes


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("slices", range(1, 9))
@pytest.mark.parametrize("first", [None, 1, 2, 5])
def test_blocks_follow_one_another_from_the_top(depth: int, slices: int, first: int | None) -> None:
    if first is not None and first > depth:
        with pytest.raises(ConfigError, match=f"use at most {depth}"):
            block_layers(depth, slices, first, empty=True)
        return
    found = block_layers(depth, slices, first, empty=True)
    assert len(found) == slices and found[0][1] == depth
    assert all(one[0] == other[1] for one, other in pairwise(found))
    assert found[-1][0] == 0 or (slices == 1 and first is not None)
    sizes = [hi - lo for lo, hi in found]
    assert first is None or sizes[0] == first
    even = sizes if first is None else sizes[1:]
    assert even == sorted(even, reverse=True) and max(even, default=0) - min(even, default=0) <= 1
    if min(sizes) > 0:
        assert block_layers(depth, slices, first) == found
    else:
        with pytest.raises(ConfigError, match=f"{depth} layers of the base"):
            block_layers(depth, slices, first)


def test_what_serves_of_a_lineage() -> None:
    for isolation in ("nested", "snapshot"):
        assert serving_nodes(isolation, "abc") == "c"
        assert serving_nodes(isolation, "") == ""
    for isolation in ("layers", "residual"):
        assert serving_nodes(isolation, "abc") == "abc"
