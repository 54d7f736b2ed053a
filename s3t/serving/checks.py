"""Checks of what is asked: rows of ``predict``, prompts of ``generate``, and how to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s3t.data.rows import Pair, decode_image
from s3t.errors import DataError, InputError
from s3t.types import Draw

__all__ = ["check_draw", "check_text", "image_array", "text_pair"]


def check_draw(draw: Draw) -> None:
    """Refuse a draw whose numbers are out of range.

    Raises:
        InputError: it is.
    """
    freely = math.isfinite(draw.temperature) and draw.temperature >= 0
    if draw.max_new_tokens < 1 or not freely or draw.top_k < 0 or not 0 < draw.top_p <= 1:
        raise InputError(
            f"max_new_tokens {draw.max_new_tokens} must be 1 or more, temperature "
            f"{draw.temperature} and top_k {draw.top_k} 0 or more, and top_p {draw.top_p} over 0 "
            "and up to 1"
        )


def text_pair(row: Any, number: int, first: str, second: str) -> Pair:
    """The two texts of a row, given by their columns or in order.

    Raises:
        InputError: it holds anything else.
    """
    if isinstance(row, Mapping):
        row = [row.get(first), row.get(second)]
    if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != 2:
        raise InputError(f"row {number}: two texts are expected, {first!r} and {second!r}")
    for value, column in zip(row, (first, second), strict=True):
        check_text(value, f"row {number}, {column!r}")
    return Pair(*row)


def check_text(value: Any, name: str) -> None:
    """Refuse what the training data could not hold either: empty text, or no valid Unicode.

    Raises:
        InputError: it is no such text.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: a text is expected, got {value!r:.80}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InputError(f"{name}: {value!r:.80} is not valid Unicode")


def image_array(value: Any) -> Any:
    """An image as an array of integers (0–255) or fractions (0–1).

    Args:
        value: an array, nested lists, or a path.

    Raises:
        DataError: other numbers, or a file that cannot be read.
    """
    if isinstance(value, str | Path):
        return decode_image(str(value))
    array = np.asarray(value)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind != "f" or not array.size or array.min() < 0 or array.max() > 1:
        raise DataError(
            ["an image is integers from 0 to 255 or fractions from 0 to 1: rescale it"], "input"
        )
    return array.astype(np.float32)
