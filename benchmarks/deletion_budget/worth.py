"""What a prefix is worth: the measured curve, and the tree's plan that follows from it.

The utility of one shard's prefix, serving alone, on the public test data, against the samples that
it has seen: accuracy, or minus the loss per token of a language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.deletion_budget.along import Scorer
from s3t.types import NodeKey

__all__ = ["Prefix", "curve", "nothing_of", "planned_for", "prefixes_of", "write_curve"]

Curve = list[tuple[float, float]]
"""(samples, utility), by samples."""


@dataclass(frozen=True)
class Prefix:
    """One prefix, serving alone."""

    key: NodeKey
    stage: int
    samples: int
    utility: float


def prefixes_of(scorer: Scorer) -> list[Prefix]:
    """Every prefix of a run."""
    sizes = scorer.plan.sizes
    return [
        Prefix(
            key=node.key,
            stage=node.stage,
            samples=sum(sizes[node.shard][part] for part in node.prefix),
            utility=scorer.utility((node,)),
        )
        for node in scorer.plan.forest
    ]


def curve(prefixes: Iterable[Prefix], nothing: float) -> Curve:
    """Mean samples and mean utility of the prefixes of k slices, after ``nothing`` for no sample.

    A prefix counts once, in however many runs it occurs.
    """
    distinct = {prefix.key: prefix for prefix in prefixes}.values()
    rows = [(0.0, round(nothing, 6))]
    for stage in sorted({prefix.stage for prefix in distinct}):
        of = [prefix for prefix in distinct if prefix.stage == stage]
        samples = sum(prefix.samples for prefix in of) / len(of)
        utility = sum(prefix.utility for prefix in of) / len(of)
        rows.append((round(samples, 1), round(utility, 6)))
    return rows


def nothing_of(scorer: Scorer) -> float:
    """What a shard without a prefix is worth: guessing; the base's own loss for a language model.

    Not the base with a public head: it can be better than short prefixes, and a curve that starts
    above them says that they are worth nothing.
    """
    labels = scorer.plan.recipe["labels"]
    return 1 / len(labels) if labels else scorer.utility((None,) * scorer.plan.shards)


def planned_for(scorer: Scorer, requests: int) -> str:
    """Keys of ``sequences`` for a tree that is planned by what was measured.

    Worth is the curve's, and that of guessing for no slice; it must not fall. It comes from the
    test data: a handful of means that shape the tree, no more.

    Args:
        scorer: a run with prefixes of every length.
        requests: deletions that will come.
    """
    plan = scorer.plan
    means = [utility for _, utility in curve(prefixes_of(scorer), nothing_of(scorer))]
    rising = [max(means[: k + 1]) for k in range(len(means))]
    return f"utility: {rising}, horizon: {requests / (plan.shards * plan.slices)}"


def write_curve(path: Path, found: Sequence[tuple[float, float]]) -> None:
    """As ``s3t budget --curve`` reads it."""
    lines = ["samples,utility", *(f"{samples:g},{utility:g}" for samples, utility in found)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"curve {path}")
