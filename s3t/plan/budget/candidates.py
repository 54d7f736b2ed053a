"""Every plan that the budget planner compares, for many numbers of shards and slices.

A *cell* is a pair of m shards and L slices. The plans of a cell are one sequence, the cyclic plan,
and set trees.

    plan                                            cell (m, L)
      │                                               │
      └ longest prefix, by untouched slices           └ law of their number, worth of 0 … L slices
                              └────────────┬────────────┘
                                           ▼
            training cost, storage, utility along the horizon, P(exhausted)

What a tree protects does not depend on m or on what its stages train, so the trees of one L are
grown for a few cells and compared in all. The figures are exact: each request hits one of the m·L
slots with equal probability, with repeats (arXiv 2406.16257, section 4).

Assumptions, so that one shard stands for all: slices have equal sizes; the worth of a shard depends
on the data and the layers of its prefix alone; an ensemble is worth the average of its shards,
where a shard without a prefix is worth what no data is worth. Storage leaves heads out.

Invariant: candidates follow from the question alone, always in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import Stages
from s3t.plan.sequences import Sequences, cyclic
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.settree import steps
from s3t.plan.survival.exhaustion import uniform_exhaustion
from s3t.plan.survival.lengths import expected_utility, length_law, length_table
from s3t.plan.survival.occupancy import occupancy, occupancy_along
from s3t.plan.survival.untouched import Floats, set_sizes
from s3t.plan.trie import prefixes

__all__ = ["Candidate", "Candidates", "candidates"]

HORIZONS = (0.25, 1.0, 4.0)
"""Horizons, in requests per slice, for which trees are grown: each in the nearest cell of an L.
In other cells the best of these trees is worth 0 to 2 % less, on average over costs, than a tree
grown for the cell itself."""

FEW = 6
"""Up to so many slices, trees are grown until they cost as much as the cyclic plan. With more
slices they are grown until they are worth as much, at two thirds to an eighth of its cost."""

Kind = Literal["tree", "cyclic", "one sequence"]


@dataclass(frozen=True)
class Candidate:
    """One plan in one cell, with its costs and its expected utility.

    Attributes:
        shards: m.
        slices: L.
        kind: a set tree, the paper's cyclic plan with L sequences, or one sequence (SISA).
        sequences: sequences of each shard; for a tree, its leaves.
        stages: what stages train.
        nodes: number of nodes of all shards.
        passes: training cost in samples × epochs, with the overhead of each node.
        cost: training cost, where one LoRA on all samples, in as many epochs, takes 1: a pass
            counts by the layers that its stage runs (``Stages.time``).
        adapters: storage, in adapters of all layers.
        bytes: storage in bytes; None if the bytes of a layer are unknown.
        start: utility before the first deletion.
        utility: expected utility, averaged over 0, 1, … R deletions.
        utility_at_end: expected utility after R deletions.
        living: probability that a shard has a prefix left, averaged over 0, 1, … R deletions.
        living_at_end: the same after R deletions.
        exhausted: probability that no shard has a prefix left after R deletions.
    """

    shards: int
    slices: int
    kind: Kind
    sequences: Sequences
    stages: Stages
    nodes: int
    passes: float
    cost: float
    adapters: float
    bytes: int | None
    start: float
    utility: float
    utility_at_end: float
    living: float
    living_at_end: float
    exhausted: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, with the number of leaves for the sequences."""
        values = {name: value for name, value in vars(self).items() if name != "sequences"}
        return values | {"stages": str(self.stages), "leaves": len(self.sequences)}

    def slice_passes(self, epochs: int) -> int:
        """Training cost of one shard in slice passes, as ``sequences.unit: slice-passes``
        counts, of stages of which the first has so many epochs."""
        return round(spent(self.sequences, self.stages.slices(self.slices, epochs).tolist()))


@dataclass(frozen=True, eq=False)
class Candidates:
    """The n plans of all cells, as columns [n]; units as in ``Candidate``.

    ``plans`` holds the distinct plans, and ``plan[i]`` is the number of row i's plan among them.
    """

    question: Question
    plans: tuple[tuple[Kind, Sequences], ...]
    plan: npt.NDArray[np.intp]
    shards: npt.NDArray[np.intp]
    slices: npt.NDArray[np.intp]
    nodes: npt.NDArray[np.intp]
    passes: Floats
    cost: Floats
    adapters: Floats
    start: Floats
    utility: Floats
    utility_at_end: Floats
    living: Floats
    living_at_end: Floats
    exhausted: Floats

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int | np.intp) -> Candidate:
        kind, sequences = self.plans[self.plan[number]]
        adapters, question = float(self.adapters[number]), self.question
        whole = question.layers * question.layer_bytes if question.layer_bytes else None
        return Candidate(
            int(self.shards[number]),
            int(self.slices[number]),
            kind,
            sequences,
            question.stages,
            int(self.nodes[number]),
            float(self.passes[number]),
            float(self.cost[number]),
            adapters,
            None if whole is None else round(adapters * whole),
            float(self.start[number]),
            float(self.utility[number]),
            float(self.utility_at_end[number]),
            float(self.living[number]),
            float(self.living_at_end[number]),
            float(self.exhausted[number]),
        )

    @property
    def bytes(self) -> Floats:
        """Storage in bytes, [n]; inf if the bytes of a layer are unknown."""
        return self.adapters * (self.question.layers * (self.question.layer_bytes or np.inf))

    def kinds(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """Whether each plan is of a kind, [n]."""
        return np.array([found == kind for found, _ in self.plans])[self.plan]


def candidates(question: Question, whole: bool = False) -> Candidates:
    """Compute cost, storage, expected utility and risk of every plan in every cell.

    Args:
        question: what is planned for; ``question.cells`` gives the pairs of m shards and L slices.
        whole: whether each tree that has no prefix of all slices is compared with one as well.

    Returns:
        a row for each plan in each cell; 64 cells take about a second.
    """
    plans: list[tuple[Kind, Sequences]] = []
    parts = []
    for slices, shards in question.cells.items():
        found = _plans(_grown_for(question), slices, shards)
        if whole:
            found += tuple(("tree", _lengthened(plan, slices)) for _, plan in found[2:])
        parts.append(_weighed(question, slices, shards, [plan for _, plan in found], len(plans)))
        plans += found
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Candidates(question, tuple(plans), *columns)


def _grown_for(question: Question) -> Question:
    """The question for which trees are grown: what protects well hardly depends on the isolation,
    and not at all on limits, so that few trees are grown for all of them."""
    equal = question.stages.current or question.stages.falling
    stages = Stages("snapshot", current=equal)
    return replace(
        question, stages=stages, max_passes=math.inf, max_bytes=math.inf, layer_bytes=None
    )


@lru_cache(maxsize=64)
def _plans(
    question: Question, slices: int, shards: tuple[int, ...]
) -> tuple[tuple[Kind, Sequences], ...]:
    plain: tuple[tuple[Kind, Sequences], ...] = (("one sequence", cyclic(slices, 1)),)
    if slices == 1:
        return plain
    plain += (("cyclic", cyclic(slices, slices)),)
    horizons = np.log([question.horizon(m, slices) for m in shards])
    nearest = {int(np.abs(horizons - np.log(wanted)).argmin()) for wanted in HORIZONS}
    trees = [tree for at in sorted(nearest) for tree in _trees(question, slices, shards[at])]
    return (*plain, *(("tree", tree) for tree in trees))


def _trees(question: Question, slices: int, shards: int) -> Iterator[Sequences]:
    """Set trees grown for one cell: each is the one before with one more chain."""
    training = question.samples / (shards * slices) * question.epochs
    each = question.stages.slices(slices, question.epochs)
    costs = tuple((each + question.overhead / training).tolist())
    worth, rotations = question.worth(shards, slices), cyclic(slices, slices)
    horizon = question.horizon(shards, slices)
    utility = tuple(worth.tolist())
    brief = Brief(slices, spent(rotations, costs), costs, utility=utility, horizon=horizon)
    lengths = length_law(length_table(prefixes(rotations), slices), brief.law)
    enough = math.inf if slices <= FEW else expected_utility(lengths, utility) - worth[0]
    for step in steps(brief):
        yield step.leaves
        if step.value >= enough:
            return


def _lengthened(tree: Sequences, slices: int) -> Sequences:
    """The tree whose longest branch goes on to a prefix of all slices."""
    longest = max(tree, key=len)
    rest = tuple(part for part in range(slices) if part not in longest)
    return (*(leaf for leaf in tree if leaf != longest), longest + rest)


def _weighed(
    question: Question, slices: int, shards: Sequence[int], plans: Sequence[Sequences], start: int
) -> tuple[npt.NDArray[np.generic], ...]:
    """The columns of ``Candidates`` from ``plan`` on, for all plans of one L, each for every m."""
    nodes = [tuple(prefixes(plan)) for plan in plans]
    stages = np.array([np.bincount([len(p) for p in n], minlength=slices + 1)[1:] for n in nodes])
    m = np.array(shards)
    isolation, layers = question.stages, question.layers
    each = isolation.slices(slices, question.epochs)
    training = question.samples / slices * question.epochs * each
    overhead = question.overhead * stages.sum(axis=1)[:, None] * m
    passes = (stages @ training)[:, None] + overhead
    weighed = (stages @ (training * isolation.time(layers, slices)))[:, None] + overhead
    covers = np.array([_covers(found, slices) for found in nodes])
    worth = covers @ np.array([question.worth(count, slices) for count in shards]).T
    along = occupancy_along(slices, m * slices, question.deletions).T
    at_end = occupancy(slices, m * slices, question.deletions).T
    first = [sum(len(prefix) == 1 for prefix in found) for found in nodes]
    risks = {
        k: [_exhausted(count * slices, count * k, question.deletions) for count in shards]
        for k in set(first)
    }
    shape = (len(plans), len(shards))
    return tuple(
        np.broadcast_to(column, shape).ravel()
        for column in (
            np.arange(start, start + len(plans))[:, None],
            m,
            np.array(slices),
            stages.sum(axis=1)[:, None] * m,
            passes,
            weighed / (question.samples * question.epochs),
            (stages @ isolation.held(layers, slices))[:, None] * m,
            worth[:, -1],
            (along * worth).sum(axis=1),
            (at_end * worth).sum(axis=1),
            1 - covers[:, :, 0] @ along,
            1 - covers[:, :, 0] @ at_end,
            np.array([risks[k] for k in first]),
        )
    )


@lru_cache(maxsize=8192)
def _covers(nodes: Sequences, slices: int) -> Floats:
    """[L + 1, L + 1]: of the sets of j slices, the fraction whose longest trained subset has k."""
    table = length_table(nodes, slices)
    width = slices + 1
    pairs = set_sizes(slices).astype(np.intp) * width + table
    counts = np.bincount(pairs, minlength=width * width).reshape(width, width)
    fractions: Floats = counts / counts.sum(axis=1, keepdims=True)
    return fractions


@lru_cache(maxsize=8192)
def _exhausted(slots: int, first: int, requests: int) -> float:
    """P(all ``first`` of ``slots`` are hit after so many requests); 0 if it is below 1e-12."""
    if requests < first:
        return 0.0
    found = 1 - float(uniform_exhaustion(slots, first).survival(requests))
    return found if found > 1e-12 else 0.0
