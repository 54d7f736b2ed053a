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

from s3t.errors import DataError
from s3t.types import digest

__all__ = ["Encoded", "ImageEncoder", "TextEncoder", "padded_lengths"]

_STRIDE = 16


@dataclass(frozen=True, slots=True)
class Encoded:
    """n rows as tensors.

    Attributes:
        values: images [n, channels, size, size] float32, or token ids [n, T] int64.
        mask: 1 for a real token, 0 for padding, [n, T] int64; None for images.
        truncated: how many texts were cut to T tokens.
    """

    values: Tensor
    mask: Tensor | None
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor | slice) -> Encoded:
        """The rows at ``index``."""
        return Encoded(self.values[index], None if self.mask is None else self.mask[index])

    def to(self, device: torch.device) -> Encoded:
        """The same rows on ``device``."""
        mask = None if self.mask is None else self.mask.to(device)
        return Encoded(self.values.to(device), mask, self.truncated)


def padded_lengths(mask: Tensor) -> Tensor:
    """Tokens that each row of a padding mask [n, T] needs, up to a multiple of 16, [n].

    Multiples of 16 fill the vectors of a processor, and leave few shapes of batches.
    """
    needed = mask.sum(dim=1).clamp(min=1)
    return ((needed + _STRIDE - 1) // _STRIDE * _STRIDE).clamp(max=mask.shape[1])


class TextEncoder:
    """Texts to token ids, right-padded to ``length``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.tokenizer = tokenizer
        tokenizer("")  # a use drops the cutting and padding that its file may ask for: fingerprint
        self.length = length
        pad = tokenizer.pad_token_id
        # right padding is never attended to, so any id does where the base has none
        self._pad = int(pad) if pad is not None else int(tokenizer.eos_token_id or 0)

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Token ids and mask of the texts; longer ones are cut to ``length``."""
        texts = [self._text(value) for value in inputs]
        ids: list[list[int]] = []
        for start in range(0, len(texts), 10_000):
            ids += self.tokenizer(texts[start : start + 10_000], verbose=False)["input_ids"]
        encoded = self.pad([self._cut(tokens) for tokens in ids])
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
        """Token ids of a text that is to go on: without a closing special token."""
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
        return {"kind": "text", "length": self.length, "tokenizer": digest(vocabulary)}

    def _cut(self, tokens: list[int]) -> list[int]:
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
