"""A run at three moments, each as an ensemble to be asked: before, after, and never.

    before    a run of all the data, trained in a scratch folder; nodes that still exist are copied
    after     what serves now: plan in force, slots hit, node files
    control   a run that never saw the deleted samples, trained in a scratch folder from nothing;
              the run itself once it is repaired

Invariant: nothing is written to the run, and nothing of a scratch run is told to its store, its
trackers or its log. The members of an ensemble come from node files that prove their keys.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from s3t.audit.claims.node_files import NodeFiles
from s3t.audit.evidence import Case
from s3t.audit.leakage.rows import Suspects
from s3t.config import Config, StoreConfig, dump_config
from s3t.config.operation import ReceiptsConfig, RepairConfig
from s3t.errors import InputError, IntegrityError
from s3t.ledger import Gone
from s3t.model.base import Base
from s3t.model.head import read_public_head
from s3t.plan import Plan
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.store import write_durably
from s3t.store.content import tensors_of
from s3t.training.prepare.adapt import public_head
from s3t.training.prepare.clusters import prototypes_of
from s3t.training.work.train import Report, train
from s3t.types import NodeKey, Slot

__all__ = ["Trained", "after", "before", "control", "dead_nodes", "reference", "repaired"]

_FEW = 4
"""Below one node in so many, starting workers takes longer than they save."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A scratch run: what it answers with, and what training it took."""

    ensemble: Ensemble
    report: Report


def after(case: Case) -> Ensemble | None:
    """What the run answers with now; None if it is exhausted and refuses to answer."""
    plan_view, hits = case.books.plan_view, case.books.hits
    return _serving(
        case, case.run, case.plan, {slot for slot, view in hits.items() if view > plan_view}
    )


def before(case: Case, folder: Path) -> Trained:
    """What the run would answer with if nobody had been deleted.

    Args:
        case: the run.
        folder: an empty one, for a run on all the data.
    """
    config = _apart(case, folder)
    write_durably(folder / "config.yaml", dump_config(config).encode())  # begins a run of ours
    taken = _take_over(case, folder / "nodes")
    few = taken * _FEW > (_FEW - 1) * len(case.plan.forest)
    return _trained(case, _with_one_worker(config) if few else config, None)


def control(case: Case, gone: Gone, folder: Path) -> Trained:
    """What a run answers with that has never seen the deleted samples.

    Args:
        case: the run.
        gone: its deleted samples.
        folder: an empty one.
    """
    return _trained(case, _apart(case, folder), gone)


def repaired(case: Case) -> bool:
    """Whether the plan in force is of the samples left, and all of it is there.

    Such a plan follows from them as that of a new run would (E3), so it has the same keys.
    """
    if case.books.plan is None or case.dead_slots or case.pending is not None:
        return False
    return all(case.files.sound(node.key) is not None for node in case.plan.forest)


def dead_nodes(case: Case) -> tuple[NodeKey, ...]:
    """Nodes that lie in the store, or as copies beside the run, and that no plan needs."""
    files, needed = case.files, {node.key for node in case.living} | case.wanted()
    return tuple(sorted((files.there | files.copies) - needed))


def reference(case: Case, suspects: Suspects) -> Ensemble | None:
    """The base with a head of public data, or with its own: it saw no private sample.

    None for a classifier whose run names no public rows to train a head on.
    """
    base, head = case.loaded.base, dict[str, Tensor]()
    if suspects.classes:
        if case.run.head_path.is_file():
            head = read_public_head(case.run.head_path, base.fingerprint)
        elif suspects.adapt is not None:
            head = public_head(case.config, base, suspects.adapt, suspects.classes)
        else:
            return None
    return _ensemble(case, base, [Member(0, base.depth, head, 1)])


def _trained(case: Case, config: Config, gone: Gone | None) -> Trained:
    report = train(config, without=gone)
    run = RunDir.existing(config.run_dir)
    plan = run.plan()
    if plan.base != case.loaded.base.fingerprint:
        raise IntegrityError(
            f"the base of {case.run.root} has fingerprint {case.loaded.base.fingerprint}, and "
            f"loaded again {plan.base}: restore model.base"
        )
    ensemble = _serving(case, run, plan, ())
    if ensemble is None:
        raise InputError(
            f"no private sample is left, and {case.run.root} has nothing to answer with then: a "
            "model that never saw the deleted ones would refuse to answer too"
        )
    return Trained(ensemble, report)


def _apart(case: Case, folder: Path) -> Config:
    """The config of a run of its own, on the base that the run has."""
    config, base = case.config, case.run.base_path
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


def _take_over(case: Case, folder: Path) -> int:
    """Copy the run's sound nodes, as plain bytes; returns how many."""
    taken, store = 0, case.run.store
    for key in sorted(case.files.there):
        if case.files.sound(key) is not None:
            write_durably(folder / store.path(key).name, store.content(key))
            taken += 1
    return taken


def _serving(case: Case, run: RunDir, plan: Plan, hits: Collection[Slot]) -> Ensemble | None:
    """The ensemble of what a run serves, as its schedule has it."""
    files = case.files if run is case.run else NodeFiles(run.store)
    facts = {node.key: files.sound(node.key) for node in plan.forest}
    scores = {key: fact.meta.score for key, fact in facts.items() if fact is not None}
    prefixes = Schedule(plan.forest, plan.shards, scores.keys(), scores, hits).prefixes
    config, base = case.config, case.loaded.base
    members = [_member(run, plan, node, config) for node in prefixes if node is not None]
    if not members and config.aggregation.on_exhausted == "base":
        head = read_public_head(case.run.head_path, plan.base) if plan.recipe["labels"] else {}
        members = [Member(0, base.depth, head, 1)]
    return _ensemble(case, base, members) if members else None


def _member(run: RunDir, plan: Plan, node: Node, config: Config) -> Member:
    """One shard's prefix, read from node files that were proved."""
    lineage = plan.forest.lineage(node.key)
    if config.stage.isolation == "snapshot":
        lineage = lineage[-1:]
    tensors: dict[str, Tensor] = {}
    for ancestor in lineage:  # later stages over earlier ones: the head is the node's own
        tensors.update(tensors_of(run.store.content(ancestor.key)))
    seen = sum(plan.sizes[node.shard][part] for part in node.prefix)
    return Member(node.shard, plan.recipe["blocks"][node.stage - 1][0], tensors, seen)


def _ensemble(case: Case, base: Base, members: list[Member]) -> Ensemble:
    """An ensemble as the run's config has it; its prototypes are those of any run on its base."""
    lora, how = case.config.lora, case.config.aggregation
    places = prototypes_of(case.run, case.config, base)
    return Ensemble(base, members, lora.scale, how.method, how.weights, None, places)
