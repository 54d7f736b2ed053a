"""Tiny random models of many families, rows for them, and nodes to train: what tests share.

Weights are drawn five times as large as transformers does, so that a mistake in any layer shows
far above rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from s3t.config import LoraConfig, StageConfig
from s3t.model.adapters.lora import Bank, LoraTarget
from s3t.model.base import Base
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.members import Member
from s3t.training.node.assignment import Assignment, CacheSettings, StageRows, StageSettings
from s3t.training.node.rows import LabelledSet
from s3t.training.node.shared_cache import SharedCache
from s3t.training.node.trainer import StageTrainer
from s3t.types import NodeKey, digest

LENGTH = 16
VOCABULARY = 99
CLASSES = 3

_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 1}
_TEXT = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {key: value for key, value in _TEXT.items() if key != "max_position_embeddings"}


def _shape(layers: int) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.1,
    }


IMAGES: dict[str, Callable[[int], Any]] = {
    "vit": lambda n: hf.ViTConfig(**_shape(n), **_IMAGE),
    "deit": lambda n: hf.DeiTConfig(**_shape(n), **_IMAGE),
    "siglip": lambda n: hf.SiglipVisionConfig(**_shape(n), **_IMAGE),
}
ENCODERS: dict[str, Callable[[int], Any]] = {
    "bert": lambda n: hf.BertConfig(**_shape(n), **_TEXT),
    "roberta": lambda n: hf.RobertaConfig(**_shape(n), **_TEXT),
    "electra": lambda n: hf.ElectraConfig(embedding_size=16, **_shape(n), **_TEXT),
    "distilbert": lambda n: hf.DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        pad_token_id=0,
        n_layers=n,
        n_heads=4,
        dim=32,
        hidden_dim=48,
        initializer_range=0.1,
    ),
}
DECODERS: dict[str, Callable[[int], Any]] = {
    "gpt2": lambda n: hf.GPT2Config(
        n_embd=32, n_layer=n, n_head=4, n_inner=48, n_positions=40, initializer_range=0.1, **_GPT2
    ),
    "llama": lambda n: hf.LlamaConfig(**_shape(n), **_TEXT),
    "qwen2": lambda n: hf.Qwen2Config(num_key_value_heads=2, **_shape(n), **_TEXT),
    "mistral": lambda n: hf.MistralConfig(num_key_value_heads=2, **_shape(n), **_TEXT),
    "qwen3": lambda n: hf.Qwen3Config(num_key_value_heads=2, head_dim=8, **_shape(n), **_TEXT),
    "gemma": lambda n: hf.GemmaConfig(num_key_value_heads=2, head_dim=8, **_shape(n), **_TEXT),
    "phi": lambda n: hf.PhiConfig(**_shape(n), **_TEXT),
    "phi3": lambda n: hf.Phi3Config(num_key_value_heads=2, **_shape(n), **_TEXT),
    "gpt_neox": lambda n: hf.GPTNeoXConfig(**_shape(n), **_TEXT),
    "opt": lambda n: hf.OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=n,
        num_attention_heads=4,
        ffn_dim=48,
        init_std=0.1,
        **_TEXT,
    ),
}
FAMILIES = {**IMAGES, **ENCODERS, **DECODERS}
NEEDED = ("vit", "bert", "roberta", "gpt2", "llama")
"""The families that s3t promises."""

LANGUAGE = tuple(DECODERS)


def tiny_model(family: str, layers: int = 3, language_model: bool = False) -> hf.PreTrainedModel:
    """The same random weights at every call, dropout off."""
    return from_config(FAMILIES[family](layers), language_model)


def from_config(config: Any, language_model: bool = False) -> hf.PreTrainedModel:
    """A model with repeatable weights, biases and norms included, without touching global state."""
    auto = hf.AutoModelForCausalLM if language_model else hf.AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model: hf.PreTrainedModel = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases at zero and norms at one hide what is left out
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiny_base(
    family: str,
    layers: int = 3,
    language_model: bool = False,
    pooling: str = "auto",
    targets: tuple[str, ...] | None = None,
    length: int = LENGTH,
) -> Base:
    return Base(
        tiny_model(family, layers, language_model),
        language_model=language_model,
        pooling=pooling,
        length=None if family in IMAGES else length,
        targets=targets,
    )


shared_base = cache(tiny_base)
"""The same base at every call with the same words, for tests that write nothing into it."""


def tiny_rows(family: str, count: int, seed: int = 0, length: int = LENGTH) -> Encoded:
    """Random images, or texts of 3 to ``length`` tokens padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    if family in IMAGES:
        return Encoded(torch.randn((count, 1, 8, 8), generator=generator), None)
    values = torch.randint(3, VOCABULARY, (count, length), generator=generator)
    lengths = torch.randint(3, length + 1, (count, 1), generator=generator)
    mask = (torch.arange(length)[None] < lengths).long()
    return Encoded(values * mask, mask)


def inputs_of(rows: Encoded) -> dict[str, Tensor]:
    """The rows as an untouched transformers model takes them."""
    if rows.mask is None:
        return {"pixel_values": rows.values}
    return {"input_ids": rows.values, "attention_mask": rows.mask}


def real(rows: Encoded) -> Any:
    """Index of the positions that are not padding."""
    return slice(None) if rows.mask is None else rows.mask.bool()


def random_adapter(
    targets: list[LoraTarget], lowest: int = 0, rank: int = 4, seed: int = 0
) -> dict[str, Tensor]:
    """Adapters of the layers from ``lowest`` up, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in targets:
        if target.layer >= lowest:
            tensors[target.a] = torch.randn(rank, target.inputs, generator=generator) * 0.2
            tensors[target.b] = torch.randn(target.outputs, rank, generator=generator) * 0.2
    return tensors


def random_head(hidden: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "head.weight": torch.randn(CLASSES, hidden, generator=generator),
        "head.bias": torch.randn(CLASSES, generator=generator),
    }


def bank_of(targets: list[LoraTarget], tensors: Mapping[str, Tensor], scale: float) -> Bank:
    """One lane that carries ``tensors``."""
    pairs = {
        (target.layer, target.path): (tensors[target.a][None], tensors[target.b][None])
        for target in targets
        if target.a in tensors
    }
    return Bank(1, pairs, scale)


def node(name: str) -> NodeKey:
    """A key as good as any other."""
    return NodeKey(digest(name))


def labelled(
    family: str, count: int, seed: int, language_model: bool = False, length: int = LENGTH
) -> LabelledSet:
    generator = torch.Generator().manual_seed(seed)
    labels = None if language_model else torch.randint(0, CLASSES, (count,), generator=generator)
    return LabelledSet(tiny_rows(family, count, seed, length), labels)


def tiny_trainer(
    family: str,
    *,
    language_model: bool = False,
    layers: int = 3,
    dropout: float = 0.0,
    cap_bytes: int = 2**30,
    base: Base | None = None,
    shared_cache: SharedCache | None = None,
    recompute: bool = False,
    length: int = LENGTH,
    **recipe: Any,
) -> StageTrainer:
    """A trainer over 40 private and 10 validation rows: rank 2, 2 epochs of batches of 4."""
    stage = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, **recipe}
    return StageTrainer(
        base or tiny_base(family, layers, language_model, length=length),
        StageSettings(
            StageConfig.model_validate(stage),
            LoraConfig(rank=2, alpha=4, dropout=dropout),
            recompute=recompute,
        ),
        StageRows(
            labelled(family, 40, 1, language_model, length),
            labelled(family, 10, 2, language_model, length),
            0 if language_model else CLASSES,
        ),
        CacheSettings(cap_bytes, shared_cache),
    )


def tiny_group(trainer: StageTrainer, lowest: int, sizes: tuple[int, ...]) -> list[Assignment]:
    """Nodes of a stage whose ancestors trained the layers from ``lowest`` up.

    Each has its own rows, as many as ``sizes`` says, its own adapters above and parent's head.
    """
    generator = torch.Generator().manual_seed(5)
    group = []
    for number, size in enumerate(sizes):
        inherited = random_adapter(trainer.base.targets, lowest, trainer.lora.rank, number)
        if inherited and trainer.classes:
            inherited |= random_head(trainer.base.hidden_size, number)
        rows = torch.randperm(40, generator=generator)[:size].sort().values
        group.append(Assignment(node(f"node {number}"), rows, inherited))
    return group


def tiny_members(base: Base, lowest: Sequence[int], seen: Sequence[int]) -> list[Member]:
    """One member for each lowest layer, with random adapters and, for a classifier, a head."""
    return [
        Member(
            shard,
            at,
            random_adapter(base.targets, at, seed=shard)
            | ({} if base.lm_head is not None else random_head(base.hidden_size, shard)),
            samples,
        )
        for shard, (at, samples) in enumerate(zip(lowest, seen, strict=False))
    ]
