"""Texts continued token by token, each drawn from the members' combined next-token distribution.

    rows ─► ensemble ─► a token each ─► rows, one longer ─► …
              └─ holds the KV cache of the texts (``kv_decoding``)

Without a KV cache (the base's layers take none, or members have prompts of their own) each token is
computed from the whole text again; the distribution is the same within rounding.

Invariant: a text that is returned whole comes from one view, and none of that view's nodes had died
by its last token. A text that is given in pieces comes token by token from the view of that moment.
Nothing here holds what an ensemble computed: that goes with the ensemble, or with the text.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from s3t.errors import UnavailableError
from s3t.model.inputs.encoders import TextEncoder
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.serving.generation.kv_steps import KVSteps
from s3t.types import Draw

__all__ = ["Completion", "Piece", "Step", "TextGenerator", "ViewOutdated", "strictly"]

_HALF = "\ufffd"
"""What a decoder gives for the first bytes of a letter."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One continued text.

    Attributes:
        completion: what was added to the prompt.
        view: number of the view that it is from.
        tokens: the same as token ids.
    """

    completion: str
    view: int
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to a text.

    Attributes:
        text: the letters that are complete with it; may be empty.
        view: number of the view that it is from.
        token: its id; None if the text ends there.
    """

    text: str
    view: int
    token: int | None = None


class ViewOutdated(Exception):
    """Nodes of a view died before a text from it was complete; the text has to be begun again."""


Step = Callable[[Ensemble, int], tuple[int, int]]
"""From an ensemble and the number of its view: the next token, and that number."""


class TextGenerator:
    """Continues texts.

    Args:
        encoder: of the base.
        steps: runs the base's layers on new tokens alone; None if the base takes no KV cache.
    """

    def __init__(self, encoder: TextEncoder, steps: KVSteps | None = None) -> None:
        self._encoder, self._steps = encoder, steps

    def completions(
        self,
        ensemble: Ensemble,
        prompts: Sequence[Sequence[int]],
        draw: Draw,
        view: int,
        outdated: Callable[[], bool],
    ) -> list[Completion]:
        """Continue prompts, all at once, or as many as have KV caches at once.

        Args:
            ensemble: of the view.
            prompts: token ids, without the closing one.
            draw: how many tokens, and how they are drawn.
            view: number of the view.
            outdated: asked before each token whether nodes of the view have died, so that a
                deletion need not wait for whole texts.

        Raises:
            ViewOutdated: ``outdated`` said so.
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
                if outdated():
                    raise ViewOutdated
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
            draw: how many tokens, and how they are drawn.
            answer: calls a step with what serves at that moment, again if that dies meanwhile.
            begun: tokens after the prompt that the caller has been given before.
        """
        texts = self._texts([prompt], draw.max_new_tokens, begun)
        told = self._encoder.decode(begun).rstrip(_HALF)
        generator = torch.Generator().manual_seed(draw.seed)
        for left in reversed(range(draw.max_new_tokens)):
            before = generator.get_state()

            def step(ensemble: Ensemble, view: int, before: Tensor = before) -> tuple[int, int]:
                generator.set_state(before)  # the same draw if it is repeated
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
    ) -> _OpenTexts:
        return _OpenTexts(self._encoder, self._steps, prompts, most, begun)

    @property
    def _closing(self) -> int | None:
        closing: int | None = self._encoder.tokenizer.eos_token_id
        return closing

    def _next(
        self, ensemble: Ensemble, texts: _OpenTexts, draw: Draw, generator: torch.Generator
    ) -> list[int]:
        return _chosen(texts.logs(ensemble), draw, generator)


def strictly(pieces: Iterator[Piece], is_sound: Callable[[int], bool]) -> Iterator[Piece]:
    """Pieces, while nothing has died that any of them is from.

    Only the first one's view is looked at: it is the oldest, and what has died since a later view
    has died since that one too.

    Args:
        pieces: of one text.
        is_sound: whether everything that served at a view lives still.

    Raises:
        UnavailableError: a deletion has hit the text.
    """
    first = None
    for piece in pieces:
        first = piece.view if first is None else first
        _check_unhit(is_sound(first))
        yield piece
    if first is not None:
        _check_unhit(is_sound(first))


def _check_unhit(sound: bool) -> None:
    if not sound:
        raise UnavailableError(
            "a deletion has hit blocks that wrote a part of the text: drop what has come of it, "
            "and ask for it again",
            "text_hit",
        )


class _OpenTexts:
    """Texts that grow by a token at a time, all together, until each has ended.

    The KV cache belongs to the ensemble, under this object as its key; this object holds nothing
    that an ensemble computed.

    Args:
        encoder: of the base.
        steps: as in ``TextGenerator``.
        prompts: token ids.
        most: tokens that are added at most.
        begun: tokens after the prompt that are there already.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        steps: KVSteps | None,
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
            before.texts.pop(
                self, None
            )  # the other's cache goes, even while other texts use that ensemble
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
        """Log probabilities of the first token from this ensemble, which reads the whole texts."""
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


def _chosen(logs: Tensor, draw: Draw, generator: torch.Generator) -> list[int]:
    """The next token of each row: the likeliest at temperature 0, else one that is drawn.

    Args:
        logs: log probabilities [n, V], on the CPU.
        draw: temperature, top_k and top_p.
        generator: source of the draws.
    """
    if draw.temperature == 0:
        return [int(token) for token in logs.argmax(dim=1)]
    chances = _warped(logs, draw).softmax(dim=1)
    drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)  # [n]
    return [int(token) for token in drawn]


def _warped(logs: Tensor, draw: Draw) -> Tensor:
    """Logits [n, V] to draw from: by temperature, then top_k, then top_p, as transformers does."""
    none = torch.empty(0)  # warpers are given the tokens so far, and read none of them
    warped: Tensor = TemperatureLogitsWarper(float(draw.temperature))(none, logs.float())
    if draw.top_k:
        warped = TopKLogitsWarper(draw.top_k)(none, warped)
    if draw.top_p < 1:
        warped = TopPLogitsWarper(draw.top_p)(none, warped)
    return warped
