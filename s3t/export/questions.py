"""The prompts by which an engine's answers tell an adapter from the base and from all others.

    export   random rows ─► likeliest tokens after each of their places, under the adapter and
             under the base ─► beside the probe
    sync     the places where it is furthest from base and others ─► asked ─► how far off is it?

All logits of a large vocabulary would be larger than an adapter, so only the likeliest tokens are
kept. Engines return one token and its log probability. For a token that is not kept, the least log
probability that is kept is assumed, so a difference is never overstated.

Invariant: the rows are random token ids, as in ``probe``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from s3t.errors import IntegrityError
from s3t.export.probe import bank_of, random_tokens, read_probe
from s3t.model.adapters.lora import adapted
from s3t.model.base import Base
from s3t.model.head import language_logits
from s3t.model.inputs.encoders import Encoded

__all__ = ["Expected", "Likely", "Questions", "choose", "pack_questions", "read_questions"]

_ROWS, _KEPT, _ASKED = 16, 32, 8


@dataclass(frozen=True, eq=False)
class Likely:
    """The likeliest tokens after each place of some rows, likeliest first.

    Attributes:
        tokens: their ids; [rows, places, k].
        logs: their log probabilities in nats; [rows, places, k].
    """

    tokens: Tensor
    logs: Tensor

    def gap(self, tokens: Tensor, logs: Tensor) -> Tensor:
        """How far an answer is from what is expected here, in nats, at each place.

        Args:
            tokens: that were taken; [rows, places].
            logs: their log probabilities; [rows, places].
        """
        same = self.tokens == tokens[..., None]
        known, least = same.any(dim=-1), self.logs[..., -1]
        expected = torch.where(known, (self.logs * same).sum(dim=-1), least)
        off = logs - expected
        off = torch.where(known, off.abs(), off.clamp(min=0))
        return torch.maximum(off, self.logs[..., 0] - expected)

    def after(self, rows: Sequence[int], places: Sequence[int]) -> Likely:
        """Those of some places alone; [1, places, k]."""
        return Likely(self.tokens[rows, places][None], self.logs[rows, places][None])


@dataclass(frozen=True, eq=False)
class Expected:
    """The likeliest next tokens that the run gives at each position of some texts.

    Attributes:
        rows: token ids of the texts; [rows, places].
        own, base: next tokens with the adapter, and of the base alone; [rows, places, k].
    """

    rows: Tensor
    own: Likely
    base: Likely


@dataclass(frozen=True, eq=False)
class Questions:
    """What to ask of an adapter.

    Attributes:
        prompts: token ids.
        own, base: what the run answers; [1, prompts, k].
        others: what it answers under other adapters, by their names.
        nearest: the name of that which is nearest; None: the base.
        apart: how far that is, in nats, at the prompt where it is furthest.
    """

    prompts: list[list[int]]
    own: Likely
    base: Likely
    others: Mapping[str, Likely]
    nearest: str | None
    apart: float


def choose(expected: Expected, others: Mapping[str, Expected]) -> Questions:
    """The prompts at which an adapter is furthest from the base and from all others.

    Args:
        expected: of the adapter.
        others: of all from which it must be told, by their names.

    Raises:
        IntegrityError: the others were asked other rows.
    """
    if not all(torch.equal(one.rows, expected.rows) for one in others.values()):
        raise IntegrityError("the adapters have probes of several kinds: export the run again")
    rivals = [expected.base, *(one.own for one in others.values())]
    gaps = [expected.own.gap(one.tokens[..., 0], one.logs[..., 0]) for one in rivals]
    apart = torch.stack(gaps).flatten(1)
    best, chosen = torch.zeros(len(rivals), dtype=apart.dtype), list[int]()
    for _ in range(min(_ASKED, apart.shape[1])):
        # what is furthest from the nearest; among equals, what is furthest from all
        reached = torch.maximum(best[:, None], apart).amin(dim=0) + 1e-3 * apart.mean(dim=0)
        reached[chosen] = -1
        chosen.append(int(reached.argmax()))
        best = torch.maximum(best, apart[:, chosen[-1]])
    length, nearest = expected.rows.shape[1], int(best.argmin())
    rows, places = [at // length for at in chosen], [at % length for at in chosen]
    return Questions(
        prompts=[
            expected.rows[row, : place + 1].tolist()
            for row, place in zip(rows, places, strict=True)
        ],
        own=expected.own.after(rows, places),
        base=expected.base.after(rows, places),
        others={name: one.own.after(rows, places) for name, one in others.items()},
        nearest=[None, *others][nearest],
        apart=float(best[nearest]),
    )


def pack_questions(
    base: Base, tensors: Mapping[str, Tensor], scale: float, vocabulary: int
) -> dict[str, Tensor]:
    """What lies beside a probe, by name.

    Args:
        base: a language model.
        tensors: the adapter by s3t's names.
        scale: alpha / rank.
        vocabulary: token ids are below this number.
    """
    rows = random_tokens(base, vocabulary, _ROWS)
    own, plain = _likely(base, tensors, scale, rows), _likely(base, {}, scale, rows)
    return {
        "rows": rows,
        "own_tokens": own.tokens,
        "own_logs": own.logs,
        "base_tokens": plain.tokens,
        "base_logs": plain.logs,
    }


def read_questions(folder: Path) -> Expected:
    """What the run answers under an exported adapter.

    Raises:
        IntegrityError: it cannot be read.
    """
    found = read_probe(folder)
    try:
        own, base = (
            Likely(found[f"{kind}_tokens"], found[f"{kind}_logs"].double())
            for kind in ("own", "base")
        )
        return Expected(found["rows"], own, base)
    except KeyError as error:
        raise IntegrityError(
            f"the probe of {folder} holds no {error}: remove that folder, and export the run again"
        ) from None


@torch.inference_mode()
def _likely(base: Base, tensors: Mapping[str, Tensor], scale: float, rows: Tensor) -> Likely:
    tokens, logs = [], []
    with adapted(bank_of(base, tensors, scale)):
        for row in rows[:, None]:  # one at a time: the logits of all would fill the memory
            encoded = Encoded(row, torch.ones_like(row)).to(base.device)
            hidden = base.start(encoded)
            hidden = base.run(hidden, 0, base.depth, base.attention(encoded.mask))
            found = language_logits(base, hidden)[0].double().log_softmax(dim=-1).cpu()
            best = found.topk(min(_KEPT, found.shape[-1]), dim=-1)
            tokens.append(best.indices)
            logs.append(best.values)
    return Likely(torch.stack(tokens), torch.stack(logs).float())
