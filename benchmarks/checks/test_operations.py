"""The count of operations: against torch's own counter on real steps, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine.operations import (
    LayerShape,
    Work,
    layer_operations,
    plan_operations,
    scoring_operations,
)
from s3t.plan.trie import Node
from s3t.types import NodeKey

HIDDEN, INNER, TOKENS, RANK, LAYERS, ROWS, CLASSES = 16, 48, 5, 2, 3, 4, 7


def bert(layers: int = LAYERS) -> Any:
    """A BERT without a pooler whose attention is made of plain products, which can be counted."""
    config = hf.BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=INNER,
        attn_implementation="eager",
    )
    return hf.BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


def shape(adapted: tuple[str, ...] = ("query", "value")) -> LayerShape:
    layer = bert(1).encoder.layer[0]
    paths = [path for path, _ in layer.named_modules() if path.rsplit(".", 1)[-1] in adapted]
    return LayerShape.of(layer, paths, RANK, causal=False)


def work(block: tuple[int, int], adapted: tuple[str, ...] = ("query", "value")) -> Work:
    """A plan of one stage whose loss reads all positions."""
    return Work(shape(adapted), [block], LAYERS, TOKENS, False, HIDDEN * CLASSES, False)


@pytest.mark.parametrize("block", [(2, 3), (1, 3), (0, 3)], ids=str)
@pytest.mark.parametrize(
    "adapted", [("query", "value"), ("query", "key", "value", "dense")], ids=len
)
def test_it_is_what_torch_counts_in_a_step(
    block: tuple[int, int], adapted: tuple[str, ...]
) -> None:
    base = bert()
    model = get_peft_model(
        base,
        LoraConfig(r=RANK, target_modules=list(adapted), layers_to_transform=list(range(*block))),
    )
    head = nn.Linear(HIDDEN, CLASSES)
    tokens, labels = torch.randint(0, 50, (ROWS, TOKENS)), torch.randint(0, CLASSES, (ROWS,))
    with FlopCounterMode(display=False) as counter:
        hidden = model(input_ids=tokens)[0]
        nn.functional.cross_entropy(head(hidden.mean(dim=1)), labels).backward()
    needed = work(block, adapted)
    assert counter.get_total_flops() == ROWS * (needed.trained(1) + needed.trunk(1))


def test_a_frozen_layer_above_the_block_costs_no_lora() -> None:
    forward, backward = layer_operations(shape(), TOKENS, TOKENS, trained=False)
    maps = 2 * TOKENS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)
    products = 2 * TOKENS * TOKENS * HIDDEN
    assert forward == maps + 2 * products  # scores, and values by weights
    assert backward == maps + 4 * products  # two gradients of each of the two


def test_the_last_layer_at_one_position() -> None:
    forward, backward = layer_operations(shape(), TOKENS, 1, trained=True, lowest=True)
    square, wide = 2 * HIDDEN * HIDDEN, 2 * HIDDEN * INNER
    low = 2 * RANK * HIDDEN
    after = square + 2 * wide  # what follows the attention, at the one position
    assert forward == (1 + 2 * TOKENS) * square + after + 4 * TOKENS * HIDDEN + 2 * low * (
        1 + TOKENS
    )
    gradients = 3 * 2 * TOKENS * HIDDEN  # weights, queries, values; keys carry no LoRA
    assert backward == after + gradients + 3 * low * (1 + TOKENS)


def test_causal_attention_is_half() -> None:
    plain = shape()
    causal = LayerShape(plain.linears, plain.rank, causal=True)
    whole = layer_operations(plain, TOKENS, TOKENS, trained=False)[0]
    half = layer_operations(causal, TOKENS, TOKENS, trained=False)[0]
    assert whole - half == 4 * HIDDEN * (TOKENS * TOKENS - TOKENS * (TOKENS + 1) // 2)


def test_a_plan_is_the_sum_of_its_nodes_and_each_cut_once() -> None:
    one = Work(shape(), [(2, 3), (0, 2)], LAYERS, TOKENS, True, HIDDEN * CLASSES, False)
    nodes = [_node("a", None, (0,), 3), _node("b", "a", (0, 1), 5), _node("c", None, (1,), 2)]
    found = plan_operations(one, nodes, samples=5, epochs=4)
    assert found["trained"] == 4 * (5 * one.trained(1) + 5 * one.trained(2))
    assert found["trunk"] == 5 * one.trunk(1) > 0
    assert one.trunk(2) == 0
    assert found["all"] == found["trained"] + found["trunk"]
    assert scoring_operations(one, nodes, 6) == 6 * (
        one.trunk(1) + 2 * one.scored(1) + one.scored(2)
    )


def test_it_refuses_to_count_without_queries_or_values() -> None:
    with pytest.raises(ValueError, match="queries or values"):
        shape(("dense",))


def _node(key: str, parent: str | None, prefix: tuple[int, ...], samples: int) -> Node:
    above = NodeKey(parent) if parent else None
    return Node(NodeKey(key), above, 0, prefix, samples, 4 * samples, 0)
