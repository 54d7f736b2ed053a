"""Texts continued, token by token, with the mixture of the shards' next-token distributions.

    rows ─► ensemble ─► a token each ─► rows, one longer ─► …
              └─ keeps keys and values of what it has read, for as long as it lives (``decoding``)

Where nothing can be kept (a base whose layers do not take it, members with prompts of their own)
each token is computed from the whole text anew; the mixture is the same within rounding.

Invariant: a text that is given as one comes from one view, none of whose nodes had died by its last
token; one that is given in pieces comes token by token from what lived at each. Nothing here holds
what an ensemble computed: it goes with the ensemble, or with the text.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s3t.model.inputs.encoders import TextEncoder
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.serving.generation.kv_steps import Steps
from s3t.types import Draw

__all__ = ["Completion", "Piece", "Step", "ViewHit", "Writer"]

_HALF = "\ufffd"
"""What the decoder writes for the first bytes of a letter."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One continued text, without its prompt, the view, and what the text is in tokens."""

    completion: str
    view: int
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to a text, the view that the token is from, and the token; None if the
    text ends there."""

    text: str
    view: int
    token: int | None = None


class ViewHit(Exception):
    """Nodes of the view that a text is from have died before it was whole: it is begun anew."""


Step = Callable[[Ensemble, int], tuple[int, int]]
"""The next token of an ensemble at a view, and that view."""


class Writer:
    """Writes with one tokenizer.

    Args:
        encoder: of the base.
        steps: its layers on new tokens alone; None if texts are run whole for each token.
    """

    def __init__(self, encoder: TextEncoder, steps: Steps | None = None) -> None:
        self._encoder, self._steps = encoder, steps

    def completions(
        self,
        ensemble: Ensemble,
        prompts: Sequence[Sequence[int]],
        draw: Draw,
        view: int,
        is_hit: Callable[[], bool],
    ) -> list[Completion]:
        """Continue token ids, all prompts in step, or as many as an ensemble keeps at once.

        Args:
            ensemble: of the view.
            prompts: token ids, without the closing one.
            draw: how.
            view: the view.
            is_hit: asked before each token, so that a deletion need not wait for whole texts.

        Raises:
            ViewHit: ``is_hit`` said so.
        """
        generator = torch.Generator().manual_seed(draw.seed)
        longest = max((len(ids) for ids in prompts), default=0)
        fit = ensemble.rows_at_once(self._steps, longest + draw.max_new_tokens - 1)
        size = fit or max(1, len(prompts))
        rows: list[list[int]] = []
        for start in range(0, len(prompts), size):
            texts = self._texts(prompts[start : start + size], draw.max_new_tokens)
            for _ in range(draw.max_new_tokens):
                if not texts.open:
                    break
                if is_hit():
                    raise ViewHit
                texts.append(self._next(ensemble, texts, draw, generator), self._closing)
            rows += texts.rows
        added = [tuple(row[len(ids) :]) for row, ids in zip(rows, prompts, strict=True)]
        return [Completion(self._encoder.decode(ids), view, ids) for ids in added]

    def pieces(
        self,
        prompt: Sequence[int],
        draw: Draw,
        answer: Callable[[Step], tuple[int, int]],
        begun: Sequence[int] = (),
    ) -> Iterator[Piece]:
        """Continue one text, and give it as it grows.

        Args:
            prompt: token ids, without the closing one.
            draw: how.
            answer: has a step done on what serves at that moment, anew if that dies meanwhile.
            begun: tokens after the prompt that were told before.
        """
        texts = self._texts([prompt], draw.max_new_tokens, begun)
        told = self._encoder.decode(begun).rstrip(_HALF)
        generator = torch.Generator().manual_seed(draw.seed)
        for left in reversed(range(draw.max_new_tokens)):
            before = generator.get_state()

            def step(ensemble: Ensemble, view: int, before: Tensor = before) -> tuple[int, int]:
                generator.set_state(before)  # the same draw if it is done anew
                return self._next(ensemble, texts, draw, generator)[0], view

            token, view = answer(step)
            texts.append([token], self._closing)
            ended = not texts.open
            text = self._encoder.decode(texts.rows[0][len(prompt) :])
            if left and not ended:
                text = text.rstrip(_HALF)
            yield Piece(text[len(told) :], view, None if ended else token)
            told = text
            if ended:
                return

    def _texts(
        self, prompts: Sequence[Sequence[int]], most: int, begun: Sequence[int] = ()
    ) -> _Texts:
        return _Texts(self._encoder, self._steps, prompts, most, begun)

    @property
    def _closing(self) -> int | None:
        closing: int | None = self._encoder.tokenizer.eos_token_id
        return closing

    def _next(
        self, ensemble: Ensemble, texts: _Texts, draw: Draw, generator: torch.Generator
    ) -> list[int]:
        return _pick(texts.logs(ensemble), draw, generator)


class _Texts:
    """Rows of token ids that grow in step, and where each of them begins.

    Whoever continues them, an ensemble keeps what it computed: it is asked for by this object,
    which holds nothing of it.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        steps: Steps | None,
        prompts: Sequence[Sequence[int]],
        most: int,
        begun: Sequence[int],
    ) -> None:
        self._encoder, self._steps = encoder, steps
        self.rows = [[*ids, *begun] for ids in prompts]
        self._prompts = torch.tensor([len(ids) for ids in prompts])
        self.open = list(range(len(prompts)))
        self._left, self._fed = most, 0
        self._last: weakref.ref[Ensemble] | None = None

    def logs(self, ensemble: Ensemble) -> Tensor:
        """Log probabilities of the next token of each open row, [n, V], of an ensemble."""
        before = None if self._last is None else self._last()
        if before is not None and before is not ensemble:
            before.texts.pop(self, None)  # another's, even while others are at work on it
        self._last = weakref.ref(ensemble)
        held = ensemble.texts.get(self)
        if held is None:
            return self._begun(ensemble)
        if held.fed < self._fed:
            held.feed([self.rows[at][-1] for at in self.open])
        return held.logs

    def append(self, tokens: Sequence[int], closing: int | None) -> None:
        """The next token of each open row; a row ends, without it, at the closing one."""
        stays = [number for number, token in enumerate(tokens) if token != closing]
        for number in stays:
            self.rows[self.open[number]].append(tokens[number])
        ensemble = None if self._last is None else self._last()
        held = None if ensemble is None else ensemble.texts.get(self)
        if held is not None and 0 < len(stays) < len(tokens):
            held.keep(stays)
        self.open = [self.open[number] for number in stays]
        self._left, self._fed = self._left - 1, self._fed + 1

    def _begun(self, ensemble: Ensemble) -> Tensor:
        """The first token from this ensemble: all that is there is read."""
        rows = [self.rows[at] for at in self.open]
        longest = max(len(row) for row in rows)
        padded = self._encoder.pad(rows, -(-longest // 16) * 16)
        prompts = self._prompts[self.open]
        held = ensemble.decoding(self._steps, padded, prompts, self._left - 1)
        if held is None:
            return ensemble.next_token(padded, prompts)
        ensemble.texts[self] = held
        self._fed = 0
        return held.logs


def _pick(logs: Tensor, draw: Draw, generator: torch.Generator) -> list[int]:
    if draw.temperature == 0:
        return [int(token) for token in logs.argmax(dim=1)]
    chances = _cut((logs.float() / draw.temperature).softmax(dim=1), draw)
    return [int(t) for t in torch.multinomial(chances, 1, generator=generator).squeeze(1)]


def _cut(chances: Tensor, draw: Draw) -> Tensor:
    """Chances [n, V] without those of the tokens that are not to be drawn."""
    if draw.top_k:
        kept = chances.topk(min(draw.top_k, chances.shape[1]), dim=1).values
        chances = chances * (chances >= kept[:, -1:])
    if draw.top_p < 1:
        ranked, order = chances.sort(dim=1, descending=True)
        before = ranked.cumsum(dim=1) - ranked
        out = before >= draw.top_p * ranked.sum(dim=1, keepdim=True)
        chances = chances.masked_fill(out.scatter(1, order, out), 0.0)
    return chances
