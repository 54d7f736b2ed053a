"""Decoders as they are used: half precision, layers run again, long rows, from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from s3t.errors import InputError
from s3t.model.base import Base
from s3t.model.built import byte_tokenizer
from s3t.run import RunDir
from s3t.service import S3T
from s3t.training.node.assignment import TrainedNode
from s3t.training.retrain import retrain
from s3t.training.work.train import train
from tests.support.small_runs import Make
from tests.support.tiny import DECODERS, LENGTH, from_config, tiny_group, tiny_model, tiny_trainer

SIZES = (7, 12, 3)
LONG = 288
"""More tokens than those up to which attention scores are kept."""

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": LONG,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LOCAL = {
    "llama": lambda: hf.LlamaConfig(**SHAPE),
    "qwen2": lambda: hf.Qwen2Config(**SHAPE),
    "qwen3": lambda: hf.Qwen3Config(head_dim=8, **SHAPE),
    "mistral": lambda: hf.MistralConfig(sliding_window=64, **SHAPE),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=260, n_embd=32, n_layer=3, n_head=4, n_positions=LONG, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


def halved(config: Any, length: int = LENGTH, language_model: bool = True) -> Base:
    model = from_config(config, language_model).to(torch.bfloat16)
    return Base(model, language_model=language_model, length=length)


def same(one: TrainedNode, other: TrainedNode) -> bool:
    return (one.score == other.score and torch.equal(one.said, other.said)) and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


@pytest.mark.parametrize(
    "family",
    [
        name if name in ("llama", "gpt2", "gemma") else pytest.param(name, marks=pytest.mark.heavy)
        for name in DECODERS
    ],
)
def test_groups_and_layers_run_again_change_no_byte_in_half_precision(family: str) -> None:
    base = Base(
        tiny_model(family, language_model=True).to(torch.bfloat16),
        language_model=True,
        length=LENGTH,
    )
    once, again = (
        tiny_trainer(family, language_model=True, base=base, recompute=recompute, epochs=1)
        for recompute in (False, True)
    )
    group = tiny_group(once, 2, SIZES)
    together = again.train((1, 2), group)
    for one, trained in zip(group, together, strict=True):
        assert same(once.train((1, 2), [one])[0], trained)
        assert all(tensor.dtype == torch.float32 for tensor in trained.tensors.values())
    base.check_frozen(whole=True)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("gpt2", torch.float32),
        pytest.param("llama", torch.float32, marks=pytest.mark.heavy),
        pytest.param("gpt2", torch.bfloat16, marks=pytest.mark.heavy),
    ],
)
def test_long_rows_too(family: str, dtype: torch.dtype) -> None:
    model = from_config(LOCAL[family](), language_model=True).to(dtype)
    base = Base(model, language_model=True, length=LONG)
    once, again = (
        tiny_trainer(
            family, language_model=True, base=base, length=LONG, recompute=recompute, epochs=1
        )
        for recompute in (False, True)
    )
    group = tiny_group(once, 2, (3, 6))
    assert max(once.private.longest(one.rows) or 0 for one in group) > 256
    for one, trained in zip(group, again.train((1, 2), group), strict=True):
        assert same(once.train((1, 2), [one])[0], trained)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "qwen3" else pytest.mark.heavy)
        for name in LOCAL
    ],
)
def test_a_run_on_a_local_folder(make: Make, tmp_path: Path, family: str) -> None:
    folder = tmp_path / "base"
    from_config(LOCAL[family](), language_model=True).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = make(
        task="causal-lm",
        model={"base": str(folder), "dtype": "bfloat16"},
        sequences={"strategy": "cyclic", "budget": 1},
        stage={"epochs": 1, "gradient_accumulation": 2, "batch_size": 4},
        training={"workers": 1, "gradient_checkpointing": True},
    )
    assert train(config).trained == 4
    run = RunDir(config.run_dir)
    last = [node.key for node in run.plan().forest if node.stage == 2][:1]
    assert all(retrain(run, last, tmp_path / "again").values())
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=["p03"])
        assert len(service.generate(["person 1 says"], max_new_tokens=4)) == 1


# ── what half precision must not hide ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "config",
    [
        hf.Gemma3TextConfig(head_dim=8, sliding_window=64, **SHAPE | {"num_hidden_layers": 6}),
        hf.GraniteConfig(logits_scaling=1.03, **SHAPE),
        hf.CohereConfig(logit_scale=1.03, **SHAPE),
        hf.Gemma2Config(head_dim=8, sliding_window=64, final_logit_softcapping=3.0, **SHAPE),
    ],
    ids=lambda config: str(config.model_type),
)
def test_a_base_that_is_only_nearly_the_whole_is_refused(config: Any) -> None:
    """Positions of a layer's own, and heads that scale or cap: all within a hundredth or so."""
    with pytest.raises(InputError, match="cannot be run layer by layer with the result of the"):
        halved(config)
