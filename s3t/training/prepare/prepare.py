"""From a config to a prepared run, and from a prepared run to what a worker needs.

    draft ─► base (made, adapted or as loaded) ─► plan ─► RUN: config, ledger, base, plan
                                               public head, prototypes, if it has any

Invariants: a run is prepared only from a draft that was checked whole, and a prepared run is opened
again only with the same config, data and base (E1). What is missing is planned for the environment
in which it is trained, and what is there stays what it is. No row of a deleted sample gets
further than the reading of the data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from s3t.config import Config, anchored, dump_config
from s3t.data import PrivateData, load_all
from s3t.data.partition import Partition, partition, tier_slices
from s3t.data.rows import LabelledRows
from s3t.errors import InputError, S3TError
from s3t.ledger import Gone, Ledger
from s3t.model.base import Base
from s3t.model.head import read_public_head, write_public_head
from s3t.model.loading import LoadedModel, build_base, load_model, save_model
from s3t.model.prototypes import write_prototypes
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.store import NodeStore, tensors_digest, write_durably
from s3t.training.environment import environment_of
from s3t.training.node.process_group import Group
from s3t.training.node.rows import LabelledSet, encode_rows
from s3t.training.prepare.adapt import public_head
from s3t.training.prepare.checks import Draft, adapted, draft
from s3t.training.prepare.clusters import clustered, known_clusters, prototypes_of, recipe_digest
from s3t.training.prepare.recipe import recipe_of
from s3t.types import Digest, Sample, Slot, digest

__all__ = [
    "Material",
    "base_of",
    "carry_on",
    "check_recipe",
    "digest_of",
    "encode_rows",
    "open_material",
    "placed",
    "prepare",
    "public_head_of",
    "put_in_force",
    "starting_head",
]

_FREE = {
    *("training", "store", "aggregation", "output", "name"),
    *("repair", "receipts", "ledger", "serve"),
}
"""Sections that may differ when a run is gone on with: they shape no node."""


@dataclass(frozen=True)
class Material:
    """A prepared run with all that training needs in memory."""

    run: RunDir
    store: NodeStore
    config: Config
    plan: Plan
    base: Base
    environment: Digest
    """Of this process: nodes of it alone can be trained here."""
    classes: int
    head: Mapping[str, torch.Tensor]
    """The public head from which stage 1 starts; empty if it starts from a random one."""
    samples: tuple[Sample, ...]
    private: LabelledSet
    validation: LabelledSet
    scored_rows: Digest
    """Digest of the public rows that nodes are scored on."""
    members: tuple[tuple[torch.Tensor, ...], ...]
    """[shard][slice] → numbers of the slice's rows in ``private``, sorted."""


def prepare(
    config: Config,
    device: torch.device,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    without: Gone | None = None,
    public_of: RunDir | None = None,
) -> RunDir:
    """Make the run directory ready to train, or prove that it already is.

    Args:
        config: the resolved config; ``config.run_dir`` is where.
        device: what the run will be trained on.
        on_step: told of the steps of the base's adaptation.
        without: samples of the private data that the run must never see.
        public_of: a run whose public head and prototypes are taken; by default they are made.

    Raises:
        ConfigError, DataError, InputError: nothing was written.
        S3TError: the run was prepared by another engine.
    """
    run = RunDir(config.run_dir)
    if run.prepared:
        _check_same(run, anchored(config))
        run.prove_ledger(config.ledger)
        write_durably(run.config_path, dump_config(anchored(config)).encode())
        _settle(run)
        carry_on(run, device)
        return run
    # before the paths are made absolute: messages name them as they were given
    drafted = draft(config, without, device, on_step, public_of)
    config = anchored(config)
    _ = RunDir(config.run_dir, config.store).store  # a URL or key ring that cannot be used
    if run.foreign:
        raise InputError(
            f"{run.root} holds files that are no run: give an empty directory with output=DIR"
        )
    write_durably(run.config_path, dump_config(config).encode())
    base = _ready_base(run, config, drafted, on_step)
    if config.stage.parallel != "fsdp":  # which is for bases that no single device may hold
        base = base.to(device)
    if drafted.prototypes is not None:
        write_prototypes(run.prototypes_path, drafted.prototypes, base.fingerprint)
    if drafted.classes and _needs_head(config):
        _keep_head(run, config, base, drafted, public_of)
    head = starting_head(run, config, base)
    here = environment_of(config, base, drafted.classes, device)
    plan = drafted.plan(base, digest_of(head), here)
    with run.ledger(create=True) as ledger:
        _refuse_other(ledger, plan)
        ledger.register(drafted.partition.slots(), without=without)
        kept = public_head_of(run, base)
        ledger.plans.put_in_force(ledger.plans.propose(plan.digest, 0, digest_of(kept)))
    write_durably(run.plan_path, plan.to_json().encode())
    return run


def open_material(run: RunDir, device: torch.device, group: Group | None = None) -> Material:
    """Load a prepared run, and prove that data and base are those of its plan.

    Samples that were deleted may be gone from the data; any other difference is refused.

    Args:
        run: the run.
        device: what it is trained on.
        group: processes that all load it, and among which the base's layers are divided if the
            config says so.

    Raises:
        InputError: the private data or the base changed.
    """
    config, plan = run.config(), run.trained_plan()
    data = load_all(config)
    private = data.private.without(run.gone())
    loaded = load_model(config, run.base_path if run.base_path.is_dir() else None)
    spreads = group is not None and config.stage.parallel == "fsdp"
    base = build_base(config, loaded)
    base = base if spreads else base.to(device)
    if base.fingerprint != plan.base:
        raise InputError(
            f"model.base {config.model.base!r} is no longer the base that {run.root} was planned "
            "on: restore it, or start a new run with output=DIR"
        )
    head, encoder = starting_head(run, config, base), loaded.encoder
    prototypes, labels = prototypes_of(run, config, base), data.labels
    named = recipe_digest(prototypes)
    recipe = recipe_of(config, base, encoder, labels, digest_of(head), named)
    check_recipe(run, recipe, plan)
    environment = digest(environment_of(config, base, len(labels), device))
    hits = run.hits()
    if run.joined:  # the ledger is elsewhere, and the digests below prove the samples
        private = clustered(private, prototypes, base, encoder, {})
        whole = placed(config, private.samples, plan.shards)
    else:
        with run.ledger() as ledger:
            known = known_clusters(config, ledger)
            private = clustered(private, prototypes, base, encoder, known)
            whole = placed(config, private.samples, plan.shards)
            ledger.register(whole.slots())
    _prove_slices(whole, plan, hits)
    if group is not None and spreads:
        base.fully_shard(group.mesh)
    return Material(
        run=run,
        store=run.store,
        config=config,
        plan=plan,
        base=base,
        environment=environment,
        classes=len(data.labels),
        head=head,
        samples=private.samples,
        private=encode_rows(loaded.encoder, private.rows),
        validation=encode_rows(loaded.encoder, data.validation),
        scored_rows=data.validation.digest(),
        members=_members(whole, private, hits),
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
    """Numbers of each slice's rows, see ``Material``; none of a slice that was hit."""
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


def placed(config: Config, samples: Iterable[Sample], shards: int) -> Partition:
    """Samples in their places in the plan's m shards; deletions may have left slices empty."""
    shape = config.partition
    return partition(
        samples, shards, shape.slices, shape.salt, tier_slices(shape), allow_empty=True
    )


def _refuse_other(ledger: Ledger, plan: Plan) -> None:
    """A database may hold a ledger already, begun here before a kill, or that of another run."""
    made = ledger.plans.all()
    if ledger.shared and made and made[-1].digest != plan.digest:
        raise InputError(
            f"{ledger.name} holds the ledger of another run: name an empty database with "
            "ledger=URL, or take part in that run with s3t attach"
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


def base_of(run: RunDir, config: Config) -> Base:
    """The base of a prepared run: the one that it keeps, else the one that its config names."""
    return build_base(config, load_model(config, run.base_path if run.base_path.is_dir() else None))


def carry_on(run: RunDir, device: torch.device) -> None:
    """Plan what is missing for the environment in which it will be trained: this one.

    What is there stays what it is, so nothing is trained again, and nothing that serves is lost.
    Needs the training lock. Doing it again changes nothing.
    """
    now, there, hits = run.trained_plan(), run.store.keys(), run.hits()
    missing = [node for node in now.forest if node.key not in there and not node.is_hit(hits)]
    if not missing:
        return
    config = run.config()
    base = base_of(run, config)
    here = environment_of(config, base, len(now.recipe["labels"]), device)
    plan = now.in_environment(here, there)
    if plan.digest == now.digest:
        return
    with run.ledger() as ledger:
        newest = ledger.plans.newest()
        run.plans.write(plan)
        ledger.plans.propose(plan.digest, newest.plan_view, digest_of(public_head_of(run, base)))
        if newest.generation == ledger.plans.in_force().generation:
            put_in_force(run, ledger, plan)


def put_in_force(run: RunDir, ledger: Ledger, plan: Plan) -> None:
    """Serve the newest plan from now on, and give its file its place."""
    ledger.plans.put_in_force(ledger.plans.newest().generation)
    run.plans.settle(plan, plan.digest)


def _settle(run: RunDir) -> None:
    """Finish what a kill may have left undone between ledger and plan file."""
    plan = run.plan()
    with run.ledger() as ledger:
        run.plans.settle(plan, ledger.plans.newest().plan)
        if not ledger.plans.all():  # of an older s3t
            ledger.plans.put_in_force(ledger.plans.propose(plan.digest, 0))


def _adapt_rows(drafted: Draft) -> LabelledRows:
    rows = drafted.data.adapt
    assert rows is not None  # the config was checked for it
    return rows


def _ready_base(
    run: RunDir, config: Config, drafted: Draft, on_step: Callable[[int, int], None]
) -> Base:
    """The draft's base; or one adapted to public data, which the run keeps."""
    adapt = config.model.adapt
    if adapt is None and not config.model.base.startswith("make:"):
        return drafted.base
    if adapt is None:
        loaded = load_model(config)  # whole again: the draft's has been taken apart
    elif drafted.prototypes is None:
        loaded = adapted(config, _adapt_rows(drafted), drafted.classes, on_step)
    else:  # the clusters are of a base that the draft has adapted
        loaded = load_model(config)
        loaded.model.load_state_dict(drafted.base.weights.tensors)
    _keep_base(run, loaded)
    return build_base(config, loaded)


def _needs_head(config: Config) -> bool:
    return config.stage.head == "public" or config.aggregation.on_exhausted == "base"


def _keep_base(run: RunDir, loaded: LoadedModel) -> None:
    temporary = run.root / f".base.{os.getpid()}.tmp"
    save_model(loaded, temporary)
    shutil.rmtree(run.base_path, ignore_errors=True)
    temporary.rename(run.base_path)


def _keep_head(
    run: RunDir, config: Config, base: Base, drafted: Draft, public_of: RunDir | None
) -> None:
    if public_of is not None:
        head = read_public_head(public_of.head_path, base.fingerprint)
        write_public_head(run.head_path, head, base.fingerprint)
        return
    public = encode_rows(drafted.encoder, _adapt_rows(drafted))
    head = public_head(config, base, public, drafted.classes)
    write_public_head(run.head_path, head, base.fingerprint)


def starting_head(run: RunDir, config: Config, base: Base) -> dict[str, torch.Tensor]:
    """The public head from which stage 1 starts; none if it starts from a random one."""
    return public_head_of(run, base) if config.stage.head == "public" else {}


def public_head_of(run: RunDir, base: Base) -> dict[str, torch.Tensor]:
    """The public head, which starts stage 1 or answers when all is exhausted; empty without one."""
    return read_public_head(run.head_path, base.fingerprint) if run.head_path.is_file() else {}


def digest_of(head: Mapping[str, torch.Tensor]) -> Digest | None:
    """Digest of a starting head, None for none."""
    return tensors_digest(head) if head else None


def _check_same(run: RunDir, config: Config) -> None:
    """A prepared run is gone on with only under the config that shaped its nodes."""
    before = anchored(run.config()).model_dump(mode="json", exclude=_FREE)
    now = config.model_dump(mode="json", exclude=_FREE)
    changed = _differences("", before, now)
    if config.task != "causal-lm" and _needs_head(config) and not run.head_path.is_file():
        changed.append("it was trained without a public head, which this config needs")
    if changed:
        raise InputError(
            f"{run.root} holds a run of another config ({'; '.join(changed)}): "
            "go back to it, or give another directory with output=DIR"
        )


def _differences(at: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            for line in _differences(f"{at}.{key}".lstrip("."), before.get(key), now.get(key))
        ]
    return [] if before == now else [f"{at} was {before!r}, is {now!r}"]
