"""Built bases: small transformers with random weights from the run's seed, and a byte tokenizer.

They replace hub models where nothing can be downloaded: the demo's ViT, and the tiny encoders and
decoders of the tests. All other code of them is that of transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    ViTConfig,
)

from s3t.config import Config, MakeConfig

__all__ = ["build_model", "byte_tokenizer"]

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def build_model(config: Config) -> PreTrainedModel:
    """The base that ``model.base: make:…`` names, initialised from ``config.seed``."""
    shape = _transformer_config(config)
    auto: Any = AutoModelForCausalLM if config.generates else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: PreTrainedModel = auto.from_config(shape)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, framed by ``<s>`` and ``</s>``; 260 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _transformer_config(config: Config) -> PreTrainedConfig:
    make, length = config.model.make, config.data.max_length
    common = _common(make)
    text: dict[str, Any] = {
        "vocab_size": len(_SPECIAL) + 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    match config.model.base:
        case "make:vit":
            size = config.data.image_size or 8
            return ViTConfig(
                image_size=size, patch_size=make.patch, num_channels=make.channels, **common
            )
        case "make:bert":
            return BertConfig(max_position_embeddings=length, **text, **common)
        case "make:roberta":
            # RoBERTa counts positions from the padding id upwards
            return RobertaConfig(max_position_embeddings=length + 2, **text, **common)
        case "make:llama":
            places = length + config.prompt_tokens  # the other families give prompts no place
            return LlamaConfig(max_position_embeddings=places, **text, **common)
        case _:
            return GPT2Config(
                n_embd=make.hidden,
                n_layer=make.layers,
                n_head=make.heads,
                n_inner=make.intermediate or 4 * make.hidden,
                n_positions=length,
                initializer_range=0.02 * make.init_scale,
                **text,
            )


def _common(make: MakeConfig) -> dict[str, Any]:
    return {
        "hidden_size": make.hidden,
        "num_hidden_layers": make.layers,
        "num_attention_heads": make.heads,
        "intermediate_size": make.intermediate or 4 * make.hidden,
        "initializer_range": 0.02 * make.init_scale,
    }
