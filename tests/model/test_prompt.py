"""Prompts among a row's tokens are what transformers and peft make of them, in every family."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor

from s3t.errors import InputError
from s3t.model.adapters.prompt import (
    beside,
    check_room,
    features,
    fresh_prompt,
    prompt_name,
    prompts_of,
    stacked,
    states,
)
from s3t.model.base import Base
from s3t.model.determinism import draws
from s3t.model.head import language_logits
from s3t.model.inputs.encoders import Encoded
from tests.support.tiny import (
    LENGTH,
    from_config,
    real,
    tiny_base,
    tiny_model,
    tiny_rows,
)

COUNT = 5
WIDTH = 32
TEXTS = ("bert", "roberta", "distilbert")
ROTARY = ("llama", "qwen2", "mistral", "gpt_neox")


def prompts(lanes: int = 1, count: int = COUNT, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((lanes, count, WIDTH), generator=generator)


def longer(mask: Tensor, at: int = 0) -> Tensor:
    ones = mask.new_ones((len(mask), COUNT))
    return torch.cat([mask[:, :at], ones, mask[:, at:]], dim=1)


def close(found: Tensor, whole: Tensor) -> bool:
    return torch.allclose(found, whole, rtol=0, atol=3e-5 * float(whole.abs().max()))


# ── against transformers and peft ────────────────────────────────────────────────────────────


@torch.no_grad()
def embedded(family: str, rows: Encoded, at: int) -> Tensor:
    """Last hidden states of the untouched model, prompts put in behind its own embeddings."""
    model: Any = tiny_model(family)

    def put_in(module: Any, inputs: Any, hidden: Tensor) -> Tensor:
        wide = prompts()[0].expand(len(hidden), -1, -1)
        return torch.cat([hidden[:, :at], wide, hidden[:, at:]], dim=1)

    model.embeddings.register_forward_hook(put_in)
    if rows.mask is None:
        found: Tensor = model(pixel_values=rows.values).last_hidden_state
    else:
        found = model(input_ids=rows.values, attention_mask=longer(rows.mask, at))[0]
    return torch.cat([found[:, :at], found[:, at + COUNT :]], dim=1)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("family", ["vit", "deit", "siglip", *TEXTS])
def test_an_encoder_sees_prompts_behind_its_embeddings(family: str, pooling: str) -> None:
    base, rows = tiny_base(family, pooling=pooling, targets=()), tiny_rows(family, 4)
    whole = embedded(family, rows, 1 if pooling == "first" else 0)
    with torch.no_grad():
        own = base.finish(states(base, base.start(rows), 0, rows.mask, prompts()))
        pooled = features(base, base.start(rows), 0, rows.mask, prompts())
    assert close(own[real(rows)], whole[real(rows)])
    assert close(pooled, base.pool(whole, rows.mask)), "no prompt is pooled"


@torch.no_grad()
def given(model: Any, rows: Encoded, embeddings: Tensor) -> Tensor:
    assert rows.mask is not None
    out = model(inputs_embeds=embeddings, attention_mask=longer(rows.mask))
    logits: Tensor = out.logits[:, COUNT:]
    return logits


def logits_of(base: Base, rows: Encoded) -> Tensor:
    with torch.no_grad():
        return language_logits(base, states(base, base.start(rows), 0, rows.mask, prompts()))


@pytest.mark.parametrize("family", ROTARY)
def test_a_decoder_turns_tokens_by_as_many_positions_as_prompts_take(family: str) -> None:
    rows = tiny_rows(family, 4)
    model: Any = tiny_model(family, language_model=True)
    tokens = model.get_input_embeddings()(rows.values)
    whole = given(model, rows, torch.cat([prompts().expand(4, -1, -1), tokens], dim=1))
    base = tiny_base(family, language_model=True, targets=())
    assert base.positioned
    assert close(logits_of(base, rows)[real(rows)], whole[real(rows)])


def test_learnt_positions_are_those_of_the_tokens_alone() -> None:
    rows = tiny_rows("gpt2", 4)
    model: Any = tiny_model("gpt2", language_model=True)
    places = model.transformer.wpe.weight
    with torch.no_grad():  # what its own positions will add is taken off beforehand
        tokens = model.transformer.wte(rows.values) + places[:LENGTH]
        wide = torch.cat([prompts().expand(4, -1, -1), tokens], dim=1) - places[: COUNT + LENGTH]
    whole = given(model, rows, wide)
    base = tiny_base("gpt2", language_model=True, targets=())
    assert not base.positioned
    assert close(logits_of(base, rows)[real(rows)], whole[real(rows)])


def test_they_are_pefts_virtual_tokens() -> None:
    rows = tiny_rows("llama", 4)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT)
    model: Any = peft.get_peft_model(tiny_model("llama", language_model=True), config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(prompts()[0])
        out = model(input_ids=rows.values, attention_mask=rows.mask).logits[:, COUNT:]
    base = tiny_base("llama", language_model=True, targets=())
    assert close(logits_of(base, rows)[real(rows)], out[real(rows)])


# ── lanes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2", "llama"])
@pytest.mark.parametrize("run", [states, features])
def test_a_lane_meets_its_own_prompts_alone(family: str, run: Callable[..., Tensor]) -> None:
    base, rows = tiny_base(family, targets=()), tiny_rows(family, 8)
    three = prompts(3)
    with torch.no_grad():
        entering = base.start(rows).repeat(3, 1, 1)
        mask = None if rows.mask is None else rows.mask.repeat(3, 1)
        together = run(base, entering, 0, mask, three).chunk(3)
        for lane in range(3):
            alone = run(base, entering[:8], 0, rows.mask, three[lane : lane + 1])
            assert torch.equal(together[lane], alone)
        assert not torch.equal(together[0], together[1])
        without = run(base, entering[:8], 0, rows.mask, None)
    assert without.shape == together[0].shape
    assert not torch.allclose(without, together[0], atol=1e-3), "prompts do something"


def test_only_prompts_get_a_gradient() -> None:
    base, rows = tiny_base("bert", targets=()), tiny_rows("bert", 8)
    vectors = prompts(2).requires_grad_()
    mask = rows.mask
    assert mask is not None
    features(base, base.start(rows), 0, mask, vectors)[4:].sum().backward()
    assert vectors.grad is not None
    assert not vectors.grad[0].any(), "of a lane whose rows have no part in the sum"
    assert bool(vectors.grad[1].any(dim=1).all())
    base.check_frozen(whole=True)


# ── lineages ─────────────────────────────────────────────────────────────────────────────────


def test_prompts_of_a_lineage_stand_in_the_order_of_their_stages() -> None:
    held = {prompt_name(stage): torch.full((2, 4), float(stage)) for stage in (2, 1, 3)}
    held["head.weight"] = torch.zeros(3, 4)
    found = prompts_of(held)
    assert found is not None
    assert found[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert prompts_of({"head.weight": held["head.weight"]}) is None
    del held[prompt_name(1)]
    with pytest.raises(KeyError, match=r"prompt\.001"):
        prompts_of(held)


def test_a_stage_adds_its_own() -> None:
    generator = draws(0)
    first = fresh_prompt({}, (500, 40), 0.1, generator)
    assert [*first] == ["prompt.001"]
    assert 0.09 < float(first["prompt.001"].std()) < 0.11
    second = fresh_prompt(first, (2, 40), 0.1, generator)
    assert [*second] == ["prompt.002"]
    frozen = stacked([first, first])
    assert frozen is not None and frozen.shape == (2, 500, 40)
    leaves = {"prompt.002": torch.ones(2, 2, 40), "head.bias": torch.zeros(2, 3)}
    both = beside(frozen, leaves)
    assert both is not None and both.shape == (2, 502, 40)
    assert torch.equal(both[:, 500:], leaves["prompt.002"])
    assert stacked([{}, {}]) is None
    assert beside(None, {}) is None


# ── bases that do not fit ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ROTARY)
def test_turned_positions_count_prompts(family: str) -> None:
    base = tiny_base(family, language_model=True, targets=())
    check_room(base, 40 - LENGTH)
    with pytest.raises(InputError, match=re.escape("max_length 16 and 25 prompt tokens")):
        check_room(base, 25)


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta"])
def test_learnt_positions_do_not(family: str) -> None:
    base, rows = tiny_base(family, targets=()), tiny_rows(family, 4)
    check_room(base, 60)
    with torch.no_grad():
        found = features(base, base.start(rows), 0, rows.mask, prompts(count=60))
    assert bool(torch.isfinite(found).all())


def test_a_sliding_window_must_hold_prompts_too() -> None:
    config = hf.MistralConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, sliding_window=20, max_position_embeddings=99,
    )  # fmt: skip
    base = Base(from_config(config, True), language_model=True, length=16, targets=())
    check_room(base, 4)
    with pytest.raises(InputError, match="sliding window of 20"):
        check_room(base, 5)


def test_a_decoder_that_pools_its_first_token_is_refused() -> None:
    with pytest.raises(InputError, match="blind to prompts"):
        check_room(tiny_base("llama", pooling="first", targets=()), 1)
    check_room(tiny_base("llama", pooling="first", language_model=True, targets=()), 1)


def test_images_whose_patches_have_places_in_the_layers_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tiny_base("vit", targets=())
    check_room(base, 100)
    monkeypatch.setattr(base, "context", lambda length: {"position_embeddings": torch.ones(4)})
    with pytest.raises(InputError, match="where each patch lies"):
        check_room(base, 1)


def test_a_base_without_targets_adapts_no_layer() -> None:
    base = tiny_base("vit", targets=())
    assert base.targets == []
    whole: Any = tiny_base("vit")
    assert whole.targets
