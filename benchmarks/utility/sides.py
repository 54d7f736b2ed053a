"""The sides of a task: how its private data is trained, and how what is trained is weighted.

A side is a name, overrides that shape its nodes, and overrides that shape its answers alone. Sides
with the same training are trained once.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.utility.tasks import Task

__all__ = ["LORA", "NESTED", "PUBLIC", "SISA", "TODAY", "Side", "sides"]

LORA, SISA, TODAY, NESTED = "one LoRA", "SISA", "today's defaults", "nested"
PUBLIC = ", public weights"
"""What the name of a side ends with whose weights are fitted on public rows."""


@dataclass(frozen=True)
class Side:
    """One row of the table.

    Attributes:
        name: as the table shows it.
        training: overrides that shape its nodes.
        serving: overrides that shape its answers.
    """

    name: str
    training: tuple[str, ...]
    serving: tuple[str, ...]

    @property
    def public(self) -> bool:
        """Whether its weights are fitted on public rows."""
        return self.name.endswith(PUBLIC)

    @property
    def trained_as(self) -> str:
        """Name of the training, which several sides may share."""
        return self.name.removesuffix(PUBLIC)


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
    uniform, public = ("aggregation.weights=uniform",), ("aggregation.weights=public",)
    return [
        *(Side(name, words, uniform) for name, words in (published | weighted).items()),
        *(Side(name + PUBLIC, words, public) for name, words in weighted.items()),
    ]


def _targets(names: tuple[str, ...]) -> str:
    return f"lora.targets=[{', '.join(names)}]"
