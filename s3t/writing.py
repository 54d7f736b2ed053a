"""Texts continued, token by token, with the mixture of the shards' next-token distributions.

    rows ─► padded to a multiple of 16 ─► ensemble ─► a token each ─► rows, one longer ─► …

Invariant: a text that is given as one comes from one view, none of whose nodes had died by its last
token; one that is given in pieces comes token by token from what lived at each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.ensemble import Ensemble
from s3t.model.encode import TextEncoder
from s3t.types import Draw

__all__ = ["Completion", "Piece", "Spoilt", "Step", "Writer"]

_HALF = "\ufffd"
"""What the decoder writes for the first bytes of a letter."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One continued text, without its prompt, and the view."""

    completion: str
    view: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to a text, and the view that the token is from."""

    text: str
    view: int


class Spoilt(Exception):
    """Nodes of the view that a text is from have died before it was whole: it is begun anew."""


Step = Callable[[Ensemble, int], tuple[int, int]]
"""The next token of an ensemble at a view, and that view."""


class Writer:
    """Writes with one tokenizer."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def completions(
        self,
        ensemble: Ensemble,
        prompts: Sequence[Sequence[int]],
        draw: Draw,
        view: int,
        spoilt: Callable[[], bool],
    ) -> list[Completion]:
        """Continue token ids, all prompts in step.

        Args:
            ensemble: of the view.
            prompts: token ids, without the closing one.
            draw: how.
            view: the view.
            spoilt: asked before each token, so that a deletion need not wait for whole texts.

        Raises:
            Spoilt: ``spoilt`` said so.
        """
        rows = [list(ids) for ids in prompts]
        open_rows = list(range(len(rows)))
        generator = torch.Generator().manual_seed(draw.seed)
        for _ in range(draw.max_new_tokens):
            if not open_rows:
                break
            if spoilt():
                raise Spoilt
            tokens = self._next(ensemble, [rows[at] for at in open_rows], draw, generator)
            for at, token in zip(list(open_rows), tokens, strict=True):
                if self._ends(token):
                    open_rows.remove(at)
                else:
                    rows[at].append(token)
        return [
            Completion(self._encoder.decode(row[len(prompt) :]), view)
            for row, prompt in zip(rows, prompts, strict=True)
        ]

    def pieces(
        self, prompt: Sequence[int], draw: Draw, answer: Callable[[Step], tuple[int, int]]
    ) -> Iterator[Piece]:
        """Continue one text, and give it as it grows.

        Args:
            prompt: token ids, without the closing one.
            draw: how.
            answer: has a step done on what serves at that moment, anew if that dies meanwhile.
        """
        row, told = list(prompt), ""
        generator = torch.Generator().manual_seed(draw.seed)
        for left in reversed(range(draw.max_new_tokens)):
            before = generator.get_state()

            def step(ensemble: Ensemble, view: int, before: Tensor = before) -> tuple[int, int]:
                generator.set_state(before)  # the same draw if it is done anew
                return self._next(ensemble, [row], draw, generator)[0], view

            token, view = answer(step)
            ended = self._ends(token)
            if not ended:
                row.append(token)
            text = self._encoder.decode(row[len(prompt) :])
            if left and not ended:
                text = text.rstrip(_HALF)
            yield Piece(text[len(told) :], view)
            told = text
            if ended:
                return

    def _ends(self, token: int) -> bool:
        return bool(token == self._encoder.tokenizer.eos_token_id)

    def _next(
        self,
        ensemble: Ensemble,
        rows: Sequence[Sequence[int]],
        draw: Draw,
        generator: torch.Generator,
    ) -> list[int]:
        longest = max(len(row) for row in rows)
        padded = self._encoder.pad(rows, -(-longest // 16) * 16)
        return _pick(ensemble.next_token(padded), draw, generator)


def _pick(logs: Tensor, draw: Draw, generator: torch.Generator) -> list[int]:
    if draw.temperature == 0:
        return [int(token) for token in logs.argmax(dim=1)]
    chances = (logs.float() / draw.temperature).softmax(dim=1)
    return [int(t) for t in torch.multinomial(chances, 1, generator=generator).squeeze(1)]
