"""The probe of an adapter: a few random rows, and what the run answers to them under the adapter.

    export   rows of a fixed seed ─► the run's own forward pass ─► NAME/probe/probe.safetensors
    check    the same rows ─► transformers + peft, from the files alone ─► greatest difference

Invariant: a probe holds random pixels or token ids, never a row of data. It lies in a folder of its
own, because some engines read every safetensors file beside an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from s3t.errors import InputError, IntegrityError
from s3t.model.adapters.lora import Bank, adapted
from s3t.model.adapters.peft import load_adapter
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT, classify, language_logits
from s3t.model.inputs.encoders import Encoded
from s3t.run.files.exports import MANIFEST

__all__ = [
    "HEAD",
    "PROBE",
    "TOLERANCES",
    "Checked",
    "answers",
    "bank_of",
    "check_folder",
    "pack_probe",
    "probe_rows",
    "random_tokens",
    "read_probe",
]

PROBE = "probe/probe.safetensors"
HEAD = "head.safetensors"

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Greatest difference of logits allowed, by the base's type: times the greatest logit expected."""

_ROWS, _TOKENS = 3, 16


@dataclass(frozen=True, slots=True)
class Checked:
    """One adapter, loaded from disk by transformers and peft.

    Attributes:
        name: of the adapter.
        difference: greatest absolute difference of logits from those of the run.
        tolerance: what it may be.
    """

    name: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether it answers as the run does."""
        return self.difference <= self.tolerance  # False for no number too


def probe_rows(base: Base, vocabulary: int) -> Encoded:
    """Random rows of the shape that a base takes, the same ones each time.

    Args:
        base: the base.
        vocabulary: token ids are below this number; 0 for images.
    """
    generator, config = torch.Generator().manual_seed(0), base.model.config
    if base.length is None:
        size = config.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return Encoded(torch.randn((_ROWS, config.num_channels, *sides), generator=generator), None)
    values = random_tokens(base, vocabulary, _ROWS)
    length = values.shape[1]
    mask = torch.ones_like(values)
    for row in range(1, _ROWS):
        mask[row, length - row * length // 4 :] = 0
    padding = getattr(config, "pad_token_id", None) or 0
    return Encoded(torch.where(mask.bool(), values, padding), mask)


def random_tokens(base: Base, vocabulary: int, rows: int) -> Tensor:
    """Random token ids below ``vocabulary``, the same ones each time; [rows, places]."""
    generator, config = torch.Generator().manual_seed(0), base.model.config
    assert base.length is not None
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    usable = torch.tensor([one for one in range(vocabulary) if one not in special])
    shape = rows, min(_TOKENS, base.length)
    return usable[torch.randint(0, len(usable), shape, generator=generator)]


def bank_of(base: Base, tensors: Mapping[str, Tensor], scale: float) -> Bank:
    """A bank of one lane.

    Args:
        base: the base.
        tensors: of an adapter by s3t's names; empty to adapt nothing.
        scale: alpha / rank.
    """
    pairs = {
        (target.layer, target.path): (
            tensors[target.a][None].to(base.device),
            tensors[target.b][None].to(base.device),
        )
        for target in base.targets
        if target.a in tensors
    }
    return Bank(1, pairs, scale)


@torch.inference_mode()
def answers(base: Base, tensors: Mapping[str, Tensor], scale: float, rows: Encoded) -> Tensor:
    """The run's logits under one adapter: of the classes, or of the token after each row; [n, C].

    Args:
        base: the base.
        tensors: adapters by s3t's names, and the head if there is one.
        scale: alpha / rank.
        rows: n rows.
    """
    rows = rows.to(base.device)
    with adapted(bank_of(base, tensors, scale)):
        hidden = base.start(rows)
        if base.lm_head is None:
            head = {name: tensors[name][None].to(base.device) for name in (WEIGHT, BIAS)}
            return classify(base.features(hidden, 0, rows.mask), head)[0].cpu()
        hidden = base.run(hidden, 0, base.depth, base.attention(rows.mask))
        assert rows.mask is not None
        places = torch.arange(len(rows), device=hidden.device)
        last = hidden[places, rows.mask.sum(dim=1) - 1]
        return language_logits(base, last.unsqueeze(1)).squeeze(1).cpu()


def pack_probe(rows: Encoded, logits: Tensor, more: Mapping[str, Tensor]) -> bytes:
    """The file of a probe, and what else is to lie in it."""
    tensors = {"inputs": rows.values.contiguous(), "logits": logits.contiguous(), **more}
    if rows.mask is not None:
        tensors["mask"] = rows.mask.contiguous()
    content: bytes = save(tensors)
    return content


def read_probe(folder: Path) -> dict[str, Tensor]:
    """The probe of an adapter: ``inputs``, ``logits``, and for texts ``mask``.

    Raises:
        IntegrityError: it cannot be read.
    """
    path = folder / PROBE
    try:
        found: dict[str, Tensor] = load(path.read_bytes())
        missing = {"inputs", "logits"} - found.keys()
    except (OSError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}): export the run again") from None
    if missing:
        raise IntegrityError(f"{path} holds no {', '.join(missing)}: export the run again")
    return found


def check_folder(folder: Path) -> list[Checked]:
    """Load every adapter of an exported folder as users of peft do, and compare its answers.

    Nothing of the run is needed but its base.

    Raises:
        InputError: it is no such folder, or its base cannot be loaded here.
        IntegrityError: an adapter cannot be loaded.
    """
    try:
        document: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        base, adapters = document["base"], document["adapters"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} is no export ({MANIFEST}: {error}): make one with s3t export RUN {folder}"
        ) from None
    if base.get("quantization"):
        raise InputError(
            f"the base of {folder} is quantized to {base['quantization']}, and other "
            "libraries compute with such weights differently: there is no check for it"
        )
    return [*_checked(folder, base, adapters, document["task"])]


def _checked(
    folder: Path, base: Mapping[str, Any], adapters: list[dict[str, Any]], task: str
) -> Iterator[Checked]:
    plain = _plain_base(base, task) if adapters else None
    for one in adapters:
        place = folder / one["name"]
        probe = read_probe(place)
        assert plain is not None
        try:
            model = load_adapter(plain, place)
            found = _plain_answers(model, probe, place, one.get("pooling"))
            plain = model.unload()  # the base as it was
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise IntegrityError(
                f"{place} cannot be loaded ({reason}): export the run again"
            ) from None
        expected = probe["logits"]
        difference = float((found - expected).abs().max())
        allowed = TOLERANCES[base["dtype"]] * max(1.0, float(expected.abs().max()))
        yield Checked(one["name"], difference, allowed)


def _plain_base(base: Mapping[str, Any], task: str) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM if task == "causal-lm" else AutoModel
    options: dict[str, Any] = {"dtype": getattr(torch, base["dtype"])}
    if base["revision"] is not None:
        options["revision"] = base["revision"]
    try:
        model: PreTrainedModel = auto.from_pretrained(base["name"], **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the base {base['name']!r} cannot be loaded ({reason})") from None
    model.eval()
    return model


@torch.inference_mode()
def _plain_answers(
    model: Any, probe: Mapping[str, Tensor], place: Path, pooling: str | None
) -> Tensor:
    """Logits [n, C] by transformers and peft alone, computed as the manifest says.

    Args:
        model: with the adapter.
        probe: ``inputs``, and ``mask`` for texts.
        place: folder of the adapter.
        pooling: of the head's features; None for a language model, whose next token is taken.
    """
    inputs, mask = probe["inputs"], probe.get("mask")
    if mask is None:
        out = model(pixel_values=inputs.to(next(model.parameters()).dtype))
    else:
        out = model(input_ids=inputs, attention_mask=mask)
    if pooling is None:
        assert mask is not None
        last = mask.sum(dim=1) - 1
        logits: Tensor = out.logits[torch.arange(len(last)), last].float()
        return logits
    head = load_file(place / HEAD)
    hidden = out.last_hidden_state
    real = hidden.new_ones(hidden.shape[:2], dtype=torch.long) if mask is None else mask  # [n, T]
    if pooling == "first":
        features = hidden[:, 0]
    elif pooling == "last":
        features = hidden[torch.arange(len(hidden)), real.sum(dim=1) - 1]
    elif pooling == "mean":
        weight = real[:, :, None].to(hidden.dtype)
        features = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    else:
        raise ValueError(f"pooling {pooling!r} is unknown")
    found: Tensor = features.float() @ head["weight"].t() + head["bias"]
    return found
