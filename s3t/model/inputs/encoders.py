"""From rows to tensors: text through the base's tokenizer, images through numpy.

Invariant: nothing here is fitted to private data (E5). Means, sizes and vocabularies come from the
config or from the base. Every text is padded to one length, every image has one size, so that the
shape of a batch never depends on what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from s3t.data.conversations import Conversation, Turn, conversation_of, is_text
from s3t.data.files import numbered
from s3t.data.rows import Pair
from s3t.errors import DataError
from s3t.model.inputs.chat import Chat, Spoken
from s3t.types import digest

__all__ = ["Encoded", "ImageEncoder", "TextEncoder", "padded_lengths"]

_STRIDE = 16
_UNMARKED = "the chat template marks nothing of it that is to be learnt"


@dataclass(frozen=True, slots=True)
class Encoded:
    """n rows as tensors.

    Attributes:
        values: images [n, channels, size, size] float32, or token ids [n, T] int64.
        mask: 1 for a real token, 0 for padding, [n, T] int64; None for images.
        truncated: how many texts were cut to T tokens.
        targets: 1 for a token that a language model is to learn and is scored by, [n, T] int64;
            None for all real ones.
    """

    values: Tensor
    mask: Tensor | None
    truncated: int = 0
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor | slice) -> Encoded:
        """The rows at ``index``."""
        mask = None if self.mask is None else self.mask[index]
        targets = None if self.targets is None else self.targets[index]
        return Encoded(self.values[index], mask, targets=targets)

    def first(self, tokens: int) -> Encoded:
        """The first ``tokens`` tokens of each text; images as they are."""
        if self.mask is None:
            return self
        targets = None if self.targets is None else self.targets[:, :tokens]
        return Encoded(self.values[:, :tokens], self.mask[:, :tokens], targets=targets)

    def to(self, device: torch.device) -> Encoded:
        """The same rows on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        targets = None if self.targets is None else self.targets.to(device)
        return Encoded(self.values.to(device), mask, self.truncated, targets)

    @property
    def scored(self) -> Tensor:
        """1 for a token whose loss counts, [n, T]; only of texts. The first token of a row has no
        loss: nothing forecasts it."""
        found = self.mask if self.targets is None else self.targets
        assert found is not None
        return found


def padded_lengths(mask: Tensor) -> Tensor:
    """Tokens that each row of a padding mask [n, T] needs, up to a multiple of 16, [n].

    Multiples of 16 fill the vectors of a processor, and leave few shapes of batches.
    """
    needed = mask.sum(dim=1).clamp(min=1)
    return ((needed + _STRIDE - 1) // _STRIDE * _STRIDE).clamp(max=mask.shape[1])


class TextEncoder:
    """Texts and conversations to token ids, right-padded to ``length``.

    Args:
        tokenizer: of the base.
        length: tokens of a row.
        chat: how conversations become tokens; None where rows are texts.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, length: int, chat: Chat | None = None
    ) -> None:
        self.tokenizer, self.chat = tokenizer, chat
        tokenizer("")  # a use drops the cutting and padding that its file may ask for: fingerprint
        self.length = length
        pad = tokenizer.pad_token_id
        # right padding is never attended to, so any id does where the base has none
        self._pad = int(pad) if pad is not None else int(tokenizer.eos_token_id or 0)

    def encode(self, inputs: Sequence[Any], numbers: Sequence[int] = ()) -> Encoded:
        """Token ids and mask of the rows; longer ones are cut to ``length``, on the right.

        Args:
            inputs: texts, or pairs of them, or conversations.
            numbers: what problems call the rows; by default their place, from 1.

        Raises:
            DataError: conversations that cannot be rendered, or of whose answers nothing is left.
        """
        if self.chat is not None and inputs:
            return self._conversations(self.chat, inputs, numbers or range(1, len(inputs) + 1))
        ids: list[list[int]] = []
        for start in range(0, len(inputs), 10_000):
            ids += self._tokens(inputs[start : start + 10_000])
        encoded = self.pad([self.cut(tokens) for tokens in ids])
        truncated = sum(len(tokens) > self.length for tokens in ids)
        return Encoded(encoded.values, encoded.mask, truncated)

    def pad(self, ids: Sequence[Sequence[int]], length: int | None = None) -> Encoded:
        """Token ids padded on the right to ``length``, by default the encoder's."""
        shape = (len(ids), length or self.length)
        values = torch.full(shape, self._pad, dtype=torch.int64)
        mask = torch.zeros_like(values)
        for row, tokens in enumerate(ids):
            values[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens)] = 1
        return Encoded(values, mask)

    def prompt(self, text: Any) -> list[int]:
        """Token ids of a text that is to be continued: without the token that closes a text.

        Args:
            text: a text; where rows are instructions, what a user asks. Or messages, a list of
                ``{role, content}``, if the run has a chat template.

        Raises:
            DataError: ``text`` is neither.
        """
        if self.chat is not None:
            try:
                return self.chat.prompt(_asked(text))
            except ValueError as error:
                raise DataError([str(error)], "prompt") from None
        ids: list[int] = list(self.tokenizer(self._text(text), verbose=False)["input_ids"])
        closing = len(ids) > 1 and ids[-1] in set(self.tokenizer.all_special_ids)
        return ids[:-1] if closing else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def fingerprint(self) -> dict[str, Any]:
        """What of this encoder shapes a node's bytes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else self.tokenizer.get_vocab()
        found = {"kind": "text", "length": self.length, "tokenizer": digest(vocabulary)}
        return found if self.chat is None else found | {"chat": self.chat.fingerprint()}

    def _conversations(self, chat: Chat, inputs: Sequence[Any], numbers: Sequence[int]) -> Encoded:
        if odd := [value for value in inputs if not isinstance(value, Conversation)]:
            raise DataError([f"conversations are expected, got {type(odd[0]).__name__}"], "input")
        spoken, bad = chat.spoken(inputs)
        if bad or (bad := self._unlearnable(spoken)):
            named = ((why, _rows([numbers[at] for at in rows])) for why, rows in bad.items())
            raise DataError([f"{rows}: {why}" for why, rows in named], "input")
        encoded = self.pad([one.ids[: self.length] for one in spoken])
        truncated = sum(len(one.ids) > self.length for one in spoken)
        targets = None
        if chat.completion_only:
            targets = torch.zeros_like(encoded.values)
            for row, one in enumerate(spoken):
                kept = torch.tensor(one.targets[: self.length], dtype=torch.int64)
                targets[row, : len(kept)] = kept
        return Encoded(encoded.values, encoded.mask, truncated, targets)

    def _unlearnable(self, spoken: Sequence[Spoken]) -> dict[str, list[int]]:
        """Rows with nothing to learn, by the reason."""
        found: dict[str, list[int]] = {}
        cut = []
        for at, one in enumerate(spoken):
            if any(one.targets[1 : self.length]):
                continue
            if any(one.targets[1:]):
                cut.append(at)
            else:
                found.setdefault(_UNMARKED, []).append(at)
        if cut:
            longest = max(len(spoken[at].ids) for at in cut)
            whole = -(-longest // _STRIDE) * _STRIDE
            found[
                f"data.max_length {self.length} cuts away all that is to be learnt, in {len(cut)} "
                f"of {len(spoken)}: raise it, to {whole} to hold them whole, or leave them out"
            ] = cut
        return found

    def _tokens(self, inputs: Sequence[Any]) -> list[list[int]]:
        """Token ids of texts, or of pairs as the tokenizer joins two."""
        if inputs and isinstance(inputs[0], Pair):
            sides = [[self._text(side) for side in sides] for sides in zip(*inputs, strict=True)]
        else:
            sides = [[self._text(value) for value in inputs]]
        found: list[list[int]] = self.tokenizer(*sides, verbose=False)["input_ids"]
        return found

    def cut(self, tokens: list[int]) -> list[int]:
        """Token ids of a text, at most ``length``; a closing special one stays."""
        if len(tokens) <= self.length:
            return tokens
        special = set(self.tokenizer.all_special_ids)
        closing = [tokens[-1]] if tokens[-1] in special else []
        return tokens[: self.length - len(closing)] + closing

    @staticmethod
    def _text(value: Any) -> str:
        if not isinstance(value, str):
            raise DataError([f"a text is expected, got {type(value).__name__}"], "input")
        return value


def _asked(value: Any) -> Conversation:
    """A question as a conversation that is to be answered."""
    if not isinstance(value, str):
        try:
            return conversation_of(value, asking=True)
        except ValueError as error:
            raise ValueError(f"messages {error}") from None
    if not value.strip() or not is_text(value):
        raise ValueError(f"a text is expected, got {value!r:.80}")
    return Conversation((Turn("user", value),))


def _rows(numbers: Sequence[int]) -> str:
    return f"row{'s' if len(numbers) > 1 else ''} {numbered(numbers)}"


class ImageEncoder:
    """Images to [n, channels, size, size], scaled to 0–1 and then normalised.

    Args:
        channels, size: what the base expects.
        mean, std: per channel, or one for all.
    """

    def __init__(
        self, channels: int, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.channels, self.size = channels, size
        self.mean, self.std = tuple(mean), tuple(std)

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """The images as one tensor.

        Args:
            inputs: arrays [height, width(, channels)], uint8 0–255 or float 0–1.
        """
        values = np.empty((len(inputs), self.channels, self.size, self.size), dtype=np.float32)
        for row, image in enumerate(inputs):
            values[row] = self._plane(np.asarray(image))
        mean = np.array(self.mean, dtype=np.float32).reshape(-1, 1, 1)
        std = np.array(self.std, dtype=np.float32).reshape(-1, 1, 1)
        return Encoded(torch.from_numpy((values - mean) / std), None)

    def fingerprint(self) -> dict[str, Any]:
        """What of this encoder shapes a node's bytes."""
        return {
            "kind": "image",
            "channels": self.channels,
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def _plane(self, image: np.ndarray) -> np.ndarray:
        if image.ndim not in (2, 3) or image.dtype.kind not in "uif" or not image.size:
            raise DataError(
                [f"an image [height, width, channels] is expected, got {image.shape}"], "input"
            )
        image = image[:, :, None] if image.ndim == 2 else image
        scaled = image.astype(np.float32) / (255.0 if image.dtype == np.uint8 else 1.0)
        if not np.isfinite(scaled).all():
            raise DataError(["an image holds a value that is not finite"], "input")
        if scaled.shape[2] != self.channels:
            grey = scaled[:, :, :3].mean(axis=2, keepdims=True)
            scaled = np.repeat(grey, self.channels, axis=2)
        if scaled.shape[:2] != (self.size, self.size):
            scaled = _resize(scaled, self.size)
        return scaled.transpose(2, 0, 1)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    planes = [
        Image.fromarray(np.ascontiguousarray(image[:, :, channel])).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)
