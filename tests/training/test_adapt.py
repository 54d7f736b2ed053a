"""A base is adapted to public rows whole, or by LoRA that is merged into its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from s3t.training.prepare.adapt import adapt_model
from tests.support.small_runs import Make
from tests.support.tiny import CLASSES, inputs_of, labelled, tiny_model

STEPS: dict[str, Any] = {"steps": 30, "batch_size": 8, "learning_rate": 1e-2}


def loss(model: Any, rows: Any) -> float:
    with torch.no_grad():
        logits = model(**inputs_of(rows)).logits[:, :-1].log_softmax(dim=2)
    each = -logits.gather(2, rows.values[:, 1:].unsqueeze(2)).squeeze(2) * rows.mask[:, 1:]
    return float(each.sum() / rows.mask[:, 1:].sum())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_lora_changes_the_linear_maps_of_the_layers_alone(make: Make, family: str) -> None:
    config = make(task="causal-lm", model={"base": f"make:{family}", "adapt": STEPS | {"rank": 2}})
    public = labelled(family, 24, 3, language_model=True)
    model, again, before = (tiny_model(family, language_model=True) for _ in range(3))
    adapt_model(config, model, public, 0)
    adapt_model(config, again, public, 0)
    assert [name for name, _ in model.named_modules()] == [n for n, _ in before.named_modules()]
    assert [*map(type, model.modules())] == [*map(type, before.modules())]
    maps = {
        f"{name}.weight"
        for name, module in before.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".lm_head" not in f".{name}"
    }
    old, other = before.state_dict(), again.state_dict()
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, old[name])}
    assert changed == maps
    assert all(torch.equal(one, other[name]) for name, one in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert loss(model, public.rows) < loss(before, public.rows) - 0.05


def test_merged_lora_of_a_classifier(make: Make) -> None:
    config = make(model={"base": "make:bert", "adapt": STEPS | {"rank": 2}})
    public, model, before = labelled("bert", 24, 3), tiny_model("bert"), tiny_model("bert")
    adapt_model(config, model, public, CLASSES)
    old = before.state_dict()
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, old[name])}
    assert changed and all("layer" in name and name.endswith("weight") for name in changed)
