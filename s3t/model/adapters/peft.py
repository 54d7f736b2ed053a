"""Adapters in peft's format: from a node's lineage to peft, and back. The one door to peft.

    layers.003.attention.q_proj.lora_A  ◄──►  …layers.3.attention.q_proj.lora_A.default.weight

Invariant (E8, E9): the modules to adapt are named one by one, in full. peft's own
``layers_to_transform`` takes an empty list for all layers, and finds no layer of a headless
decoder, whose names begin with ``layers.``. An empty set of adapters is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from s3t.errors import InputError, named
from s3t.model.adapters.lora import LoraTarget, StackedLinear
from s3t.model.base import Base
from s3t.model.gates import find_layers

if TYPE_CHECKING:  # it is loaded where it is used, since it takes a second and loads bitsandbytes
    from peft import LoraConfig, PeftModel

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "adapter_config",
    "adapter_files",
    "from_peft",
    "load_adapter",
    "merge_into_base",
    "to_peft",
    "trainable",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER = "default"


def adapter_config(
    model: PreTrainedModel, targets: Sequence[LoraTarget], rank: int, alpha: float
) -> LoraConfig:
    """The LoRA config that adapts exactly ``targets`` of an untouched model.

    Raises:
        InputError: no target; an empty prefix is "no adapter", and is served by the base alone.
    """
    if not targets:
        raise InputError("no layer carries an adapter: there is nothing to give to peft")
    path, layers = _layers(model)
    maps = [layers[target.layer].get_submodule(target.path) for target in targets]
    return _config(path, targets, maps, rank, alpha, model.name_or_path or None)


def adapter_files(
    base: Base, tensors: Mapping[str, Tensor], rank: int, alpha: float, name: str
) -> dict[str, bytes]:
    """The files of an adapter, as ``PeftModel.from_pretrained`` reads them; always the same bytes.

    Args:
        base: that it adapts.
        tensors: adapters by s3t's names, of some or all layers; heads are passed over.
        rank, alpha: of all adapters.
        name: hub name or path of the base.

    Raises:
        InputError: as ``to_peft``.
    """
    chosen = [target for target in base.targets if target.a in tensors]
    _check(chosen, tensors, rank)
    if not chosen:
        raise InputError("no layer carries an adapter: there is nothing to give to peft")
    path, _ = _layers(base.model)
    config = _config(path, chosen, _inner(base, chosen), rank, alpha, name)
    config.task_type = "CAUSAL_LM" if base.lm_head is not None else None
    weights: dict[str, Tensor] = {}
    for target in chosen:
        place = f"base_model.model.{path}.{target.layer}.{target.path}"
        weights[f"{place}.lora_A.weight"] = tensors[target.a].detach().cpu().contiguous()
        weights[f"{place}.lora_B.weight"] = tensors[target.b].detach().cpu().contiguous()
    values: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    text = json.dumps(_plain(values), indent=2, sort_keys=True)
    content: bytes = save({one: weights[one] for one in sorted(weights)}, metadata={"format": "pt"})
    return {ADAPTER_CONFIG: text.encode() + b"\n", ADAPTER_WEIGHTS: content}


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter of a folder, as any user of peft loads it."""
    from peft import PeftModel

    adapted: PeftModel = PeftModel.from_pretrained(model, str(folder))
    adapted.eval()
    return adapted


def to_peft(
    model: PreTrainedModel,
    targets: Sequence[LoraTarget],
    tensors: Mapping[str, Tensor],
    rank: int,
    alpha: float,
) -> PeftModel:
    """Attach a lineage's adapters to an untouched model of the same base, in place.

    Args:
        model: a fresh transformers model; it becomes part of the answer.
        targets: all adapted maps of the base, see ``Base.targets``.
        tensors: adapters by s3t's names, of some or all layers; heads are passed over.
        rank, alpha: of all adapters.

    Raises:
        InputError: no adapter, half of one, one of another rank, or of none of the targets.
    """
    from peft import get_peft_model

    chosen = [target for target in targets if target.a in tensors]
    _check(chosen, tensors, rank)
    adapted = get_peft_model(model, adapter_config(model, chosen, rank, alpha))
    with torch.no_grad():
        for target, a, b in _pairs(model, chosen):
            a.copy_(tensors[target.a])
            b.copy_(tensors[target.b])
    adapted.eval()
    return adapted


def trainable(model: PreTrainedModel, rank: int) -> PeftModel:
    """Put fresh LoRA on all linear maps of a model's layers, in place, to be trained.

    Args:
        model: transformers' own, untouched. Called as before, it answers with the adapters.
        rank: of each; alpha is twice as much. A is drawn from torch's generator, B is zero.
    """
    from peft import LoraConfig, get_peft_model

    path, layers = _layers(model)
    maps = [
        f"{path}.{number}.{name}"
        for number, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    turned = any(isinstance(module, Conv1D) for module in layers.modules())
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=maps, fan_in_fan_out=turned, bias="none"
    )
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def merge_into_base(adapted: PeftModel) -> None:
    """Add the adapters to the weights of the model that they lie on, which is whole again."""
    adapted.merge_and_unload()  # peft forwards it to its tuner


def from_peft(model: PeftModel, targets: Sequence[LoraTarget]) -> dict[str, Tensor]:
    """The adapters of a PeftModel, by s3t's names; copies, on the CPU."""
    tensors = {}
    for target, a, b in _pairs(model.get_base_model(), targets):
        tensors[target.a] = a.detach().cpu().clone()
        tensors[target.b] = b.detach().cpu().clone()
    return tensors


def _config(
    path: str,
    targets: Sequence[LoraTarget],
    maps: Iterable[nn.Module],
    rank: int,
    alpha: float,
    name: str | None,
) -> LoraConfig:
    from peft import LoraConfig

    whole = int(alpha) if alpha == int(alpha) else alpha  # engines expect a whole number
    return LoraConfig(
        base_model_name_or_path=name,
        r=rank,
        lora_alpha=whole,  # type: ignore[arg-type]  # peft divides it by r, whatever its type
        target_modules=[f"{path}.{target.layer}.{target.path}" for target in targets],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in maps),
        bias="none",
        inference_mode=True,
    )


def _inner(base: Base, targets: Sequence[LoraTarget]) -> list[nn.Module]:
    """The linear maps of a base that was taken apart, without what stacks adapters on them."""
    found = [base.layers[target.layer].get_submodule(target.path) for target in targets]
    return [module.inner if isinstance(module, StackedLinear) else module for module in found]


def _plain(value: Any) -> Any:
    """As JSON values, always in the same order: peft keeps names in sets."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path of the list of layers in the whole model, and the list."""
    assert isinstance(model, PreTrainedModel)
    owner, name = find_layers(model.base_model, model.config.num_hidden_layers)
    layers = getattr(owner, name)
    return next(path for path, module in model.named_modules() if module is layers), layers


def _pairs(
    model: nn.Module, targets: Sequence[LoraTarget]
) -> list[tuple[LoraTarget, Tensor, Tensor]]:
    """A and B of each target that peft has adapted."""
    _, layers = _layers(model)
    found: list[tuple[LoraTarget, Tensor, Tensor]] = []
    for target in targets:
        weights = dict(layers[target.layer].get_submodule(target.path).named_parameters())
        if f"lora_A.{_ADAPTER}.weight" in weights:
            a, b = (weights[f"{half}.{_ADAPTER}.weight"] for half in ("lora_A", "lora_B"))
            found.append((target, a, b))
    return found


def _check(chosen: Sequence[LoraTarget], tensors: Mapping[str, Tensor], rank: int) -> None:
    known = {name for target in chosen for name in (target.a, target.b)}
    adapters = {name for name in tensors if name.endswith(("lora_A", "lora_B"))}
    if adapters != known:
        raise InputError(
            f"adapters {named(sorted(adapters ^ known))} have no map of the base, or lack their "
            "other half: give the lineage of a node of this base"
        )
    for target in chosen:
        shapes = tensors[target.a].shape, tensors[target.b].shape
        if shapes != ((rank, target.inputs), (target.outputs, rank)):
            raise InputError(
                f"{target.a} is {list(shapes[0])} and its B {list(shapes[1])}, expected rank "
                f"{rank}: give the rank that the node was trained with"
            )
