"""Train again without the deleted samples, to compare bytes (E3): single nodes, or a whole run.

    data ─► rows of deleted samples left out ─► retrain: lineage of a node, in another store
                                            └─► from_scratch: a new run in another folder

A node belongs to the environment in which it was trained. Nodes of this
process's environment are trained again. An ancestor of theirs that was trained in another one is
read from the run's own file.

Invariant: nothing of the run is written to, and no row of a deleted sample is in memory when the
training starts; equal bytes therefore show that the surviving node has never depended on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s3t.config import Config, StoreConfig
from s3t.errors import DamagedNodeError, InputError
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.store import NodeStore
from s3t.system.pinned import call_pinned
from s3t.training.environment import environment_of
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import load_prepared
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from s3t.types import Digest, NodeKey, digest

__all__ = ["Compared", "compare", "from_scratch", "prepared_here", "retrain", "same_node"]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs, node by node.

    Attributes:
        same: number of nodes that both have with the same bytes.
        different: keys that both have with other bytes, sorted.
        only_here: keys that the run alone has.
        only_there: keys that the run from scratch alone has.
        environment: digest of the one in which the run from scratch was trained.
    """

    same: int
    different: tuple[NodeKey, ...]
    only_here: tuple[NodeKey, ...]
    only_there: tuple[NodeKey, ...]
    environment: Digest

    @property
    def equal(self) -> bool:
        """Whether they are equal node by node."""
        return not (self.different or self.only_here or self.only_there)


def retrain(run: RunDir, keys: Iterable[NodeKey], folder: Path) -> dict[NodeKey, bool]:
    """Train nodes, and what they grew on, again without the deleted samples.

    Args:
        run: a prepared run.
        keys: nodes that no deletion has hit.
        folder: an empty folder for the nodes trained again.

    Returns:
        by key, for those of the nodes and their lineages that are of this environment, whether the
        file in the run has the same bytes, and its evidence too.

    Raises:
        InputError: the data, apart from deleted samples, are not those of the run; or a plan with
            new samples is being trained.
    """
    if run.trained_plan().digest != run.plan().digest:
        raise InputError(
            f"{run.root} takes in new samples, so the data are not those of the nodes it serves: "
            "finish that with s3t add first"
        )
    return call_pinned(run.config().training.arithmetic, _retrain, run, [*keys], Path(folder))


def _retrain(run: RunDir, keys: Iterable[NodeKey], folder: Path) -> dict[NodeKey, bool]:
    device = torch.device("cpu")
    with one_thread(device):
        prepared = replace(load_prepared(run, device), store=NodeStore(folder))
        apart = {"training": prepared.config.training.model_copy(update={"trunk_cache": "memory"})}
        prepared = replace(prepared, config=prepared.config.model_copy(update=apart))
        state = WorkerState(prepared)
        forest, again = prepared.plan.forest, []
        wanted = {ancestor.key: ancestor for key in keys for ancestor in forest.lineage(key)}
        for node in sorted(wanted.values(), key=lambda node: (node.stage, node.key)):
            if node.environment == prepared.environment:
                state.train([node.key])
                again.append(node.key)
            else:
                prepared.store.write(*run.store.read(node.key))
    return {key: same_node(run.store, prepared.store, key) for key in again}


def from_scratch(run: RunDir, folder: Path, training: Mapping[str, Any] | None = None) -> Compared:
    """Train the run again, as if the deleted samples had never been, and compare all nodes.

    The base is made or adapted again too, and everything is planned again; only where the run was
    prepared in another environment, base, public head and prototypes, which are of public data,
    are taken from it.

    Args:
        run: a run; one that was hit by deletions and not repaired lacks nodes.
        folder: an empty folder for the other run.
        training: values of the section ``training`` that differ from the run's.

    Raises:
        InputError: the data, apart from deleted samples, cannot be read as the run's were.
    """
    config = run.config()
    config = config.model_copy(
        update={
            "output": str(folder),
            "store": StoreConfig(),
            "ledger": None,
            "training": config.training.model_copy(update=dict(training or {})),
        }
    )
    return call_pinned(config.training.arithmetic, _from_scratch, run, config)


def _from_scratch(run: RunDir, config: Config) -> Compared:
    public_of = None if prepared_here(run) else run
    if public_of is not None and run.base_path.is_dir():
        kept = {"base": str(run.base_path.absolute()), "adapt": None}
        config = config.model_copy(update={"model": config.model.model_copy(update=kept)})
    train(config, without=run.gone(), in_turn=True, public_of=public_of)
    return compare(run, RunDir.existing(config.run_dir))


def prepared_here(run: RunDir) -> bool:
    """Whether what a run has made of public data can be made again to the same bytes here."""
    config, plan, device = run.config(), run.plan(), torch.device("cpu")
    base = RunInputs.of(run, config).base
    with one_thread(device):
        here = environment_of(config, base, len(plan.recipe["labels"]), device)
    return digest(here) == plan.prepared


def compare(run: RunDir, other: RunDir) -> Compared:
    """Compare the nodes of two runs by their bytes."""
    here, there = run.store.keys(), other.store.keys()
    different = [key for key in here & there if not same_node(run.store, other.store, key)]
    return Compared(
        same=len(here & there) - len(different),
        different=tuple(sorted(different)),
        only_here=tuple(sorted(here - there)),
        only_there=tuple(sorted(there - here)),
        environment=next(iter(other.plan().environments)),
    )


def same_node(one: NodeStore, other: NodeStore, key: NodeKey) -> bool:
    """Whether two stores hold a node with the same bytes; not, if one of them is damaged.

    Its score and its evidence are no part of it where they are of other public rows. Nor is
    evidence that one of them lacks, or that was computed in another environment.
    """
    try:
        (meta, _), (twin, _) = one.read(key), other.read(key)
    except DamagedNodeError:
        return False
    if meta.rows != twin.rows:
        twin = replace(twin, score=meta.score, rows=meta.rows)
    return meta == twin and _same_evidence(one, other, key)


def _same_evidence(one: NodeStore, other: NodeStore, key: NodeKey) -> bool:
    try:
        said, twin = one.read_evidence(key), other.read_evidence(key)
    except DamagedNodeError:
        return True
    if (said.rows, said.environment) != (twin.rows, twin.environment):
        return True
    return said.digest == twin.digest
