"""What isolations cost and are worth: by hand from shapes, and against what was measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import yaml

from s3t.config import StageConfig
from s3t.errors import ConfigError
from s3t.plan.blocks import stage_time, trained_layers
from s3t.plan.budget import stages
from s3t.plan.budget.candidates import candidates
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import KINDS, Stages, one_lora_curve
from s3t.plan.budget.target import worths

NESTED, WIDE, RESIDUAL, CURRENT, EQUAL, _, LAYERS, SNAPSHOT = KINDS


def test_public_names() -> None:
    assert stages.__all__ == ["KINDS", "Isolation", "Stages", "one_lora_curve"]


@pytest.mark.parametrize(
    ("kind", "slices", "held", "time"),
    [
        (NESTED, [1, 2, 3], [3, 6, 8], [3, 6, 8]),
        (WIDE, [1, 2, 3], [5, 7, 8], [5, 7, 8]),
        (RESIDUAL, [1, 2, 3], [8, 8, 8], [8, 8.8, 8.8]),
        (EQUAL, [1, 1, 1], [3, 6, 8], [3, 6, 8]),
        (CURRENT, [1, 1, 1], [8, 8, 8], [8, 8.8, 8.8]),
        (LAYERS, [1, 2, 3], [3, 3, 2], [3, 6, 8]),
        (SNAPSHOT, [1, 2, 3], [8, 8, 8], [8, 8, 8]),
    ],
    ids=str,
)
def test_eight_layers_in_three_stages(
    kind: Stages, slices: list[float], held: list[float], time: list[float]
) -> None:
    assert kind.slices(3, 6).tolist() == slices
    assert kind.held(8, 3) * 8 == pytest.approx(held)
    assert kind.time(8, 3) * 8 == pytest.approx(time)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_section_of_a_config_asks_for_it(kind: Stages) -> None:
    section = yaml.safe_load(f"{{{kind.section(8, 3, 10)}}}")
    config = StageConfig.model_validate(section)
    assert config.isolation == kind.isolation
    assert (config.slices == "current") == kind.current
    assert [config.epochs_of(stage) for stage in (1, 2, 3)] == kind.epochs(3, 10)
    assert kind.epochs(3, 10) == ([10, 5, 4] if kind.falling else [10, 10, 10])
    trained = trained_layers(config.isolation, 8, 3, config.first_block, config.span)
    assert list(stage_time(config.isolation, trained, 8)) == kind.time(8, 3).tolist()


def test_a_residual_that_spans_up_runs_what_nested_runs() -> None:
    assert trained_layers("residual", 8, 3, span="up") == trained_layers("nested", 8, 3)


def test_only_blocks_need_a_layer_for_each_slice() -> None:
    for kind in KINDS:
        if kind.needs_layers:
            with pytest.raises(ConfigError, match=r"partition\.slices 4 is over the 3 layers"):
                kind.held(3, 4)
        else:
            assert kind.held(3, 4)[2:].tolist() == [1, 1]
        deepest = max(Question(1000, 3, 5, stages=kind).cells)
        assert deepest == (3 if kind.needs_layers else 12)
    assert [kind.needs_layers for kind in KINDS] == [kind == LAYERS for kind in KINDS]


def test_wide_is_no_snapshot() -> None:
    for layers, slices in product(range(1, 9), range(1, 9)):
        wide, nested = (kind.held(layers, slices) for kind in (WIDE, NESTED))
        assert (wide >= nested).all()
        assert wide[0] < 1 or wide.tolist() == nested.tolist()


def test_the_first_stage_of_nested_is_that_of_layers() -> None:
    for layers, slices in ((4, 4), (12, 5), (7, 2)):
        one, other = (kind.factor(layers, slices)[0] for kind in (NESTED, LAYERS))
        assert one == other < 1
        assert (WIDE.factor(layers, slices) >= NESTED.factor(layers, slices)).all()
        assert SNAPSHOT.factor(layers, slices).tolist() == [1] * slices
    assert {float(kind.factor(6, 1)[0]) for kind in KINDS} == {1}, "one stage trains all layers"


def relative(kind: Stages) -> tuple[float, float]:
    """Worth of digits' cyclic plan, 4 × 4: at the start, and along 24 deletions beside it."""
    found = candidates(Question(800, 4, 24, curve=one_lora_curve(800), stages=kind))
    cell = (found.shards == 4) & (found.slices == 4) & found.kinds("cyclic")
    (row,) = np.flatnonzero(cell)
    start, along, _ = worths(found)
    return float(start[row]), float(along[row] / start[row])


MEASURED = {
    SNAPSHOT: (0.972, 0.942),
    NESTED: (0.972, 0.898),
    WIDE: (0.972, 0.925),
    RESIDUAL: (0.982, 0.943),
    CURRENT: (0.943, 0.935),
    LAYERS: (0.884, 0.907),
}
"""By isolation: worth of a full prefix, the mean over tasks; and digits' mean along 24 deletions
beside its full prefix (94.6, 94.3, 93.9, 94.1, 92.5 and 93.0 %). docs/figures.md."""


@pytest.mark.parametrize("kind", MEASURED, ids=str)
def test_what_was_measured_comes_out(kind: Stages) -> None:
    assert relative(kind) == pytest.approx(MEASURED[kind], abs=0.025)


def test_costs_and_storage_follow_the_stages() -> None:
    plain = Question(1200, 8, 10, epochs=3, layer_bytes=100)
    for kind in KINDS:
        found = candidates(replace(plain, stages=kind))
        for one in (found[row] for row in range(0, len(found), 97)):
            nodes = [leaf[:k] for leaf in one.sequences for k in range(1, len(leaf) + 1)]
            of = [len(node) - 1 for node in set(nodes)]
            passes, time, held = (
                values.tolist()
                for values in (
                    kind.slices(one.slices, 3),
                    kind.time(8, one.slices),
                    kind.held(8, one.slices),
                )
            )
            total = sum(passes[k] for k in of)
            assert one.slice_passes(3) == round(total)
            assert one.passes == pytest.approx(1200 * 3 * total / one.slices)
            assert one.cost == pytest.approx(sum(passes[k] * time[k] for k in of) / one.slices)
            assert one.adapters == pytest.approx(one.shards * sum(held[k] for k in of))
