"""The measured figures of a task, by side, point and test rows: means and intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.reports import interval
from benchmarks.utility.measuring import REPAIRED
from benchmarks.utility.sides import LORA

__all__ = ["Found"]


class Found:
    """What one run of a task has measured.

    Attributes:
        points: numbers of deletions, ascending from 0.
        tests: names of the test rows; the first is what the task is judged on.
        there: names of the sides that ran at every seed.
        weights: what shaped their answers, each once.
        refused: of the others, why not.
        accuracy: whether more is better; else the metric is a perplexity.
    """

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.seeds: Sequence[Mapping[str, Any]] = result["seeds"]
        self.accuracy = result["metric"] == "accuracy"
        self.points = (0, *result["points"])
        self.tests = list(self.seeds[0]["base"])
        each = [seed["sides"] for seed in self.seeds]
        self.refused: dict[str, str] = {
            name: side["refused"]
            for sides in each
            for name, side in sides.items()
            if "refused" in side
        }
        self.there = [name for name in each[0] if name not in self.refused]
        self._sides: Mapping[str, Mapping[str, str]] = each[0]
        self.weights = list(dict.fromkeys(self._sides[name]["weights"] for name in self.there))

    def served_with(self, weights: str) -> dict[str, str]:
        """The sides whose answers were weighted so, and how each was trained."""
        sides = self._sides
        named = {name: sides[name]["trained_as"] for name in self.there}
        return {name: how for name, how in named.items() if sides[name]["weights"] == weights}

    def at(self, side: str, point: int | str, test: str | None = None) -> list[float]:
        """The metric of a side after so many deletions, by seed; empty if it was not measured."""
        found = [seed["sides"][side]["points"].get(str(point)) for seed in self.seeds]
        return [float(one[test or self.tests[0]]["value"]) for one in found if one]

    def repaired(self, side: str, test: str | None = None) -> list[float]:
        """The metric after the last deletion and a repair, by seed."""
        return self.at(side, REPAIRED, test)

    def base(self, test: str | None = None) -> list[float]:
        """The metric of the base alone, by seed."""
        return [float(seed["base"][test or self.tests[0]]["value"]) for seed in self.seeds]

    def error(self) -> float:
        """Standard error of the base's accuracy, of so many test rows."""
        mean, rows = fmean(self.base()), self.seeds[0]["base"][self.tests[0]]["rows"]
        return float((mean * (1 - mean) / rows) ** 0.5)

    def along(self, side: str, test: str | None = None) -> list[float]:
        """The metric on average from the first deletion to the last, by seed: trapezoids between
        the points."""
        points = self.points[1:]
        lines = np.array([self.at(side, point, test) for point in points])  # [points, seeds]
        if lines.size == 0:
            return []
        if len(points) == 1:
            return [float(value) for value in lines[0]]
        means = np.trapezoid(lines, points, axis=0) / (points[-1] - points[0])
        return [float(value) for value in means]

    def cost(self, side: str, what: str) -> list[float]:
        """``seconds``, ``cpu_seconds``, ``bytes`` or ``nodes`` of a training, by seed."""
        found = [seed["sides"][side]["training"][what] for seed in self.seeds]
        return [float(value) for value in found if value is not None]

    def of_lora(self, side: str) -> float | None:
        """CPU seconds of a training as a multiple of one LoRA's."""
        ours, theirs = self.cost(side, "cpu_seconds"), self.cost(LORA, "cpu_seconds")
        return fmean(ours) / fmean(theirs) if ours and theirs else None

    @staticmethod
    def bounds(values: Sequence[float]) -> tuple[float, float]:
        """95 % interval of the mean; of one seed the value itself."""
        return interval(values) if len(values) > 1 else (values[0], values[0])
