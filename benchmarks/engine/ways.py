"""Ways of answering from the adapters of all shards, over the same weights and rows.

    single       one shard's adapter in peft: the yardstick
    sequential   peft: ``set_adapter`` and a forward pass, shard after shard
    mixed        peft: one pass of all rows for all shards, ``adapter_names`` telling which is whose
    stacked      s3t's ensemble
    merged       s3t's ensemble with ``aggregation.method: mean-adapters``: another answer

Adapters are drawn, since how long a pass takes does not depend on what they hold; each shard has a
head of its own. All ways but the last answer with the mean of the shards' probabilities, the single
one with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from s3t.config import Config
from s3t.model.adapters.peft import adapter_config
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT
from s3t.model.inputs.encoders import Encoded
from s3t.model.loading import build_base, load_model
from s3t.serving.ensemble.ensemble import Ensemble, Member

__all__ = ["SIDES", "Shards", "Way"]

SIDES = ("single", "sequential", "mixed", "stacked", "merged")
CLASSES = 10

Way = Callable[[Encoded], Tensor]
"""From encoded rows to class probabilities, [n, C]."""


class Shards:
    """The members of an ensemble, and the same in peft.

    Args:
        config: of the base and its adapters.
        count: shards m.
        share: part of the layers that carry adapters, from the top: 1 for full prefixes.
    """

    def __init__(self, config: Config, count: int, share: float) -> None:
        self._lora, self._rows = config.lora, config.data.max_length
        self.base: Base = build_base(config, load_model(config))
        self.lowest = round(self.base.depth * (1 - share))
        self.members = [self._member(shard) for shard in range(count)]
        self.scale = config.lora.scale
        self._peft = self._in_peft(config)

    def ways(self) -> Mapping[str, Way]:
        """Every way, by name."""
        stacked, merged = self.ensemble("mean-probabilities"), self.ensemble("mean-adapters")
        return {
            "single": self._single,
            "sequential": self._sequential,
            "mixed": self._mixed,
            "stacked": stacked.probabilities,
            "merged": merged.probabilities,
        }

    def ensemble(self, method: str) -> Ensemble:
        """A fresh ensemble of all members."""
        return Ensemble(self.base, self.members, self.scale, method, "uniform")

    def rows(self, count: int) -> Encoded:
        """Drawn rows; texts of full length, so that nobody has padding to leave out."""
        generator = torch.Generator().manual_seed(count)
        shape = self.base.model.config
        if hasattr(shape, "image_size"):
            size = (count, shape.num_channels, shape.image_size, shape.image_size)
            return Encoded(torch.randn(size, generator=generator), None)
        values = torch.randint(4, shape.vocab_size, (count, self._rows), generator=generator)
        return Encoded(values, torch.ones_like(values))

    def _member(self, shard: int) -> Member:
        generator = torch.Generator().manual_seed(shard)
        tensors: dict[str, Tensor] = {}
        for target in self.base.targets:
            if target.layer >= self.lowest:
                shapes = (
                    (self._lora.rank, target.inputs),
                    (target.outputs, self._lora.rank),
                )
                for name, size in zip((target.a, target.b), shapes, strict=True):
                    tensors[name] = torch.randn(size, generator=generator) * 0.05
        tensors[WEIGHT] = torch.randn(CLASSES, self.base.hidden_size, generator=generator)
        tensors[BIAS] = torch.zeros(CLASSES)
        return Member(shard, self.lowest, tensors, 1)

    # ── peft ─────────────────────────────────────────────────────────────────────────────────

    def _in_peft(self, config: Config) -> Any:
        model: Any = load_model(config).model.eval()
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # nobody asks for it
        targets = [target for target in self.base.targets if target.layer >= self.lowest]
        lora = adapter_config(model, targets, self._lora.rank, self._lora.alpha)
        adapted: Any = get_peft_model(model, lora, adapter_name="0")
        for member in self.members[1:]:
            adapted.add_adapter(str(member.shard), lora)
        layers = next(
            module
            for module in model.modules()
            if isinstance(module, nn.ModuleList) and len(module) == self.base.depth
        )
        with torch.no_grad():
            for target in targets:
                module: Any = layers[target.layer].get_submodule(target.path)
                for member in self.members:
                    name = str(member.shard)
                    module.lora_A[name].weight.copy_(member.tensors[target.a])
                    module.lora_B[name].weight.copy_(member.tensors[target.b])
        adapted.eval().requires_grad_(False)
        return adapted

    def _pooled(self, rows: Encoded, **more: Any) -> Tensor:
        """The first position after the last layer, through peft; [n, H]."""
        inputs = {"pixel_values": rows.values}
        if rows.mask is not None:
            inputs = {"input_ids": rows.values, "attention_mask": rows.mask}
        hidden: Tensor = self._peft(**inputs, **more).last_hidden_state
        return hidden[:, 0]

    def _chances(self, pooled: Tensor, shard: int) -> Tensor:
        held = self.members[shard].tensors
        return functional.linear(pooled, held[WEIGHT], held[BIAS]).softmax(dim=1)

    @torch.inference_mode()
    def _single(self, rows: Encoded) -> Tensor:
        return self._chances(self._pooled(rows), 0)

    @torch.inference_mode()
    def _sequential(self, rows: Encoded) -> Tensor:
        found = []
        for shard in reversed(range(len(self.members))):  # ends with the single one's adapter
            self._peft.set_adapter(str(shard), inference_mode=True)
            found.append(self._chances(self._pooled(rows), shard))
        return torch.stack(found).mean(dim=0)

    @torch.inference_mode()
    def _mixed(self, rows: Encoded) -> Tensor:
        count, members = len(rows), len(self.members)
        mask = None if rows.mask is None else rows.mask.repeat(members, 1)
        shape = (members, *[1] * (rows.values.ndim - 1))
        many = Encoded(rows.values.repeat(shape), mask)
        names = [str(shard) for shard in range(members) for _ in range(count)]
        pooled = self._pooled(many, adapter_names=names).view(members, count, -1)
        found = [self._chances(each, shard) for shard, each in enumerate(pooled)]
        return torch.stack(found).mean(dim=0)
