"""The sides of a task: how its private data is trained, and how what is trained is weighted.

A side is a name, overrides that shape its nodes, and overrides that shape its answers alone. Sides
with the same training are trained once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.utility.tasks import Task

__all__ = ["LORA", "NESTED", "SISA", "TODAY", "WEIGHTS", "Side", "sides"]

LORA, SISA, TODAY, NESTED = "one LoRA", "SISA", "today's defaults", "nested"
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "uniform": ("aggregation.weights=uniform",),
    "public": ("aggregation.weights=public",),
    "merged, uniform": ("aggregation.method=mean-adapters", "aggregation.weights=uniform"),
    "merged, public": ("aggregation.method=mean-adapters", "aggregation.weights=public"),
    "entropy": ("aggregation.weights=public", "aggregation.tokens=entropy"),
}
"""What shapes the answers. The last one is for language models alone; merged: one adapter."""
MERGED = (NESTED, "residual")
"""Trainings that are merged, too."""


@dataclass(frozen=True)
class Side:
    """One row of the table.

    Attributes:
        trained_as: name of the training.
        weights: name of what shapes the answers.
        training: overrides that shape the nodes.
    """

    trained_as: str
    weights: str
    training: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the table shows it."""
        return self.trained_as + ("" if self.weights == "uniform" else f", {self.weights} weights")

    @property
    def serving(self) -> tuple[str, ...]:
        """Overrides that shape the answers."""
        return WEIGHTS[self.weights]


def sides(task: Task) -> list[Side]:
    """The sides of a task, one LoRA first."""
    whole, pair = _targets(task.all_maps), _targets(task.query_value)
    tree, one = f"sequences={task.tree}", "sequences={strategy: cyclic, budget: 1}"
    single = ("partition.shards=1", "partition.slices=1")
    published = {
        LORA: (whole, one, "stage.isolation=snapshot", *single),
        "SISA, one sequence": (whole, one, "stage.isolation=snapshot"),
        "S3T as in the paper": (pair, f"sequences={task.cyclic}", "stage.isolation=layers"),
        TODAY: (pair, tree, "stage.isolation=layers"),
    }
    weighted = {
        SISA: (whole, tree, "stage.isolation=snapshot"),
        NESTED: (whole, tree, "stage.isolation=nested"),
        "wide": (whole, tree, "stage.isolation=nested", f"stage.first_block={task.first_block}"),
        "residual": (whole, tree, "stage.isolation=residual"),
        "residual, current": (whole, tree, "stage.isolation=residual", "stage.slices=current"),
    }
    finer = {
        f"{name}, finer slices": (*weighted[name][:1], *task.finer, *weighted[name][2:])
        for name in (NESTED, "residual")
        if task.finer
    }
    ways = [weights for weights in WEIGHTS if task.metric == "perplexity" or weights != "entropy"]
    return [
        *(Side(name, ways[0], words) for name, words in published.items()),
        *(
            Side(name, way, words)
            for way in ways
            for name, words in weighted.items()
            if name in MERGED or not way.startswith("merged")
        ),
        *(Side(name, "public", words) for name, words in finer.items()),
    ]


def _targets(names: tuple[str, ...]) -> str:
    return f"lora.targets=[{', '.join(names)}]"
