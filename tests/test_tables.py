"""A value that the config allows has a function: the tables by name hold what the config lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from s3t.cli import tables
from s3t.config import AggregationConfig, Config, SequencesConfig, SourceConfig, StageConfig
from s3t.config.section import Section
from s3t.data.sources import FORMATS
from s3t.plan.strategies.registry import STRATEGIES
from s3t.serving.ensemble.members import METHODS, WEIGHTS, aggregate

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize(
    ("section", "key", "decided"),
    [
        (Config, "task", lambda config: (config.generates, config.of_images)),
        (StageConfig, "adapter", lambda stage: stage.prompts),
        (StageConfig, "parallel", lambda stage: stage.sharded),
        (StageConfig, "slices", lambda stage: stage.cumulative),
        (StageConfig, "head", lambda stage: stage.starts_public),
        (AggregationConfig, "on_exhausted", lambda aggregation: aggregation.falls_back),
    ],
)
def test_a_value_that_no_table_holds_falls_through_no_else(
    section: type[Section], key: str, decided: Callable[[Any], object]
) -> None:
    """Every value of the config is told from the others, and one that is added is none of them."""
    values = get_args(section.model_fields[key].annotation)
    found = {decided(section.model_construct(**{key: value})) for value in values}
    assert len(found) == len(values)
    with pytest.raises(KeyError, match="another"):
        decided(section.model_construct(**{key: "another"}))


def test_an_unknown_method_is_no_mean() -> None:
    with pytest.raises(KeyError, match="median"):
        aggregate(torch.zeros(2, 3, 4), torch.ones(2) / 2, "median")


def test_every_kind_of_entry_of_the_log_has_a_line() -> None:
    sources = [path.read_text() for path in (ROOT / "s3t" / "ledger").rglob("*.py")]
    kinds = {kind for text in sources for kind in re.findall(r'append\(\w+, "(\w+)"', text)}
    assert kinds == set(tables._ENTRIES)
