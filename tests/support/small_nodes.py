"""Small nodes for tests of the store, and the places where they may lie."""

from __future__ import annotations

from pathlib import Path

import torch

from s3t.plan.lineage import node_key
from s3t.store import Depot, FileKeyRing, NodeMeta, NodeStore, Sealer
from s3t.types import NodeKey, digest

BASE, RECIPE, ENVIRONMENT = digest("base"), digest("recipe"), digest("environment")
TENSORS = {
    "layers.001.q.lora_A": torch.arange(12.0).reshape(3, 4),
    "head.weight": torch.tensor([[0.5, -0.0], [float(2**-140), 1.0]]),
    "head.bias": torch.tensor([1.0, 2.0]),
}
SAID = torch.tensor([[-0.25, -1.5], [-3.0, -0.05]])


def meta_of(name: str, parent: NodeKey | None = None) -> NodeMeta:
    slices = (digest(name),)
    key = node_key(BASE, RECIPE, parent, slices, ENVIRONMENT)
    rest = 1, (2,), 0.75, digest("validation")
    return NodeMeta(key, parent, BASE, RECIPE, ENVIRONMENT, slices, *rest)


META = meta_of("one")
OTHER = meta_of("two")


def sealed_store(root: Path, ring: Path, depot: Depot | None = None) -> NodeStore:
    return NodeStore(root, depot, Sealer(FileKeyRing(ring), str(ring)))
