"""The base, taken apart and put together, is the untouched model, whatever its family."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from s3t.errors import InputError, IntegrityError
from s3t.model.adapters.lora import adapted
from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.model.reference import function_of
from tests.support.tiny import (
    DECODERS,
    FAMILIES,
    IMAGES,
    LANGUAGE,
    LENGTH,
    NEEDED,
    VOCABULARY,
    bank_of,
    from_config,
    inputs_of,
    random_adapter,
    real,
    shared_base,
    tiny_base,
    tiny_model,
    tiny_rows,
)


@torch.no_grad()
def parts(base: Base, rows: Encoded, cut: int = 0) -> torch.Tensor:
    """Through all layers, with a stop at ``cut``."""
    mask = base.attention(rows.mask)
    hidden = base.run(base.start(rows), 0, cut, mask)
    return base.finish(base.run(hidden, cut, base.depth, mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_together_are_the_untouched_model(family: str) -> None:
    rows = tiny_rows(family, 5)
    with torch.no_grad():
        whole = tiny_model(family)(**inputs_of(rows)).last_hidden_state[real(rows)]
    found = parts(shared_base(family), rows)[real(rows)]
    assert torch.allclose(found, whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("family", LANGUAGE)
def test_a_language_model_answers_through_its_own_head(family: str) -> None:
    rows = tiny_rows(family, 5)
    with torch.no_grad():
        whole = tiny_model(family, language_model=True)(**inputs_of(rows)).logits[real(rows)]
        base = shared_base(family, language_model=True)
        assert base.lm_head is not None
        found = base.lm_head(parts(base, rows))[real(rows)]
    assert torch.allclose(found, whole, rtol=0, atol=2e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_between_any_two_layers_changes_no_byte(family: str) -> None:
    base, rows = shared_base(family), tiny_rows(family, 4)
    expected = parts(base, rows)
    for cut in range(1, base.depth + 1):
        assert torch.equal(parts(base, rows, cut), expected)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in IMAGES])
def test_other_lengths_than_the_one_it_was_loaded_for(family: str) -> None:
    base, rows = shared_base(family), tiny_rows(family, 4, length=32)
    with torch.no_grad():
        whole = tiny_model(family)(**inputs_of(rows)).last_hidden_state[real(rows)]
    assert torch.allclose(parts(base, rows)[real(rows)], whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_models_are_told_from_others(family: str) -> None:
    base = shared_base(family)
    assert base.causal == (family in DECODERS)
    assert base.pooling == ("last" if family in DECODERS else "first")
    assert base.hidden_size == 32
    assert base.depth == 3


@pytest.mark.parametrize("family", [family for family in NEEDED if family not in IMAGES])
def test_padding_is_never_seen(family: str) -> None:
    base, rows = shared_base(family), tiny_rows(family, 6)
    assert rows.mask is not None
    other = Encoded(torch.where(rows.mask == 0, 7, rows.values), rows.mask)
    one, two = (base.pool(parts(base, r), r.mask) for r in (rows, other))
    assert torch.allclose(one, two, rtol=0, atol=1e-5)


def test_pooling() -> None:
    features = torch.randn(3, LENGTH, 4)
    lengths = torch.tensor([1, 5, LENGTH])
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    kinds = {kind: shared_base("bert", pooling=kind) for kind in ("first", "mean", "last")}
    first, mean, last = (kinds[kind].pool(features, mask) for kind in ("first", "mean", "last"))
    assert torch.equal(first, features[:, 0])
    for row, length in enumerate(lengths.tolist()):
        assert torch.allclose(mean[row], features[row, :length].mean(dim=0), atol=1e-6)
        assert torch.equal(last[row], features[row, length - 1])
    images = {kind: shared_base("vit", pooling=kind) for kind in ("first", "mean", "last")}
    assert torch.equal(images["first"].pool(features, None), features[:, 0])
    assert torch.allclose(images["mean"].pool(features, None), features.mean(dim=1))
    assert torch.equal(images["last"].pool(features, None), features[:, -1])


# ── E9 ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", NEEDED)
def test_layers_are_told_by_number(family: str) -> None:
    base = shared_base(family, layers=12)
    assert sorted({target.layer for target in base.targets}) == list(range(12))
    names = [name for t in base.targets if 1 <= t.layer < 3 for name in (t.a, t.b)]
    assert {re.match(r"layers\.(\d{3})\.", name)[1] for name in names} == {"001", "002"}  # type: ignore[index]
    assert len({name for t in base.targets for name in (t.a, t.b)}) == 2 * len(base.targets)


@pytest.mark.parametrize("family", NEEDED)
def test_an_adapter_acts_in_its_own_layer_alone(family: str) -> None:
    base, rows = shared_base(family, layers=12), tiny_rows(family, 2)
    own = [target for target in base.targets if target.layer == 1]
    bank = bank_of(base.targets, random_adapter(own), 2.0)
    with torch.no_grad():
        mask = base.attention(rows.mask)
        plain = touched = base.start(rows)
        for layer in range(12):
            before = plain
            plain = base.run(before, layer, layer + 1, mask)
            with adapted(bank):
                touched = base.run(before, layer, layer + 1, mask)
            assert torch.equal(plain, touched) == (layer != 1), f"layer {layer}"


def test_check_frozen_finds_a_written_parameter() -> None:
    base = tiny_base("vit")
    base.check_frozen(whole=True)
    name, tensor = next(iter(base.weights.tensors.items()))
    with torch.no_grad():
        tensor.add_(1)
    with pytest.raises(IntegrityError, match="frozen parameter of the base was written"):
        base.check_frozen()
    assert name


def test_check_frozen_finds_bytes_that_changed_unseen() -> None:
    base = tiny_base("vit")
    tensor = next(iter(base.weights.tensors.values()))
    tensor.data[..., 0] += 1  # torch does not count what is written past it
    base.check_frozen()
    with pytest.raises(IntegrityError, match="bytes differ"):
        base.check_frozen(whole=True)


def test_check_frozen_finds_a_parameter_that_could_be_trained() -> None:
    base = tiny_base("vit")
    next(base.model.parameters()).requires_grad_()
    with pytest.raises(IntegrityError):
        base.check_frozen()


@pytest.mark.parametrize("family", NEEDED)
def test_no_gradient_reaches_the_base(family: str) -> None:
    base, rows = tiny_base(family), tiny_rows(family, 2)
    tensors = {n: t.requires_grad_() for n, t in random_adapter(base.targets).items()}
    with adapted(bank_of(base.targets, tensors, 1.0)):
        hidden = base.run(base.start(rows), 0, base.depth, base.attention(rows.mask))
    base.finish(hidden).square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in tensors.values())
    base.check_frozen(whole=True)


@pytest.mark.parametrize("family", NEEDED)
def test_the_fingerprint_is_of_weights_and_function(family: str) -> None:
    length = None if family in IMAGES else LENGTH

    def fingerprint(change: Callable[[Any], None]) -> str:
        model = tiny_model(family)
        change(model)
        return Base(model, language_model=False, length=length).fingerprint

    def weight(model: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1

    def activation(model: Any) -> None:
        names = {"activation_function", "hidden_act"}
        setattr(model.config, next(n for n in names if hasattr(model.config, n)), "relu")

    def names(model: Any) -> None:
        model.config._name_or_path = "another/folder"
        model.config.architectures = ["Other"]
        model.config.id2label = {0: "cat", 1: "dog"}
        model.config.transformers_version = "9.9"

    own = fingerprint(lambda model: None)
    assert own == tiny_base(family).fingerprint == fingerprint(names)
    assert len({own, fingerprint(weight), fingerprint(activation)}) == 3
    config = tiny_model(family).config
    before = function_of(config)
    config._attn_implementation = "eager"
    assert function_of(config) != before, "how attention is computed counts"


# ── what is refused ──────────────────────────────────────────────────────────────────────────


def refused(config: Any, length: int | None = LENGTH, **options: Any) -> str:
    model = from_config(config)
    with pytest.raises(InputError) as caught:
        Base(model, language_model=False, length=length, **options)
    return str(caught.value)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.1,
        **more,
    }


def test_shared_layers_are_refused() -> None:
    message = refused(hf.AlbertConfig(embedding_size=16, **_text()))
    assert "AlbertModel has 0 lists of 3 layers, expected one" in message


def test_two_stacks_are_refused() -> None:
    config = hf.T5Config(vocab_size=99, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=48)
    assert "T5Model has 4 lists of 2 layers" in refused(config)


@pytest.mark.parametrize(
    "config",
    [
        hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4),
        hf.DebertaV2Config(**_text()),
        hf.Gemma3TextConfig(
            num_key_value_heads=2, head_dim=8, sliding_window=20, **_text(num_hidden_layers=6)
        ),
        hf.ModernBertConfig(
            local_attention=64, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2,
            **_text(),
        ),
    ],
    ids=lambda config: str(config.model_type),
)  # fmt: skip
def test_layers_that_take_more_than_hidden_states_are_refused(config: Any) -> None:
    assert "cannot be run layer by layer with the result of the whole" in refused(config)


def test_stages_of_several_widths_are_refused() -> None:
    config = hf.SwinConfig(
        image_size=8, patch_size=2, num_channels=1, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
        window_size=2,
    )  # fmt: skip
    assert "SwinModel" in refused(config, length=None)


def test_a_network_without_layers_is_refused() -> None:
    config = hf.ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])
    assert "ResNetModel has 0 lists of 0 layers" in refused(config, length=None)


def test_a_length_beyond_the_base_is_refused() -> None:
    assert "over the base's 40 positions" in refused(hf.BertConfig(**_text()), length=48)
    window = hf.MistralConfig(num_key_value_heads=2, sliding_window=8, **_text())
    assert "sliding window of 8" in refused(window)


def test_targets_that_are_no_linear_map_are_refused() -> None:
    message = refused(hf.BertConfig(**_text()), targets=("query", "LayerNorm", "nothing"))
    assert "'LayerNorm', 'nothing'" in message
    assert "'dense', 'key', 'query', 'value'" in message


def test_chosen_targets() -> None:
    base = shared_base("llama", targets=("k_proj", "down_proj"))
    assert {t.path for t in base.targets} == {"self_attn.k_proj", "mlp.down_proj"}
    base = shared_base("bert", targets=("attention.output.dense",))
    assert {t.path for t in base.targets} == {"attention.output.dense"}, "not every dense"


def test_threads_share_a_base() -> None:
    """Contexts of a length are made on first use, also when several threads ask at once."""
    base, rows = tiny_base("llama"), tiny_rows("llama", 3, length=32)
    fresh = parts(tiny_base("llama"), rows)
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(parts(base, rows))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(torch.equal(one, fresh) for one in found)
    assert isinstance(base.norm, nn.Module)
