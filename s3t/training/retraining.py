"""Train a node again, from data that does not hold the deleted samples, to compare bytes (E3).

    data ─► rows of deleted samples taken out ─► lineage of the node, trained anew in another store

Invariant: nothing of the run is written to, and no row of a deleted sample is in memory when the
training starts; equal bytes therefore show that the surviving node has never depended on one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from s3t.run import RunDir
from s3t.store import NodeStore
from s3t.training.material import LabelledSet
from s3t.training.preparation import Material, open_material
from s3t.training.workshop import Workshop, one_thread
from s3t.types import NodeKey

__all__ = ["retrain"]


def retrain(run: RunDir, keys: Iterable[NodeKey], folder: Path) -> dict[NodeKey, bool]:
    """Train nodes, and what they grew on, again without the deleted samples.

    Args:
        run: a prepared run.
        keys: nodes that no deletion has hit.
        folder: an empty folder for the nodes trained again.

    Returns:
        by key, for the nodes and their lineages, whether the file in the run has the same bytes.

    Raises:
        InputError: the data, apart from deleted samples, are not those of the run.
    """
    device = torch.device("cpu")
    with one_thread(device):
        material = replace(_without_deleted(open_material(run, device)), store=NodeStore(folder))
        apart = {"training": material.config.training.model_copy(update={"trunk_cache": "memory"})}
        material = replace(material, config=material.config.model_copy(update=apart))
        workshop = Workshop(material)
        forest = material.plan.forest
        wanted = {ancestor.key: ancestor for key in keys for ancestor in forest.lineage(key)}
        for node in sorted(wanted.values(), key=lambda node: (node.stage, node.key)):
            workshop.train([node.key])
    return {key: run.store.content(key) == material.store.content(key) for key in wanted}


def _without_deleted(material: Material) -> Material:
    """The same material without a trace of the deleted samples' rows."""
    with material.run.ledger() as ledger:
        deleted = {entry.sample_id for entry in ledger.samples(deleted=True)}
    kept = [at for at, sample in enumerate(material.samples) if sample.id not in deleted]
    place = {old: new for new, old in enumerate(kept)}
    index = torch.tensor(kept, dtype=torch.int64)
    labels = material.private.labels
    return replace(
        material,
        samples=tuple(material.samples[at] for at in kept),
        private=LabelledSet(
            material.private.rows.rows(index), None if labels is None else labels[index]
        ),
        members=tuple(
            tuple(
                torch.tensor([place[old] for old in part.tolist()], dtype=torch.int64)
                for part in shard
            )
            for shard in material.members
        ),
    )
