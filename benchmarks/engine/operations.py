"""Floating-point operations of matrix products: how many a plan needs at least.

    node = epochs × samples × (layers from the block's lowest to the top, forward and backward,
                               + LoRA of the block, products and gradients + head)
    plan = sum over nodes + sum over cuts: distinct samples × layers below the cut, forward

Counted is what no way to train the plan could leave out: no weight gradients of frozen maps, no
gradient into the input of the block's lowest layer, the adapters above the block merged into the
weights, of the last layer one position where the loss reads one, half of the attention where it is
causal, each sample once and no padding row. A multiplication and an addition are two operations.
Everything that is no matrix product (softmax, norms, activations, optimizer, embeddings) is left
out, and so is scoring a node on the validation set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from s3t.plan.trie import Node

__all__ = [
    "LayerShape",
    "Linear",
    "Work",
    "layer_operations",
    "plan_operations",
    "scoring_operations",
]

_ROLES = {
    "query": ("q_proj", "query", "q_lin"),
    "key": ("k_proj", "key", "k_lin"),
    "value": ("v_proj", "value", "v_lin"),
}


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of a layer.

    Attributes:
        role: ``query``, ``key``, ``value``, or ``other`` for what comes after the attention.
        inputs, outputs: widths.
        adapted: whether it carries LoRA when its layer is trained.
    """

    role: str
    inputs: int
    outputs: int
    adapted: bool


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A transformer layer, as its matrix products see it."""

    linears: tuple[Linear, ...]
    rank: int
    causal: bool

    @classmethod
    def of(cls, layer: nn.Module, adapted: Collection[str], rank: int, causal: bool) -> LayerShape:
        """The shape of a layer as transformers builds it.

        Args:
            layer: one of the layers, which are all alike.
            adapted: paths in it of the maps that carry LoRA.
            rank: of LoRA.
            causal: whether a token attends only to those before it.

        Raises:
            ValueError: neither queries nor values are adapted.
        """
        found = []
        for path, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                ends = module.weight.shape
                inputs, outputs = ends if isinstance(module, Conv1D) else reversed(ends)
                found.append(Linear(_role(path), int(inputs), int(outputs), path in adapted))
        if not any(one.adapted for one in found if one.role in ("query", "value")):
            raise ValueError("operations are counted only if queries or values are adapted")
        return cls(tuple(found), rank, causal)

    def width(self, role: str) -> int:
        """Outputs of the query, key or value map."""
        return next(one.outputs for one in self.linears if one.role == role)

    def adapts(self, role: str) -> bool:
        """Whether the map of that role carries LoRA."""
        return any(one.adapted for one in self.linears if one.role == role)


@dataclass(frozen=True, slots=True)
class Work:
    """What one sample costs.

    Attributes:
        shape: of every layer.
        blocks: layers (lo, hi) of stage 1, 2, … L.
        depth: number of layers N.
        tokens: T.
        one_position: whether the loss reads one position of the last layer.
        head: inputs × outputs of the head.
        frozen_head: whether it is the base's own, at all positions but the last.
    """

    shape: LayerShape
    blocks: Sequence[tuple[int, int]]
    depth: int
    tokens: int
    one_position: bool
    head: int
    frozen_head: bool

    def trained(self, stage: int) -> int:
        """Operations of one sample in one epoch of a stage, from the block upwards."""
        lo, hi = self.blocks[stage - 1]
        products = 4 * (self.tokens - 1) if self.frozen_head else 6  # the weight's gradient too
        return products * self.head + sum(
            self._forward(layer, trained=layer < hi)
            + self._backward(layer, trained=layer < hi, lowest=layer == lo)
            for layer in range(lo, self.depth)
        )

    def trunk(self, stage: int) -> int:
        """Operations of one sample through the frozen layers below a stage's block."""
        return sum(
            self._forward(layer, trained=False) for layer in range(self.blocks[stage - 1][0])
        )

    def scored(self, stage: int) -> int:
        """Operations of one validation sample that a node of a stage is scored on."""
        products = 2 * (self.tokens - 1) if self.frozen_head else 2
        layers = range(self.blocks[stage - 1][0], self.depth)
        return products * self.head + sum(self._forward(layer, trained=False) for layer in layers)

    def _positions(self, layer: int) -> int:
        return 1 if self.one_position and layer == self.depth - 1 else self.tokens

    def _forward(self, layer: int, *, trained: bool) -> int:
        return layer_operations(self.shape, self.tokens, self._positions(layer), trained)[0]

    def _backward(self, layer: int, *, trained: bool, lowest: bool) -> int:
        positions = self._positions(layer)
        return layer_operations(self.shape, self.tokens, positions, trained, lowest)[1]


def layer_operations(
    shape: LayerShape, tokens: int, positions: int, trained: bool, lowest: bool = False
) -> tuple[int, int]:
    """Operations of one sample in one layer, forward and backward.

    With T tokens, P positions that are read (P = T but in the last layer), rank r, and the widths
    of each map (in → out); rows is T for keys and values and P for every other map; pairs is P · T,
    or T (T + 1) / 2 where attention is causal:

        forward   Σ maps 2 · rows · in · out  +  4 · pairs · width of the queries
                  + Σ adapted 2 · rows · r · (in + out)
        backward  Σ maps 2 · rows · in · out, for queries, keys and values not in the lowest layer
                  + 2 · pairs · width for each needed gradient: of the attention's weights, of the
                    queries, of the keys, of the values
                  + Σ adapted 2 · rows · r · (2 out + in)  and, where the input has a gradient,
                    2 · rows · r · in

    Args:
        shape: the layer.
        tokens, positions: T and P.
        trained: whether the layer's adapters are trained; frozen ones are merged and cost nothing.
        lowest: whether nothing below the layer needs a gradient.
    """
    width = shape.width("query")
    pairs = (
        tokens * (tokens + 1) // 2 if shape.causal and positions == tokens else (positions * tokens)
    )
    forward, backward = 4 * pairs * width, 0
    for one in shape.linears:
        after = one.role == "other"
        rows = positions if one.role in ("other", "query") else tokens
        product = 2 * rows * one.inputs * one.outputs
        forward += product
        backward += product if after or not lowest else 0
        if trained and one.adapted:
            low_in, low_out = (2 * rows * shape.rank * size for size in (one.inputs, one.outputs))
            forward += low_in + low_out
            backward += 2 * low_out + low_in + (low_in if after or not lowest else 0)
    needed = {
        role: not lowest or (trained and shape.adapts(role)) for role in ("query", "key", "value")
    }
    gradients = sum(needed.values()) + (needed["query"] or needed["key"])
    return forward, backward + 2 * pairs * width * gradients


def plan_operations(work: Work, nodes: Iterable[Node], samples: int, epochs: int) -> dict[str, int]:
    """Operations of a plan: ``trained``, ``trunk`` and ``all`` of it.

    Args:
        work: what one sample costs.
        nodes: of the plan.
        samples: distinct samples, all of which every stage sees.
        epochs: passes of a node over its samples.
    """
    found = list(nodes)
    trained = sum(node.samples * epochs * work.trained(node.stage) for node in found)
    trunk = sum(samples * work.trunk(stage) for stage in {node.stage for node in found})
    return {"trained": trained, "trunk": trunk, "all": trained + trunk}


def scoring_operations(work: Work, nodes: Iterable[Node], rows: int) -> int:
    """Operations of scoring every node on ``rows`` validation rows, trunk included."""
    found = list(nodes)
    trunk = sum(work.trunk(stage) for stage in {node.stage for node in found})
    return rows * (trunk + sum(work.scored(node.stage) for node in found))


def _role(path: str) -> str:
    name = path.rsplit(".", 1)[-1]
    return next((role for role, names in _ROLES.items() if name in names), "other")
