"""One base with one LoRA adapter: trained, measured, put back.

Invariants: the base is never changed; a fine-tune depends on its rows, recipe and seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from benchmarks.forgetting.rows import Recipe, Rows

__all__ = ["Learner", "Logits", "batches", "fit", "real_mean", "row_losses"]

Logits = Callable[[Tensor], Tensor]
"""From tokens [n, t] to the logits of each next one [n, t, V]."""

_MEASURED_ROWS = 64
"""Rows of one pass without gradients."""


class Learner:
    """A base and its adapter, in evaluation mode throughout: nothing in it draws.

    Args:
        base: folder of the base.
        recipe: rank and targets of the adapter.
    """

    def __init__(self, base: Path, recipe: Recipe) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        adapter = LoraConfig(
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=list(recipe.targets),
            fan_in_fan_out=any(isinstance(part, Conv1D) for part in model.modules()),
            bias="none",
        )
        self.model: nn.Module = get_peft_model(model, adapter).eval()
        self.weights: dict[str, nn.Parameter] = {
            name: weight for name, weight in self.model.named_parameters() if weight.requires_grad
        }

    def fresh(self, seed: int) -> None:
        """An adapter that does nothing yet: A drawn as in the LoRA paper's code, B zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.weights.items():
                if "lora_A" in name:
                    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
                else:
                    weight.zero_()

    def state(self) -> dict[str, Tensor]:
        """A copy of the adapter."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put an adapter back."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[name])

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of each next token, [n, t, V]."""
        found: Tensor = self.model(input_ids=tokens).logits
        return found

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """The same without gradients."""
        return self.forward(tokens)

    def losses(self, rows: Rows) -> Tensor:
        """Mean loss per token of each row, [n], with gradients."""
        return real_mean(self.forward(rows.tokens), rows)


def real_mean(logits: Tensor, rows: Rows) -> Tensor:
    """Mean of −log p of each row's real next tokens, [n]."""
    each = functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), rows.tokens[:, 1:], reduction="none"
    )
    real = rows.real[:, 1:]
    return (each * real).sum(dim=1) / real.sum(dim=1)


@torch.no_grad()
def row_losses(logits: Logits, rows: Rows) -> Tensor:
    """Mean loss per token of each row, [n]."""
    parts = torch.arange(len(rows)).split(_MEASURED_ROWS)
    return torch.cat([real_mean(logits((some := rows.at(part)).tokens), some) for part in parts])


def batches(rows: Rows, size: int, generator: torch.Generator) -> list[Rows]:
    """The rows of one epoch, in drawn order."""
    order = torch.randperm(len(rows), generator=generator)
    return [rows.at(part) for part in order.split(size)]


def fit(learner: Learner, rows: Rows, recipe: Recipe, seed: int, epochs: int | None = None) -> None:
    """Train the adapter as it stands on some rows.

    Args:
        learner: whose adapter is trained.
        rows: what it is trained on.
        recipe: batch, rate and, unless given, epochs.
        seed: of the order of the rows.
        epochs: if not the recipe's.
    """
    epochs = recipe.epochs if epochs is None else epochs
    generator = torch.Generator().manual_seed(seed)
    trained = [*learner.weights.values()]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.0)
    total = epochs * -(-len(rows) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, total))
    for _ in range(epochs):
        for batch in batches(rows, recipe.batch, generator):
            optimizer.zero_grad()
            learner.losses(batch).mean().backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
