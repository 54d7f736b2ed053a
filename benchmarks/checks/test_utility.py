"""The benchmark of utility keeps what it has measured, and judges it by its goals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.utility import measuring
from benchmarks.utility.found import Found
from benchmarks.utility.goals import GOALS
from benchmarks.utility.sides import LORA, NESTED, Side
from benchmarks.utility.tables import tables
from benchmarks.utility.tasks import TASKS


def _point(value: float) -> dict[str, Any]:
    return {"test": {"value": value, "rows": 400, "prefixes": [1]}}


def _seed(lora: float, nested: list[float], cpu: float) -> dict[str, Any]:
    training = {"seconds": 1.0, "nodes": 1, "bytes": 10**6}
    ways = {"weights": "uniform", "trained_as": NESTED}
    points = {str(at): _point(value) for at, value in zip((0, 1, 3, 7), nested, strict=True)}
    return {
        "base": _point(0.8),
        "sides": {
            LORA: {
                **ways,
                "trained_as": LORA,
                "training": {**training, "cpu_seconds": 2.0},
                "points": {"0": _point(lora)},
            },
            NESTED: {
                **ways,
                "training": {**training, "cpu_seconds": cpu},
                "points": points,
            },
            "other": {**ways, "refused": "no such key"},
        },
    }


def _result(*seeds: dict[str, Any]) -> dict[str, Any]:
    return {"task": "digits", "metric": "accuracy", "points": [1, 3, 7], "seeds": seeds}


def test_the_mean_along_is_of_the_line_from_the_first_deletion_to_the_last() -> None:
    found = Found(_result(_seed(0.96, [0.95, 0.9, 0.8, 0.8], 4.0)))
    assert found.along(NESTED) == pytest.approx([(2 * 0.85 + 4 * 0.8) / 6])
    assert found.along(LORA) == [], "one LoRA serves nothing after a deletion"
    assert found.of_lora(NESTED) == 2.0


def test_goals_say_by_how_much_they_are_reached_or_missed() -> None:
    found = Found(_result(_seed(0.96, [0.95, 0.9, 0.8, 0.77], 6.0)))
    margins = [goal.margin(found, NESTED) for goal in GOALS["digits"]]
    along = (2 * 0.85 + 4 * 0.785) / 6
    error = (0.8 * 0.2 / 400) ** 0.5
    assert margins == pytest.approx([0.5, 100 * (along - 0.91), 100 * (error - 0.03), -0.5])
    shown = tables(_result(_seed(0.96, [0.95, 0.9, 0.8, 0.77], 6.0)))
    assert "reached by 0.50" in shown and "**missed by 0.50**" in shown
    assert "- other: no such key" in shown and "| other" not in shown


def test_seeds_have_intervals() -> None:
    line = [0.9, 0.8, 0.8]
    result = _result(*(_seed(0.9, [start, *line], 4.0) for start in (0.94, 0.95, 0.96)))
    assert "95.0 ± 2.5" in tables(result), "Student's t of 3: 4.303 × 1 / √3"


@pytest.mark.slow
def test_nothing_is_trained_or_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(TASKS["digits"], few=(1, 2))
    monkeypatch.setattr(measuring, "sides", _two)

    def measured() -> dict[str, Any]:
        words = ("stage.epochs=1", "model.adapt.steps=1")
        return measuring.measure(task, 0, tmp_path, quick=True, words=words, say=lambda _: None)

    first = measured()
    assert list(first["sides"][NESTED]["points"]) == ["0", "1", "2"]
    assert "stage.isolation" in first["sides"]["unknown"]["refused"]
    (kept,) = (tmp_path / "digits" / "seed-0").glob(f"{NESTED}-*.json")
    before, trained = kept.read_bytes(), []
    monkeypatch.setattr(measuring, "train", lambda *a, **k: trained.append(a))
    assert measured() == first and trained == [], "all of it was kept"
    monkeypatch.undo()
    monkeypatch.setattr(measuring, "sides", _two)
    kept.unlink()
    assert measured() == first and kept.read_bytes() == before, "the same deletions again"


def _two(task: Any) -> list[Side]:
    tree = ("sequences={strategy: cyclic, budget: 1}",)
    return [
        Side(LORA, "uniform", (*tree, "partition.shards=1", "partition.slices=1")),
        Side(NESTED, "uniform", (*tree, "partition.slices=2", "stage.isolation=nested")),
        Side("unknown", "uniform", (*tree, "stage.isolation=none")),
    ]
