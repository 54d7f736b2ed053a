"""The models that are attacked: a run before and after its deletions, and one that never saw them.

    before    trained on all the data in a scratch folder; nodes that still exist are copied there
    after     what the run serves now: plan in force, slots hit, node files
    control   trained in a scratch folder without the deleted samples, from nothing; the run itself
              once it is repaired

Invariant: nothing is written to the run, its store, its trackers or its log. The members of an
ensemble come from node files that prove their keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.node_files import NodeFiles
from s3t.audit.leakage.rows import SuspectedRows
from s3t.config import Config, StoreConfig, dump_config
from s3t.config.operation import ReceiptsConfig, RepairConfig
from s3t.errors import InputError, IntegrityError
from s3t.ledger import Gone
from s3t.model.adapters.lineage import composed
from s3t.model.base import Base
from s3t.model.head import read_public_head
from s3t.plan import Plan
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.serving.ensemble.members import base_member
from s3t.serving.weights import Members, NoWeights, fitted, keys_of, public_terms, said_of
from s3t.store import write_durably
from s3t.store.content import tensors_of
from s3t.training.prepare.adapt import public_head
from s3t.training.prepare.clusters import prototypes_of
from s3t.training.work.train import Report, train
from s3t.types import NodeKey, Slot

__all__ = ["ScratchRun", "after", "before", "control", "dead_nodes", "reference", "repaired"]

_FEW = 4
"""If fewer than one node in so many is missing, one worker is faster than starting several."""


@dataclass(frozen=True, eq=False)
class ScratchRun:
    """A run trained in a scratch folder: its ensemble, and the report of its training."""

    ensemble: Ensemble
    report: Report


def after(audited: AuditedRun) -> Ensemble | None:
    """The ensemble that the run serves now; None if it is exhausted and refuses to answer."""
    plan_view, hits = audited.ledger.plan_view, audited.ledger.hits
    return _serving(
        audited,
        audited.run,
        audited.plan,
        {slot for slot, view in hits.items() if view > plan_view},
    )


def before(audited: AuditedRun, folder: Path) -> ScratchRun:
    """The ensemble that the run would serve if nothing had been deleted, trained again for it.

    Args:
        audited: the run.
        folder: an empty folder, in which a run on all the data is trained.
    """
    config = _apart(audited, folder)
    write_durably(folder / "config.yaml", dump_config(config).encode())  # begins a run of ours
    taken = _take_over(audited, folder / "nodes")
    few = taken * _FEW > (_FEW - 1) * len(audited.plan.forest)
    return _trained(audited, _with_one_worker(config) if few else config, None)


def control(audited: AuditedRun, gone: Gone, folder: Path) -> ScratchRun:
    """The ensemble of a run that has never seen the deleted samples."""
    return _trained(audited, _apart(audited, folder), gone)


def repaired(audited: AuditedRun) -> bool:
    """Whether the plan in force covers exactly the samples left, and all its nodes exist.

    Such a plan has the same keys as the plan of a new run on those samples (E3).
    """
    if audited.ledger.plan is None or audited.dead_slots or audited.pending is not None:
        return False
    return all(audited.files.sound(node.key) is not None for node in audited.plan.forest)


def dead_nodes(audited: AuditedRun) -> tuple[NodeKey, ...]:
    """Keys of the nodes in the store, or copied beside the run, that no plan needs, sorted."""
    files, needed = audited.files, audited.needed
    return tuple(sorted((files.there | files.copies) - needed))


def reference(audited: AuditedRun, suspected: SuspectedRows) -> Ensemble | None:
    """A model that saw no private sample: the base with its own head, or one of public data.

    None for a classifier whose run has no public rows to train a head on.
    """
    base, head = audited.loaded.base, dict[str, Tensor]()
    if suspected.classes:
        if audited.run.head_path.is_file():
            head = read_public_head(audited.run.head_path, base.fingerprint)
        elif suspected.adapt is not None:
            head = public_head(audited.config, base, suspected.adapt, suspected.classes)
        else:
            return None
    return _ensemble(audited, base, [base_member(base.depth, head)])


def _trained(audited: AuditedRun, config: Config, gone: Gone | None) -> ScratchRun:
    report = train(config, without=gone)
    run = RunDir.existing(config.run_dir)
    plan = run.plan()
    if plan.base != audited.loaded.base.fingerprint:
        raise IntegrityError(
            f"the base of {audited.run.root} has fingerprint "
            f"{audited.loaded.base.fingerprint}, and loaded again {plan.base}: restore model.base"
        )
    ensemble = _serving(audited, run, plan, ())
    if ensemble is None:
        raise InputError(
            f"no private sample is left, and {audited.run.root} has nothing to answer with then: "
            "a model that never saw the deleted ones would refuse to answer too"
        )
    return ScratchRun(ensemble, report)


def _apart(audited: AuditedRun, folder: Path) -> Config:
    """The config of a separate run in ``folder``, on the base that the run has."""
    config, base = audited.config, audited.run.base_path
    model = config.model
    if base.is_dir():  # made or adapted here; else it is loaded as it was
        model = model.model_copy(update={"base": str(base), "revision": None, "adapt": None})
    return config.model_copy(
        update={
            "output": str(folder),
            "model": model,
            "store": StoreConfig(),
            "ledger": None,
            "receipts": ReceiptsConfig(),
            "repair": RepairConfig(),
            "training": config.training.model_copy(update={"trackers": ()}),
        }
    )


def _with_one_worker(config: Config) -> Config:
    training = config.training.model_copy(update={"workers": 1})
    return config.model_copy(update={"training": training})


def _take_over(audited: AuditedRun, folder: Path) -> int:
    """Copy the run's sound nodes into a folder, unsealed; returns how many."""
    taken, store = 0, audited.run.store
    for key in sorted(audited.files.there):
        if audited.files.sound(key) is not None:
            write_durably(folder / store.path(key).name, store.content(key))
            taken += 1
    return taken


def _serving(
    audited: AuditedRun, run: RunDir, plan: Plan, hits: Collection[Slot]
) -> Ensemble | None:
    """The ensemble of the prefixes that a run serves with these slots hit."""
    files = audited.files if run is audited.run else NodeFiles(run.store)
    facts = {node.key: files.sound(node.key) for node in plan.forest}
    scores = {key: fact.meta.score for key, fact in facts.items() if fact is not None}
    prefixes = Schedule(plan.forest, plan.shards, scores.keys(), scores, hits).prefixes
    config, base = audited.config, audited.loaded.base
    members = [_member(run, plan, node, config) for node in prefixes if node is not None]
    if members:
        return _weighted(audited, run, keys_of(prefixes), _ensemble(audited, base, members))
    if not config.aggregation.falls_back:
        return None
    return _ensemble(audited, base, [_alone(audited)])


def _weighted(
    audited: AuditedRun, run: RunDir, keys: Sequence[NodeKey], uniform: Ensemble
) -> Ensemble:
    """With the weights that are fitted for such nodes; uniform where they cannot be, as it is
    served then."""
    config, labels = audited.config, audited.plan.recipe["labels"]
    if config.aggregation.weights != "public":
        return uniform
    based = not labels or audited.run.head_path.is_file()
    alone = _alone(audited) if based else None
    try:
        digest, rows = public_terms(config, labels, audited.loaded.encoder)
        members = Members([run.store.evidence(key, digest) for key in keys], uniform, alone)
        base = None
        if alone is not None:
            base = said_of(_ensemble(audited, audited.loaded.base, [alone]), rows)
        return uniform.weighted(fitted(config.aggregation.method, members, base, rows), alone)
    except NoWeights:
        return uniform


def _alone(audited: AuditedRun) -> Member:
    """The base as a member, with the run's public head if it classifies."""
    base, classes = audited.loaded.base, audited.plan.recipe["labels"]
    head = read_public_head(audited.run.head_path, base.fingerprint) if classes else {}
    return base_member(base.depth, head)


def _member(run: RunDir, plan: Plan, node: Node, config: Config) -> Member:
    """One shard's prefix, read from node files that prove their keys."""
    isolation, lineage = config.stage.isolation, plan.forest.lineage(node.key)
    tensors = composed(isolation, lineage, lambda one: tensors_of(run.store.content(one.key)))
    seen = sum(plan.sizes[node.shard][part] for part in node.prefix)
    return Member(node.shard, plan.recipe["blocks"][node.stage - 1][0], tensors, seen)


def _ensemble(audited: AuditedRun, base: Base, members: list[Member]) -> Ensemble:
    """An ensemble of members, aggregated as the run's config says."""
    lora, how = audited.config.lora, audited.config.aggregation
    places = prototypes_of(audited.run, audited.config, base)
    return Ensemble(base, members, lora.scale, how.method, how.weights, None, places)
