"""Loads the base that a config names, and its encoder: a hub name, a local folder, or ``make:…``.

    config ─► transformers model (+ tokenizer) ─► Base + encoder
                └─ a base that was built or adapted by s3t is kept in RUN/base

Invariant: a base that is loaded again has the fingerprint that the plan names, or is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from s3t.config import Config
from s3t.errors import InputError, named
from s3t.model.adapters.prompt import check_room
from s3t.model.base import Base
from s3t.model.built import build_model, byte_tokenizer
from s3t.model.inputs.chat import chat_of
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.quantized import quantizer_version, replace_quantized
from s3t.system.hub import hub_in_reach
from s3t.system.progress import taking_time

__all__ = ["LoadedModel", "build_base", "load_model", "save_model"]

_GIVE = (
    "give a hub name, a local folder in transformers' format, or make:vit, make:bert, "
    "make:roberta, make:gpt2, make:llama"
)
_UNUSABLE = (OSError, ValueError, LookupError, ImportError, AttributeError, SafetensorError)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A transformers model before it is taken apart, with its encoder."""

    model: PreTrainedModel
    encoder: TextEncoder | ImageEncoder


def load_model(config: Config, folder: Path | None = None) -> LoadedModel:
    """The model that the config names, or the one kept in ``folder``.

    Raises:
        InputError: the base cannot be loaded.
    """
    name = str(folder) if folder else config.model.base
    built = folder is None and name.startswith("make:")
    if config.model.quantization and quantizer_version() is None:
        raise InputError(
            f"model.quantization {config.model.quantization!r} needs bitsandbytes, which is not "
            "installed: pip install 's3t[quantized]', or leave it out"
        )
    away = not built and not Path(name).is_dir()
    if away and name.startswith((".", "/", "~")):
        raise InputError(f"model.base {name!r} cannot be loaded (there is no such folder): {_GIVE}")
    reach = hub_in_reach() if away else nullcontext("")
    with taking_time(f"loading {config.model.base}"), _no_bar(), reach as unreachable:
        try:
            model = build_model(config) if built else _pretrained(config, name)
            encoder = _encoder(config, model, None if built else name)
        except _UNUSABLE as error:
            reason = unreachable or " ".join(str(error).split())[:300]
            raise InputError(f"model.base {name!r} cannot be loaded ({reason}): {_GIVE}") from None
    if not all(hasattr(model.config, needed) for needed in ("num_hidden_layers", "hidden_size")):
        raise InputError(
            f"model.base {name!r} is a {type(model).__name__}, which has no list of layers of one "
            "width: use a transformer encoder or decoder"
        )
    if not replace_quantized(model):  # else weights have their type from when they were quantized
        model = model.to(getattr(torch, config.model.dtype))
    if not built:
        _take_home(model)
    return LoadedModel(model, encoder)


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file of weights, also where a notebook asks."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _take_home(model: PreTrainedModel) -> None:
    """Copy the weights into memory of this process. transformers maps their file, and a write to
    the file would change a base that serves."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


def save_model(
    loaded: LoadedModel, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model that was built or adapted by s3t, in transformers' format.

    Args:
        loaded: the model, with its encoder.
        folder: where.
        state: its weights by their names in the whole model, where it is taken apart.
    """
    loaded.model.save_pretrained(folder, state_dict=None if state is None else {**state})
    if isinstance(loaded.encoder, TextEncoder):
        loaded.encoder.tokenizer.save_pretrained(folder)


def build_base(config: Config, loaded: LoadedModel) -> Base:
    """Take the model apart at its layers (see ``Base``)."""
    text = isinstance(loaded.encoder, TextEncoder)
    targets = None if config.lora.targets == "auto" else config.lora.targets
    base = Base(
        loaded.model,
        language_model=config.generates,
        pooling=config.model.pooling,
        length=config.data.max_length if text else None,
        targets=() if config.prompt_tokens else targets,
    )
    if config.prompt_tokens:
        check_room(base, config.prompt_tokens)
    return base


def _pretrained(config: Config, name: str) -> PreTrainedModel:
    auto = AutoModelForCausalLM if config.generates else AutoModel
    options: dict[str, Any] = {} if Path(name).exists() else {"revision": config.model.revision}
    if config.model.quantization:
        options |= _quantized(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # transformers makes up what the files lack
        found: Any = auto.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **options
        )
    model: PreTrainedModel = found[0]
    kind = getattr(model.config, "quantization_config", None)
    asked = config.model.quantization
    if asked and getattr(kind, f"load_in_{asked}", None) is not True:
        raise ValueError(
            f"its files are quantized, and not to {asked}: leave model.quantization out"
        )
    # many checkpoints have no pooler, which no pass here goes through
    lacking = sorted(key for key in found[1]["missing_keys"] if "pooler" not in key)
    if lacking:
        raise ValueError(f"its files lack the weights {named(lacking)}")
    return model


def _quantized(config: Config) -> dict[str, Any]:
    """Options with which transformers loads a base in 8 or 4 bits. It is quantized on the CPU, even
    if it moves to a GPU later, so that its bytes are the same on all machines."""
    dtype = getattr(torch, config.model.dtype)
    bits: dict[str | None, dict[str, Any]] = {
        "8bit": {"load_in_8bit": True},
        "4bit": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": dtype,
        },
    }
    options: Any = BitsAndBytesConfig(**bits[config.model.quantization])
    return {"quantization_config": options, "dtype": dtype, "device_map": {"": "cpu"}}


def _encoder(
    config: Config, model: PreTrainedModel, name: str | None
) -> TextEncoder | ImageEncoder:
    if config.of_images:
        return _image_encoder(config, model, name)
    tokenizer: PreTrainedTokenizerBase = (
        byte_tokenizer()
        if name is None
        else AutoTokenizer.from_pretrained(name, revision=config.model.revision)
    )
    return TextEncoder(tokenizer, config.data.max_length, chat_of(config, tokenizer))


def _image_encoder(config: Config, model: PreTrainedModel, source: str | None) -> ImageEncoder:
    shape = model.config
    size = shape.image_size if isinstance(shape.image_size, int) else shape.image_size[0]
    if config.data.image_size not in (None, size):
        raise ValueError(f"data.image_size {config.data.image_size} is not the base's {size}")
    processor = _preprocessor(source)
    mean = config.data.image_mean or processor.get("image_mean") or (0.5,)
    std = config.data.image_std or processor.get("image_std") or (0.5,)
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) not in (1, shape.num_channels):
            raise ValueError(
                f"data.{name} has {len(values)} values, expected 1 or {shape.num_channels}"
            )
    return ImageEncoder(shape.num_channels, size, mean, std)


def _preprocessor(name: str | None) -> dict[str, Any]:
    """The base's own preprocessor_config.json: only its numbers are used."""
    if name is None:
        return {}
    path = Path(name) / "preprocessor_config.json"
    if not Path(name).exists():
        from transformers.utils.hub import cached_file

        cached = cached_file(name, path.name, _raise_exceptions_for_missing_entries=False)
        path = Path(cached) if cached else path
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values
