"""The layers of a base on new tokens alone, with what is kept of those before.

    prompts ─► Base.start ─► prompts through the layers ─► their keys and values are kept (``Past``)
    a token ─► enter ─► hidden state, its position's context ─► the layers, which read what is kept

How: as in ``base``, the backbone's own forward makes hidden states and positions, and stops at the
first layer's gate. Under which name a layer takes a cache is seen at that gate as well. No model
family is named: steps are tried on random texts of different lengths against the pass over whole
texts, up to the longest that the base may see, and a base that does not agree has no steps.

Invariant: with a base's steps the last hidden states are, within rounding, those of whole texts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from s3t.model.inputs.encoders import Encoded
from s3t.serving.generation.kv_cache import Past, Window

if TYPE_CHECKING:
    from s3t.model.base import Base

__all__ = ["Steps", "find_steps"]

_FOREIGN = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError)
"""What the code of a layer may raise that is not made for this."""

_ROWS = 3


class Steps:
    """How a base is entered, and its layers run, with a past.

    Args:
        base: a causal one.
        cache: name of the argument by which its layers take a cache.
        by_row: names of those arguments that have an entry for each row.
    """

    def __init__(self, base: Base, cache: str, by_row: frozenset[str]) -> None:
        self.base, self._cache, self._by_row = base, cache, by_row
        self.token_bytes = 0
        """Keys and values of one token in one set of every layer."""

    def enter(self, tokens: Tensor, past: Past) -> tuple[Tensor, dict[str, Any], Tensor | None]:
        """What the layers are given for new tokens.

        Args:
            tokens: of all rows, [n, q].
            past: what is kept of the rows.

        Returns:
            hidden states [n, q, H], the layers' other arguments, and the additive mask or None.
        """
        ahead = torch.arange(tokens.shape[1], device=tokens.device)
        positions = past.positions[:, None] + ahead
        mask = past.mask(tokens.shape[1], self.base.dtype)
        # a mask of four dimensions goes through as it is: making one here would cost as much as
        # a layer, and it would not know of the gaps
        through = torch.zeros((1, 1, 1, 1), device=tokens.device) if mask is None else mask
        arguments = self.base.entered(
            input_ids=tokens, position_ids=positions, attention_mask=through, use_cache=True
        )
        hidden = arguments.pop("hidden_states")
        arguments.pop("attention_mask", None)
        return hidden, arguments, mask

    def repeated(self, context: Mapping[str, Any], lanes: int) -> dict[str, Any]:
        """The layers' other arguments for so many lanes of the rows."""
        if lanes == 1:
            return dict(context)
        return {
            name: _repeated(value, lanes) if name in self._by_row else value
            for name, value in context.items()
        }

    def run(self, hidden: Tensor, lo: int, hi: int, window: Window) -> Tensor:
        """Layers lo … hi−1 on hidden states [sets · rows, q, H]; their keys and values are kept."""
        for number in range(lo, hi):
            past = window.past.layer(number, window)
            context = window.context
            if context is None:
                context = self.base.context(hidden.shape[1])
            hidden = self.base.own(number, hidden, window.mask, {**context, self._cache: past})
        return hidden


def find_steps(base: Base) -> Steps | None:
    """A base's steps, or None if its layers do not take what is kept as the others do."""
    if not base.causal or base.length is None or base.length < 4:
        return None
    asked = inspect.signature(base.backbone.forward).parameters
    if not {"past_key_values", "position_ids", "use_cache"} <= set(asked):
        return None
    try:
        with torch.inference_mode():
            return _tried(base, base.length)
    except _FOREIGN:
        return None


def _tried(base: Base, length: int) -> Steps | None:
    generator = torch.Generator().manual_seed(0)
    vocabulary = base.model.config.vocab_size
    tokens = torch.randint(0, vocabulary, (_ROWS, length), generator=generator).to(base.device)
    cache, positions = DynamicCache(), torch.arange(2, device=base.device).repeat(_ROWS, 1)
    seen = base.entered(
        input_ids=tokens[:, :2], position_ids=positions, past_key_values=cache, use_cache=True
    )
    names = [name for name, value in seen.items() if value is cache]
    if len(names) != 1:
        return None
    by_row = frozenset(name for name, value in seen.items() if _has_rows(value))
    steps = Steps(base, names[0], by_row)
    whole = base.run(base.start(_whole(tokens)), 0, base.depth, None)
    lengths = torch.tensor([max(1, length * (4 - row) // 8) for row in range(_ROWS)])
    past = Past([1] * base.depth, lengths.to(base.device), length)
    found = _stepwise(steps, tokens, lengths, past)
    expected = torch.stack([whole[row, at : at + found.shape[1]] for row, at in enumerate(lengths)])
    tolerance = float(whole.abs().max()) * (1e-4 if base.dtype == torch.float32 else 5e-2)
    if not torch.allclose(found.float(), expected.float(), rtol=0, atol=tolerance):
        return None
    steps.token_bytes = past.nbytes // (_ROWS * (int(lengths.max()) + length))
    return steps


def _stepwise(steps: Steps, tokens: Tensor, lengths: Tensor, past: Past) -> Tensor:
    """Hidden states of what follows the prompts: many tokens at once, then a single one."""
    base, most = steps.base, int(lengths.max())
    rows = torch.arange(_ROWS, device=base.device)
    hidden = base.start(_whole(tokens[:, :most]))
    steps.run(hidden, 0, base.depth, Window(past, slice(0, 1), rows))
    found = []
    for count in (tokens.shape[1] - most - 1, 1):
        start = lengths + past.fed
        part = torch.stack([tokens[row, at : at + count] for row, at in enumerate(start)])
        hidden, context, mask = steps.enter(part, past)
        window = Window(past, slice(0, 1), None, context, mask)
        found.append(steps.run(hidden, 0, base.depth, window))
        past.advance(count)
    return torch.cat(found, dim=1)


def _whole(tokens: Tensor) -> Encoded:
    return Encoded(tokens, torch.ones_like(tokens))


def _has_rows(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_has_rows(part) for part in value)
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == _ROWS


def _repeated(value: Any, lanes: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_repeated(part, lanes) for part in value)
    return value.repeat(lanes, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
