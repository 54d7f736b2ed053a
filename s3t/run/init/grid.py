"""Shards, slices and tree for samples that are known, by the planner.

    persons, rows, layers, deletions ─► planner ─► plan ─► is every slice filled? ─► Grid
                                            ▲                   no │
                                            └── larger slices ◄────┘

Invariant: every slice of the grid holds samples, so that it can be trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from s3t.data.partition import Partition, partition
from s3t.errors import DataError
from s3t.plan.blocks import stage_time, trained_layers
from s3t.plan.budget.advice import advise, config_of
from s3t.plan.budget.candidates import Candidate
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import one_lora_curve
from s3t.plan.forecast import Outlook, RunningSystem, forecast
from s3t.plan.trie import prefixes
from s3t.types import Sample

__all__ = ["Grid", "find_grid"]

SHARE = 0.02
LEAST = 5
"""A first run is planned for so large a part of the persons, and for no fewer than ``LEAST``, if
the caller says no number."""

COST = 2.5
"""Most training, in trainings of one LoRA on all samples."""

FEWEST = 6
"""Fewest persons in a slice, on average: with 6, one slice in 400 is empty."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A plan for the samples at hand.

    Attributes:
        deletions: number of deletions that it is planned for.
        persons: number of persons, or of samples without one.
        plan: what the planner recommends.
        partition: the samples in its slots.
        cost: of training, where one LoRA on all samples, in as many epochs, takes 1; as
            ``s3t plan`` counts it.
        sections: sections ``partition``, ``sequences`` and ``stage`` of a config that ask for it.
        lasts: requests until exhaustion, if persons ask one after another in any order.
    """

    deletions: int
    persons: int
    plan: Candidate
    partition: Partition
    cost: float
    sections: dict[str, dict[str, Any]]
    lasts: Outlook

    def lines(self) -> list[str]:
        """What it is, costs and buys."""
        plan, lasts = self.plan, self.lasts
        tree = f"a tree of {len(plan.sequences)} leaves" if plan.kind == "tree" else plan.kind
        return [
            f"plan: {_count(plan.shards, 'shard')} × {_count(plan.slices, 'slice')}, {tree}, "
            f"{plan.nodes} nodes: made for {_count(self.deletions, 'deletion')} among "
            f"{self.persons:,} persons (--deletions)",
            f"cost: {self.cost:.2f} × the training of one LoRA on all private rows",
            f"lasts: about {lasts.p50:,.0f} deletions until exhaustion (9 in 10 times between "
            f"{lasts.p5:,.0f} and {lasts.p95:,.0f}); s3t repair fills it up again",
        ]


def find_grid(
    samples: Sequence[Sample], layers: int, epochs: int, salt: str, deletions: int | None
) -> Grid:
    """The cheapest plan that is nearly as good as the best, with no slice empty.

    Args:
        samples: the private samples.
        layers: number of layers of the base.
        epochs: epochs of each stage.
        salt: key of the hash that places samples.
        deletions: number of deletions to plan for; default: 2 % of the persons,
            and at least 5.

    Raises:
        DataError: there are too few persons for a grid of two slices.
    """
    persons = len({one.subject or one.content for one in samples})
    rows = len(samples)
    asked = max(LEAST, round(SHARE * persons)) if deletions is None else deletions
    each = FEWEST
    while 2 * each <= persons:
        question = Question(
            samples=rows,
            layers=layers,
            deletions=asked,
            curve=one_lora_curve(rows),
            epochs=epochs,
            least=max(1, -(-each * rows // persons)),
            max_passes=COST * rows * epochs,
        )
        plan = advise(question).recommended
        try:
            parts = partition(samples, plan.shards, plan.slices, salt)
        except DataError:
            each *= 2
            continue
        sections = yaml.safe_load(config_of(plan, question, explicit=True))
        cost = _cost(plan, parts, layers)
        return Grid(asked, persons, plan, parts, cost, sections, _lasts(plan, parts))
    raise DataError(
        [
            f"{persons} persons (or rows without one) are too few for a run in which some can be "
            f"forgotten: give at least {2 * FEWEST}, better hundreds"
        ],
        "data",
    )


def _cost(plan: Candidate, parts: Partition, layers: int) -> float:
    """Training cost with the sizes that the slices have."""
    isolation = plan.stages.isolation
    time = stage_time(isolation, trained_layers(isolation, layers, plan.slices), layers)
    sizes = parts.sizes()
    passes = sum(
        time[len(prefix) - 1] * sum(row[part] for part in prefix)
        for row in sizes
        for prefix in prefixes(plan.sequences)
    )
    return passes / sum(map(sum, sizes))


def _lasts(plan: Candidate, parts: Partition) -> Outlook:
    """Requests until exhaustion, by the law that ``s3t forecast`` uses."""
    left = np.array(
        [[len({one.subject or one.id for one in slot}) for slot in row] for row in parts.members]
    )
    living = np.zeros(left.shape, dtype=np.bool_)
    living[:, sorted({sequence[0] for sequence in plan.sequences})] = True
    found = forecast(RunningSystem(0, left, living)).exhaustion
    assert found is not None  # no first slice has been hit
    return found


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"
