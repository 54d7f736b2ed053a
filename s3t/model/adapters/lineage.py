"""What the nodes of a lineage serve together, by ``stage.isolation``.

    nested, snapshot    the last node alone: it went on from its parent's adapter
    layers, prompts     all nodes side by side, each its own block or prompt
    residual            all nodes added up: their adapters of a layer as one of k times the rank
    head                the last node's, always

Invariant: training, serving, export and audit take a lineage's tensors from here, so what a stage
starts from is what the prefix before it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from s3t.plan.blocks import serving_nodes

__all__ = ["composed"]

_Node = TypeVar("_Node")


def composed(
    isolation: str, lineage: Sequence[_Node], read: Callable[[_Node], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors that a prefix serves.

    Args:
        isolation: a value of ``stage.isolation``.
        lineage: the nodes of the prefix, by stage; may be empty.
        read: gives a node's tensors; asked for those that serve alone (``serving_nodes``).

    Returns:
        adapters A [r, inputs] and B [outputs, r] by name, of k residual nodes those of rank k · r,
        with zeros where a node does not adapt a layer; and the last node's head.
    """
    nodes = [read(node) for node in serving_nodes(isolation, lineage)]
    found: dict[str, Tensor] = {}
    for tensors in nodes:
        found.update(tensors)
    if isolation == "residual" and len(nodes) > 1:
        for name, one in found.items():
            ranks = 0 if name.endswith("lora_A") else 1 if name.endswith("lora_B") else None
            if ranks is not None:
                none = torch.zeros_like(one)
                found[name] = torch.cat([held.get(name, none) for held in nodes], dim=ranks)
    return found
