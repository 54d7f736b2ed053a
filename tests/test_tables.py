"""A value that the config allows has a function: the tables by name hold what the config lists."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

import pytest
import torch

from s3t.config import AggregationConfig, SequencesConfig, SourceConfig
from s3t.config.section import Section
from s3t.data.sources import FORMATS
from s3t.plan.strategies.registry import STRATEGIES
from s3t.serving.ensemble.members import METHODS, WEIGHTS, aggregate


@pytest.mark.parametrize(
    ("section", "key", "table"),
    [
        (AggregationConfig, "method", METHODS),
        (AggregationConfig, "weights", WEIGHTS),
        (SourceConfig, "format", FORMATS),
        (SequencesConfig, "strategy", {*STRATEGIES, "explicit"}),
    ],
)
def test_a_table_has_the_names_of_the_config(
    section: type[Section], key: str, table: Collection[str]
) -> None:
    assert {*table} == {*get_args(section.model_fields[key].annotation)}


def test_an_unknown_method_is_no_mean() -> None:
    with pytest.raises(KeyError, match="median"):
        aggregate(torch.zeros(2, 3, 4), torch.ones(2) / 2, "median")
