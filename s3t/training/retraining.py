"""Train again without the deleted samples, to compare bytes (E3): single nodes, or a whole run.

    data ─► rows of deleted samples left out ─► retrain: lineage of a node, in another store
                                            └─► from_scratch: a new run in another folder

Invariant: nothing of the run is written to, and no row of a deleted sample is in memory when the
training starts; equal bytes therefore show that the surviving node has never depended on one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from s3t.config import StoreConfig
from s3t.errors import InputError
from s3t.model.arithmetic import one_thread
from s3t.run import RunDir
from s3t.store import NodeStore
from s3t.training.preparation import open_material
from s3t.training.walk import train
from s3t.training.workshop import Workshop
from s3t.types import NodeKey

__all__ = ["Compared", "compare", "from_scratch", "retrain"]


@dataclass(frozen=True, slots=True)
class Compared:
    """Two runs, node by node.

    Attributes:
        same: number of nodes that both have with the same bytes.
        different: keys that both have with other bytes, sorted.
        only_here: keys that the run alone has.
        only_there: keys that the run from scratch alone has.
    """

    same: int
    different: tuple[NodeKey, ...]
    only_here: tuple[NodeKey, ...]
    only_there: tuple[NodeKey, ...]

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
        by key, for the nodes and their lineages, whether the file in the run has the same bytes.

    Raises:
        InputError: the data, apart from deleted samples, are not those of the run; or a plan with
            new samples is being trained.
    """
    if run.trained_plan().digest != run.plan().digest:
        raise InputError(
            f"{run.root} takes in new samples, so the data are not those of the nodes it serves: "
            "finish that with s3t add first"
        )
    device = torch.device("cpu")
    with one_thread(device):
        material = replace(open_material(run, device), store=NodeStore(folder))
        apart = {"training": material.config.training.model_copy(update={"trunk_cache": "memory"})}
        material = replace(material, config=material.config.model_copy(update=apart))
        workshop = Workshop(material)
        forest = material.plan.forest
        wanted = {ancestor.key: ancestor for key in keys for ancestor in forest.lineage(key)}
        for node in sorted(wanted.values(), key=lambda node: (node.stage, node.key)):
            workshop.train([node.key])
    return {key: run.store.content(key) == material.store.content(key) for key in wanted}


def from_scratch(run: RunDir, folder: Path, training: Mapping[str, Any] | None = None) -> Compared:
    """Train the run anew, as if the deleted samples had never been, and compare all nodes.

    The base is made or adapted again too, and everything is planned anew.

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
    train(config, without=run.gone(), in_turn=True)
    return compare(run, RunDir.existing(folder))


def compare(run: RunDir, other: RunDir) -> Compared:
    """Compare the nodes of two runs by their bytes."""
    here, there = run.store.keys(), other.store.keys()
    different = [key for key in here & there if run.store.content(key) != other.store.content(key)]
    return Compared(
        same=len(here & there) - len(different),
        different=tuple(sorted(different)),
        only_here=tuple(sorted(here - there)),
        only_there=tuple(sorted(there - here)),
    )
