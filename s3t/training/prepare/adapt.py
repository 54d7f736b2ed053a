"""What is trained on public data, before any private sample: the base, and the fallback's head.

Invariant: no private row comes here (E5), so nothing made here ever has to be forgotten. One
thread, seeds from the config: the same config gives the same base.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from s3t.config import AdaptConfig, Config
from s3t.model.adapters.peft import merge_into_base, trainable
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT
from s3t.model.inputs.encoders import Encoded
from s3t.training.node.optimizer import StackedOptimizer, learning_rate
from s3t.training.node.rows import Batches, LabelledSet
from s3t.types import NodeKey, digest

__all__ = ["adapt_model", "public_head"]

_HEAD_EPOCHS = 30
_CHUNK = 64


def adapt_model(
    config: Config,
    model: PreTrainedModel,
    public: LabelledSet,
    classes: int,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Train the base on the public ``adapt`` rows, in place: all weights, or LoRA that is merged.

    AdamW, one-cycle learning rate, gradients clipped at 1. Classification uses a head that is
    thrown away, images on the first token or on the mean of all if the config pools so, texts on
    the mean; a language model predicts the next token.

    Args:
        config: ``model.adapt`` says how.
        model: the base, trained in its own dtype.
        public: public rows.
        classes: number of labels; 0 for a language model.
        on_step: told after each step.
    """
    adapt = config.model.adapt
    assert adapt is not None
    turns = 3 if adapt.rotations else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = nn.Linear(model.config.hidden_size, max(1, classes * turns))
        model.requires_grad_(adapt.rank is None)
        tuned = None if adapt.rank is None else trainable(model, adapt.rank)
        model.train()
        _descend(config, adapt, model, head, public, on_step)
        if tuned is not None:
            merge_into_base(tuned)
    model.zero_grad(set_to_none=True)
    model.eval().requires_grad_(False)


def public_head(config: Config, base: Base, public: LabelledSet, classes: int) -> dict[str, Tensor]:
    """Linear head on the frozen base from public rows: what answers when all shards are exhausted.

    Returns:
        weight [C, H] and bias [C].
    """
    features = torch.cat([_features(base, public.rows, part) for part in _chunks(len(public))])
    key = NodeKey(digest({"public head": base.fingerprint, "seed": config.seed}))
    batches = Batches(key, torch.arange(len(public)), 32, _HEAD_EPOCHS)
    zeros = {WEIGHT: torch.zeros(classes, base.hidden_size), BIAS: torch.zeros(classes)}
    recipe = config.stage.model_copy(
        update={"optimizer": "adamw", "schedule": "linear", "learning_rate": 1e-2, "warmup": 0.0}
    )
    slots = StackedOptimizer([zeros], recipe, base.device)
    rate = learning_rate(recipe, batches.steps)
    assert public.labels is not None
    for step in range(batches.steps):
        index, weights = batches.at(step)
        rows, leaves = features[index], slots.leaves
        logits = torch.baddbmm(leaves[BIAS].unsqueeze(1), rows[None], leaves[WEIGHT].mT)[0]
        each = functional.cross_entropy(
            logits, public.labels[index].to(base.device), reduction="none"
        )
        weights = weights.to(base.device)
        slots.add((each * weights).sum() / weights.sum())
        slots.step(torch.tensor([rate(step)]))
    return slots.take(0)


def _descend(
    config: Config,
    adapt: AdaptConfig,
    model: PreTrainedModel,
    head: nn.Linear,
    public: LabelledSet,
    on_step: Callable[[], None],
) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    parameters = [*filter(lambda one: one.requires_grad, model.parameters()), *head.parameters()]
    # fused, since the other ways take roots that MKL's vector functions round by the processor
    optimizer = torch.optim.AdamW(parameters, lr=adapt.learning_rate, weight_decay=0.01, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=adapt.learning_rate, total_steps=adapt.steps
    )
    for _ in range(adapt.steps):
        index = torch.randint(0, len(public), (adapt.batch_size,), generator=generator)
        rows = public.rows.rows(index)
        labels = None if public.labels is None else public.labels[index]
        if adapt.rotations:
            assert labels is not None
            turn = torch.randint(1, 4, (adapt.batch_size,), generator=generator)
            rows, labels = _rotated(rows, turn), labels * 3 + turn - 1
        if adapt.shift:
            moves = torch.randint(
                0, 2 * adapt.shift + 1, (adapt.batch_size, 2), generator=generator
            )
            rows = _shifted(rows, moves, adapt.shift)
        optimizer.zero_grad()
        loss = _public_loss(config, model, head, rows, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        on_step()


def _public_loss(
    config: Config, model: PreTrainedModel, head: nn.Linear, rows: Encoded, labels: Tensor | None
) -> Tensor:
    if rows.mask is None:
        hidden = model(pixel_values=rows.values)[0]
        assert labels is not None
        pooled = hidden.mean(dim=1) if config.model.pooling == "mean" else hidden[:, 0]
        return functional.cross_entropy(head(pooled), labels)
    if labels is None:
        targets = rows.values.masked_fill(rows.scored == 0, -100)
        loss: Tensor = model(input_ids=rows.values, attention_mask=rows.mask, labels=targets).loss
        return loss
    hidden = model(input_ids=rows.values, attention_mask=rows.mask)[0]
    weight = rows.mask.unsqueeze(2)
    return functional.cross_entropy(head((hidden * weight).sum(1) / weight.sum(1)), labels)


def _rotated(rows: Encoded, turns: Tensor) -> Encoded:
    """Each image turned by its number of right angles."""
    turned = torch.stack(
        [
            torch.rot90(image, int(turn), (1, 2))
            for image, turn in zip(rows.values, turns, strict=True)
        ]
    )
    return Encoded(turned, None)


def _shifted(rows: Encoded, moves: Tensor, reach: int) -> Encoded:
    """Each image moved by up to ``reach`` pixels; its border is drawn out."""
    size = rows.values.shape[-1]
    wide = functional.pad(rows.values, (reach,) * 4, mode="replicate")
    moved = torch.stack(
        [
            image[:, down : down + size, right : right + size]
            for image, (down, right) in zip(wide, moves.tolist(), strict=True)
        ]
    )
    return Encoded(moved, None)


@torch.no_grad()
def _features(base: Base, rows: Encoded, part: Tensor) -> Tensor:
    chosen = rows.rows(part).to(base.device)
    return base.features(base.start(chosen), 0, chosen.mask).float()


def _chunks(count: int) -> list[Tensor]:
    return list(torch.arange(count).split(_CHUNK))
