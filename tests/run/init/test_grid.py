"""A grid for samples at hand: no slice is empty, and what is promised is what the run has."""

from __future__ import annotations

import numpy as np
import pytest

from s3t.config import PartitionConfig, SequencesConfig, StageConfig
from s3t.data.partition import partition
from s3t.errors import DataError
from s3t.run.init.grid import find_grid
from s3t.types import Digest, Sample, SampleId, Subject


def samples(persons: int, each: int = 1) -> list[Sample]:
    return [
        Sample(SampleId(f"{who}-{n}"), Subject(f"p{who}"), Digest(f"{who}/{n}"))
        for who in range(persons)
        for n in range(each)
    ]


@pytest.mark.parametrize(("persons", "each"), [(12, 1), (40, 7)])
def test_every_slice_holds_samples(persons: int, each: int) -> None:
    grid = find_grid(samples(persons, each), 4, 3, "salt", None)
    shape = PartitionConfig.model_validate(grid.sections["partition"])
    parts = partition(samples(persons, each), shape.shards, shape.slices, "salt")
    assert np.min(parts.sizes()) > 0
    assert grid.partition == parts
    assert grid.persons == persons
    SequencesConfig.model_validate(grid.sections["sequences"])
    StageConfig.model_validate(grid.sections["stage"])


def test_larger_slices_are_tried_where_one_would_be_empty() -> None:
    """With salt 9 the hash leaves one of 12 slices empty."""
    few = samples(74)
    assert find_grid(few, 4, 3, "0", 5).plan.slices == 12
    with pytest.raises(DataError, match="got none"):
        partition(few, 1, 12, "9")
    assert find_grid(few, 4, 3, "9", 5).plan.slices == 6


def test_more_deletions_need_a_plan_that_lasts_longer() -> None:
    few, many = (find_grid(samples(100), 4, 3, "salt", count) for count in (2, 30))
    assert many.lasts.p50 > few.lasts.p50
    assert few.lasts.p5 >= 2
    assert many.lasts.p5 >= 30


def test_too_few_persons_are_refused() -> None:
    with pytest.raises(DataError, match=r"11 persons .* are too few"):
        find_grid(samples(11, 20), 4, 3, "salt", None)


def test_what_it_is_told() -> None:
    plan, cost, lasts = find_grid(samples(100), 4, 3, "salt", 1).lines()
    assert "made for 1 deletion among 100 persons" in plan
    assert cost.startswith("cost: ")
    assert "deletions until exhaustion (9 in 10 times between" in lasts
