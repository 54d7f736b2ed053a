"""What a config would train, told before anything is: ``s3t plan``.

    checks ──► plan: nodes, cost, tree ──┬─► notes on tiers, clusters and data
                                         └─► what serves along a horizon of deletions

Invariant: nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from s3t.config import Config
from s3t.data.partition import slice_rates, tier_slices
from s3t.model.inputs.encoders import TextEncoder
from s3t.plan import Plan, cyclic, prefixes
from s3t.plan.blocks import stage_time
from s3t.system.pinned import arithmetic_here
from s3t.training.prepare.checks import CheckedRun, check_run
from s3t.training.prepare.data_notes import data_notes
from s3t.training.prepare.recipe import blocks_of

__all__ = ["preview"]

ROWS = 7
"""Equal steps of a horizon."""


def preview(config: Config, horizon: int | None = None) -> dict[str, Any]:
    """What a config would train, as JSON values; writes nothing, and trains no node.

    The plan's ``summary``, its ``cost`` where one LoRA on all samples takes 1, the tree of one
    shard as lines of text, and notes on tiers, clusters and data. Clusters are of the base's
    features: if the config adapts it, that is done, in memory.

    Args:
        config: the config.
        horizon: R, deletions along which to say what serves, under ``horizon``.

    Raises:
        ConfigError, DataError, InputError: with all problems found.
    """
    checked = check_run(config)
    plan = checked.plan(checked.base, None)
    data, notes = checked.data, [*checked.notes, *_tier_notes(checked), *_cluster_notes(checked)]
    notes += data_notes(config, data)
    base = checked.base
    tokens = base.tokens() + config.prompt_tokens
    positions = config.stage.batch_size // config.stage.processes * tokens
    if arithmetic_here() is not None and not base.rounds_alike(positions):  # as training is
        notes.append(
            f"nodes are trained one by one: {config.model.base} is not of float32, widths of its "
            f"layers fill no vectors at {positions} positions of a batch, or MKL is not strict on "
            "this machine; slower, and the same bytes"
        )
    if isinstance(checked.encoder, TextEncoder):
        cut = checked.encoder.encode(data.private.rows.inputs).truncated
        if cut:
            notes.append(f"{cut} texts are cut to {config.data.max_length} tokens")
    tree = [
        "  " + "   " * (node.stage - 1) + f"{node.last}  ({node.samples} samples)"
        for node in plan.forest.of_shard(0)
    ]
    found = plan.summary() | {"cost": _cost(checked, plan), "tree": tree, "notes": notes}
    return found if horizon is None else found | {"horizon": _along(checked, plan, horizon)}


def _cost(checked: CheckedRun, plan: Plan) -> float:
    """Training cost, where one LoRA on all layers and samples, in as many epochs (the most that a
    stage has), takes 1."""
    isolation, depth = checked.config.stage.isolation, checked.base.depth
    time = stage_time(isolation, blocks_of(checked.config, depth), depth)
    samples = sum(map(sum, plan.sizes))
    passes = sum(node.passes * time[node.stage - 1] for node in plan.forest)
    return passes / (samples * max(plan.epochs))


def _along(checked: CheckedRun, plan: Plan, horizon: int) -> dict[str, Any]:
    """What the plan serves along a horizon of deletions, and the paper's cyclic plan beside it."""
    from s3t.plan.budget.horizon import along

    shape, sizes = checked.config.partition, checked.partition.sizes()
    rates = slice_rates(shape) or (1.0,) * shape.slices
    rotations = cyclic(shape.slices, shape.slices)
    passes = sum(
        plan.epochs[len(prefix) - 1] * sum(row[c] for c in prefix[0 if plan.cumulative else -1 :])
        for row in sizes
        for prefix in prefixes(rotations)
    )
    moments = sorted({round(horizon * part / ROWS) for part in range(ROWS + 1)})
    ours, theirs = (
        along(plan.shards, rates, each, moments) for each in (checked.sequences, rotations)
    )
    return {
        "requests": horizon,
        "trials": ours.trials,
        "sample_passes": sum(node.passes for node in plan.forest.nodes),
        "cyclic_sample_passes": passes,
        "moments": [
            asdict(one) | {"cyclic": asdict(other)}
            for one, other in zip(ours.moments, theirs.moments, strict=True)
        ],
    }


def _tier_notes(checked: CheckedRun) -> Iterator[str]:
    """One sentence per risk tier, none without tiers: its values, slices, samples and rate."""
    shape, sizes = checked.config.partition, checked.partition.sizes()
    if shape.risk is None:
        return
    what = "age in days" if shape.risk.as_of else repr(shape.risk.column)
    bounds = [f"{bound:.12g}" for bound in checked.data.thresholds]
    values = [
        f"below {bounds[0]}",
        *(f"from {one} to below {next_}" for one, next_ in pairwise(bounds)),
        f"from {bounds[-1]}",
    ]
    rates = shape.risk.rates or (1.0,) * shape.risk.tiers
    first = 0
    for tier, count in enumerate(tier_slices(shape)):
        samples = sum(sum(row[first : first + count]) for row in sizes)
        slices = f"slices {first} to {first + count - 1}" if count > 1 else f"slice {first}"
        yield (
            f"risk tier {tier} ({what} {values[tier]}): {slices} of each shard, "
            f"{samples} samples, rate {rates[tier]:g}"
        )
        first += count


def _cluster_notes(checked: CheckedRun) -> Iterator[str]:
    """One sentence per cluster, none without: its samples, and the public rows that made it."""
    prototypes, sizes = checked.prototypes, checked.partition.sizes()
    if prototypes is None:
        return
    asked = checked.config.partition.shards
    if len(prototypes) < asked:
        yield f"{len(prototypes)} clusters: others of the {asked} were nearer to each other"
    for shard, (rows, held) in enumerate(zip(prototypes.rows, sizes, strict=True)):
        yield f"cluster {shard}: {sum(held)} samples, nearest to what {rows} public rows are like"
