"""A layer put together for answers is the layer: with adapters anywhere, at one position or all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from s3t.model.adapters.lora import Bank, adapted
from s3t.model.base import Base
from s3t.model.fused import base_layers as module
from tests.support.tiny import random_adapter, tiny_base, tiny_rows

LANES = 3
ENCODERS = ("vit", "deit", "siglip", "bert", "roberta", "electra", "distilbert")
EVERY = {
    "vit": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    "bert": ("query", "key", "value", "dense"),
}


def bank_of(base: Base, only: int | None = None) -> Bank:
    """Adapters of three lanes, of all layers or one."""
    each = [random_adapter(base.targets, seed=lane) for lane in range(LANES)]
    pairs = {
        (target.layer, target.path): (
            torch.stack([tensors[target.a] for tensors in each]),
            torch.stack([tensors[target.b] for tensors in each]),
        )
        for target in base.targets
        if only in (None, target.layer)
    }
    return Bank(LANES, pairs, 2.0)


def inference(base: Base, bank: Bank) -> Bank:
    layers = base.fused.for_inference(range(base.depth), bank)
    assert len(layers) == base.depth
    return replace(bank, inference=layers)


def entering(base: Base, family: str) -> tuple[Tensor, Tensor | None]:
    rows = tiny_rows(family, 4)
    hidden = base.start(rows).repeat(LANES, 1, 1)
    return hidden, None if rows.mask is None else rows.mask.repeat(LANES, 1)


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("only", [None, 1])
@torch.no_grad()
def test_an_inference_layer_is_the_layer(family: str, only: int | None) -> None:
    base = tiny_base(family, targets=EVERY.get(family))
    bank, (hidden, mask) = bank_of(base, only), entering(base, family)
    attention = base.attention(mask)
    with adapted(bank):
        expected = base.run(hidden, 0, base.depth, attention)
    with adapted(inference(base, bank)):
        found = base.run(hidden, 0, base.depth, attention)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    with adapted(None):
        bare = base.run(hidden, 0, base.depth, attention)
    assert float((bare - expected).abs().max()) > 0.01, "the adapters count"


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("family", ["vit", "bert"])
@torch.no_grad()
def test_features_of_inference_layers(family: str, pooling: str) -> None:
    base = tiny_base(family, pooling=pooling, targets=EVERY[family])
    bank, (hidden, mask) = bank_of(base), entering(base, family)
    with adapted(bank):
        expected = base.features(hidden, 0, mask)
    with adapted(inference(base, bank)):
        assert torch.allclose(base.features(hidden, 0, mask), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_joined_has_no_inference_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tiny_base("llama")
    assert not llama.fused.for_inference([0], bank_of(llama))
    vit = tiny_base("vit")
    assert vit.fused.for_inference([0], bank_of(vit))
    monkeypatch.setattr(module, "_JOINED_BYTES", 3 * 32 * 32 * 4 - 1)
    assert not vit.fused.for_inference([1], bank_of(vit))


def test_joined_weights_are_made_once_and_move_with_the_base() -> None:
    base = tiny_base("vit")
    base.fused.for_inference([0], bank_of(base))
    joined = base.fused._joined[0]
    base.fused.for_inference([0], bank_of(base))
    assert base.fused._joined[0] is joined
    base.to(torch.device("cpu"))
    assert not base.fused._joined
    base.check_frozen(whole=True)
