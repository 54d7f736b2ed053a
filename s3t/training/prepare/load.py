"""From a prepared run to what training needs in memory, proved to be what was planned.

    RUN ─► plan ──────────────────────────────┐
    inputs ─► base ──── fingerprint ──────────┤
           ─► data ──── digests of slices ────┼─► Prepared
           ─► recipe ── digest ───────────────┘

Invariant: a run is opened only with the same config, data and base (E1). Samples that were deleted
may be gone from the data; any other difference is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from s3t.config import Config
from s3t.data import PrivateData
from s3t.data.partition import Partition, partition, tier_slices
from s3t.errors import InputError, S3TError
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.training.environment import environment_of
from s3t.training.node.process_group import DistributedGroup
from s3t.training.prepare.clusters import (
    find_clusters,
    known_clusters,
    prototypes_of,
    recipe_digest,
)
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.prepared import Prepared
from s3t.training.prepare.public_head import head_digest, starting_head
from s3t.training.prepare.recipe import recipe_of
from s3t.types import Sample, Slot, digest

__all__ = ["check_recipe", "load_prepared", "placed"]


def load_prepared(
    run: RunDir,
    device: torch.device,
    inputs: RunInputs | None = None,
    group: DistributedGroup | None = None,
) -> Prepared:
    """Load a prepared run, and prove that data and base are those of its plan.

    Args:
        run: the run.
        device: what it is trained on.
        inputs: what this process has read of the run already; it keeps what is loaded, and gives
            the same again.
        group: processes that all load it, and among which the base's layers are divided if the
            config says so.

    Raises:
        InputError: the private data or the base changed.
        S3TError: the run was planned by another version of the engine.
    """
    inputs = inputs or RunInputs.of(run)
    if group is not None:  # its layers may be divided: of no use outside the group
        prepared = _load(run, device, inputs, group)
        inputs.drop()
        return prepared
    if inputs.prepared is None:
        inputs.keep(_load(run, device, inputs, None))
    assert inputs.prepared is not None
    return inputs.prepared


def _load(
    run: RunDir, device: torch.device, inputs: RunInputs, group: DistributedGroup | None
) -> Prepared:
    config, plan = run.config(), run.trained_plan()
    inputs.leave_out(run.gone())
    inputs.prove_base(plan.base, run)
    shards_base = group is not None and config.stage.sharded
    base = inputs.base if shards_base else inputs.base.to(device)
    head = starting_head(run, config, base)
    prototypes, labels = prototypes_of(run, config, base), inputs.data.labels
    named = recipe_digest(prototypes)
    recipe = recipe_of(config, base, inputs.encoder, labels, head_digest(head), named)
    check_recipe(run, recipe, plan)
    environment = digest(environment_of(config, base, len(labels), device))
    hits = run.hits()
    whole = _partitioned(run, config, plan, inputs)
    _prove_slices(whole, plan, hits)
    if group is not None and shards_base:
        base.fully_shard(group.mesh)
    base.passed_together.clear()  # what this process has tried, others of its group have not
    private, validation = inputs.data.private, inputs.data.validation
    return Prepared(
        run=run,
        store=run.store,
        config=config,
        plan=plan,
        base=base,
        environment=environment,
        classes=len(labels),
        head=head,
        samples=private.samples,
        private=inputs.encoded(private.rows),
        validation=inputs.encoded(validation),
        scored_rows=inputs.scored_rows,
        members=_members(whole, private, hits),
    )


def _partitioned(run: RunDir, config: Config, plan: Plan, inputs: RunInputs) -> Partition:
    """The samples in their slices; the ledger, if it is here, proves that none is new."""
    if run.joined:  # the ledger is elsewhere, and the digests of the slices prove the samples
        find_clusters(inputs, prototypes_of(run, config, inputs.base), {})
        return placed(config, inputs.data.private.samples, plan.shards)
    with run.ledger() as ledger:
        known = known_clusters(config, ledger)
        find_clusters(inputs, prototypes_of(run, config, inputs.base), known)
        whole = placed(config, inputs.data.private.samples, plan.shards)
        ledger.register(whole.slots())
    return whole


def placed(config: Config, samples: Iterable[Sample], shards: int) -> Partition:
    """Samples in their slices of the plan's m shards; deletions may have left slices empty."""
    shape = config.partition
    return partition(
        samples, shards, shape.slices, shape.salt, tier_slices(shape), allow_empty=True
    )


def check_recipe(run: RunDir, recipe: Mapping[str, Any], plan: Plan) -> None:
    """Refuse to train nodes of a plan of another recipe.

    Raises:
        S3TError: what differs.
    """
    if digest(recipe) != digest(plan.recipe):
        changed = sorted(key for key in recipe if recipe[key] != plan.recipe.get(key))
        raise S3TError(
            f"{run.root} was planned with another {', '.join(changed)}: its nodes cannot be "
            "trained here. Go on with what it was planned with, or start a new run with output=DIR"
        )


def _prove_slices(whole: Partition, plan: Plan, hits: Collection[Slot]) -> None:
    """The slices that no deletion has hit must be those of the plan."""
    for shard, digests in enumerate(whole.digests()):
        for number, found in enumerate(digests):
            if (shard, number) not in hits and found != plan.digests[shard][number]:
                raise InputError(f"slice {number} of shard {shard} changed: restore the data")


def _members(
    whole: Partition, private: PrivateData, hits: Collection[Slot]
) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Numbers of each slice's rows, see ``Prepared``; none of a slice that was hit."""
    index = private.index
    return tuple(
        tuple(
            torch.tensor([index[sample.id] for sample in part], dtype=torch.int64)
            if (shard, number) not in hits
            else torch.zeros(0, dtype=torch.int64)
            for number, part in enumerate(parts)
        )
        for shard, parts in enumerate(whole.members)
    )
