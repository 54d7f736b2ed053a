"""What is measured of a model: what it still gives away, and what it is still worth.

    verbatim     TinyMem's measure: the prompt of a deleted row draws its next tokens out, exactly
    loss         membership inference by the loss alone
    reference    the same by the loss against that of the control, which never saw the rows
    accuracy     next tokens behind the prompt, on public rows of the task

0.5 is what an attack reaches on a model that never saw the rows. Below it the deleted rows look
*less* familiar than unseen ones, which gives them away as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.forgetting.learner import Logits, row_losses
from benchmarks.forgetting.rows import Rows, Task
from s3t.audit.leakage.extraction import Rate, rate, verbatim
from s3t.audit.leakage.membership import Attack, attack, loss_scores, reference_scores

__all__ = ["Figures", "Reference", "extracted", "measured", "reference_of"]

_PASS_ROWS = 64


@dataclass(frozen=True)
class Reference:
    """Losses of a model that never saw the deleted rows, by row."""

    deleted: Sequence[float]
    others: Sequence[float]


@dataclass(frozen=True)
class Figures:
    """One model's figures.

    Attributes:
        verbatim, verbatim_others: share of deleted rows, and of rows nobody saw, that come out.
        loss, reference: the attacks.
        accuracy: 0–1.
        test_loss, rest_loss, deleted_loss, others_loss: nats per token, mean of rows.
    """

    verbatim: Rate
    verbatim_others: Rate
    loss: Attack
    reference: Attack
    accuracy: float
    test_loss: float
    rest_loss: float
    deleted_loss: float
    others_loss: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def reference_of(logits: Logits, task: Task) -> Reference:
    """The losses of a control."""
    return Reference(
        row_losses(logits, task.forget).tolist(), row_losses(logits, task.others).tolist()
    )


def measured(logits: Logits, task: Task, reference: Reference) -> Figures:
    """All figures of a model.

    Args:
        logits: of the model.
        task: its rows.
        reference: of the control.
    """
    forget, others = task.forget, task.others
    inside, outside = row_losses(logits, forget).tolist(), row_losses(logits, others).tolist()
    by_loss = (loss_scores(inside), loss_scores(outside))
    by_reference = (
        reference_scores(inside, reference.deleted),
        reference_scores(outside, reference.others),
    )
    found = {
        name: attack(
            name,
            _scores(scores[0].tolist(), forget, task.by_person),
            _scores(scores[1].tolist(), others, task.by_person),
        )
        for name, scores in (("loss", by_loss), ("reference", by_reference))
    }
    return Figures(
        verbatim=extracted(logits, task, forget),
        verbatim_others=extracted(logits, task, others),
        loss=found["loss"],
        reference=found["reference"],
        accuracy=_accuracy(logits, task),
        test_loss=float(row_losses(logits, task.test).mean()),
        rest_loss=float(row_losses(logits, task.rest).mean()),
        deleted_loss=sum(inside) / len(inside),
        others_loss=sum(outside) / len(outside),
    )


def extracted(logits: Logits, task: Task, rows: Rows) -> Rate:
    """The share of rows that come out verbatim; those too short for prompt and answer are left."""
    long = rows.as_lists(task.prompt + task.answer)
    return rate(verbatim(logits, long, task.prompt, task.answer))


def _scores(scores: Sequence[float], rows: Rows, by_person: bool) -> list[float]:
    """The scores, or each person's mean: rows of one person are not independent."""
    if not by_person:
        return [*scores]
    of: dict[str, list[float]] = {}
    for person, score in zip(rows.persons, scores, strict=True):
        of.setdefault(person, []).append(score)
    return [sum(held) / len(held) for held in of.values()]


@torch.no_grad()
def _accuracy(logits: Logits, task: Task) -> float:
    right, count = 0, 0
    for part in torch.arange(len(task.test)).split(_PASS_ROWS):
        rows = task.test.at(part)
        answers = logits(rows.tokens)[:, task.prompt - 1 : -1].argmax(dim=2)
        real = rows.real[:, task.prompt :]
        right += int(((answers == rows.tokens[:, task.prompt :]) & real).sum())
        count += int(real.sum())
    return right / count
