"""A layer written out is the layer, forward and backward, with any adapters and at one position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from s3t.errors import IntegrityError
from s3t.model.adapters.lora import Bank, adapted, merge
from s3t.model.base import Base
from s3t.model.fused import FusedLayers
from tests.support.tiny import ENCODERS, FAMILIES, IMAGES, real, tiny_base, tiny_rows

WRITTEN = {**IMAGES, **ENCODERS}
EVERY = {
    "vit": ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"),
    "bert": ("query", "key", "value", "dense"),
}
RANK, LANES, ROWS = 3, 3, 4


@contextmanager
def own_code(base: Base) -> Iterator[None]:
    """Every layer by its own code, inside."""
    before, base.fused = base.fused, FusedLayers([None] * base.depth)
    try:
        yield
    finally:
        base.fused = before


def random_bank(base: Base, dropout: float = 0.0) -> Bank:
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(LANES, *shape, generator=generator) * 0.2).requires_grad_()

    pairs = {(t.layer, t.path): (leaf(RANK, t.inputs), leaf(t.outputs, RANK)) for t in base.targets}
    generators = [torch.Generator().manual_seed(lane) for lane in range(LANES)]
    return Bank(LANES, pairs, 0.7, dropout, generators if dropout else ())


def slopes(
    base: Base, bank: Bank, hidden: Tensor, mask: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Features of rows, and the gradients of everything that wants one."""
    leaves = [leaf for pair in bank.pairs.values() for leaf in pair if leaf.requires_grad]
    hidden = hidden.detach().clone().requires_grad_()
    with adapted(bank):
        features = base.features(hidden, 0, mask)
    direction = torch.linspace(-1, 1, features.numel()).view_as(features)
    return features, list(torch.autograd.grad(features, [hidden, *leaves], direction))


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=2e-5 * float(other.detach().abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_are_written_out_and_nothing_else_is(family: str) -> None:
    fused = tiny_base(family).fused
    found = [number in fused for number in range(3)]
    assert found == [family in WRITTEN] * 3


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
@pytest.mark.parametrize("family", WRITTEN)
def test_features_and_gradients_are_those_of_the_layers_own_code(family: str, pooling: str) -> None:
    base = tiny_base(family, pooling=pooling, targets=EVERY.get(family))
    rows = tiny_rows(family, LANES * ROWS)
    bank = random_bank(base)
    hidden = base.start(rows)
    features, gradients = slopes(base, bank, hidden, rows.mask)
    with own_code(base):
        expected, wanted = slopes(base, bank, hidden, rows.mask)
    assert close(features, expected)
    assert len(gradients) == len(wanted) > 1
    for one, other in zip(gradients, wanted, strict=True):
        assert close(one, other)


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_dropout_of_an_adapter_is_drawn_and_derived_alike(family: str) -> None:
    # up and down in one order everywhere, so that both draw the same numbers
    base = tiny_base(family, layers=1, targets=EVERY[family][:1])
    rows = tiny_rows(family, LANES * ROWS)
    hidden = base.start(rows)
    base.pooling = "mean"  # every position draws
    features, gradients = slopes(base, random_bank(base, 0.4), hidden, rows.mask)
    plain, _ = slopes(base, random_bank(base), hidden, rows.mask)
    with own_code(base):
        expected, wanted = slopes(base, random_bank(base, 0.4), hidden, rows.mask)
    assert close(features, expected) and not close(features, plain)
    assert all(close(one, other) for one, other in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_merged_adapters_are_the_adapters(family: str) -> None:
    base = tiny_base(family, targets=EVERY[family])
    rows = tiny_rows(family, LANES * ROWS)
    bank = random_bank(base)
    merged = {
        (t.layer, t.path): merge(base.layers, t, *bank.pairs[t.layer, t.path], bank.scale).detach()
        for t in base.targets
        if t.layer > 0
    }
    pairs = {place: pair for place, pair in bank.pairs.items() if place[0] == 0}
    together = Bank(LANES, pairs, bank.scale, merged=merged)
    hidden = base.start(rows)
    features, gradients = slopes(base, together, hidden, rows.mask)
    expected, wanted = slopes(base, bank, hidden, rows.mask)
    assert close(features, expected)
    for one, other in zip(gradients, wanted, strict=False):  # of the input, and of layer 0
        assert close(one, other)
    with own_code(base):
        assert close(slopes(base, together, hidden, rows.mask)[0], expected)


def test_long_rows_keep_the_layers_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("bert", pooling="mean")
    rows = tiny_rows("bert", LANES * ROWS)
    bank, hidden = random_bank(base), base.start(rows)
    monkeypatch.setattr("s3t.model.fused.layer._LONGEST", hidden.shape[1] - 1)
    features, _ = slopes(base, bank, hidden, rows.mask)
    with own_code(base):
        assert torch.equal(features, slopes(base, bank, hidden, rows.mask)[0])


def test_a_layer_that_computes_something_else_keeps_its_own_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers as hf

    class Other(hf.models.vit.modeling_vit.ViTLayer):  # type: ignore[misc, name-defined]
        def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
            out = super().forward(hidden_states, *args, **kwargs)
            out = out[0] if isinstance(out, tuple) else out
            return out + 0.01 * torch.tanh(out)

    monkeypatch.setattr(hf.models.vit.modeling_vit, "ViTLayer", Other)
    base = tiny_base("vit")
    assert not any(number in base.fused for number in range(3))
    rows = tiny_rows("vit", 3)
    assert torch.isfinite(base.features(base.start(rows), 0, rows.mask)).all()


def test_a_copy_of_a_weight_that_was_written_to_is_found() -> None:
    base = tiny_base("vit")
    rows = tiny_rows("vit", 2)
    base.features(base.start(rows), 0, rows.mask)
    base.check_frozen(whole=True)
    layer = base.fused._layers[1]
    assert layer is not None and layer.linears[0]._transposed is not None
    layer.linears[0]._transposed[0, 0] += 1
    with pytest.raises(IntegrityError, match="copy"):
        base.check_frozen(whole=True)


def test_the_trial_sees_padding() -> None:
    base = tiny_base("bert")
    rows = tiny_rows("bert", 6)
    hidden, mask = base.start(rows), base.attention(rows.mask)
    with torch.no_grad():
        written = base.run(hidden, 0, base.depth, mask)
        with own_code(base):
            expected = base.run(hidden, 0, base.depth, mask)
    assert close(written[real(rows)], expected[real(rows)])
    assert isinstance(base.layers[0], nn.Module)
