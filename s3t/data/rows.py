"""Rows of data: inputs by index, labels by number, and their digests.

Texts, conversations and digits lie in memory. Images stay encoded (a path or bytes) and are decoded
at each access, so a data set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from s3t.data.conversations import Conversation
from s3t.types import Digest, digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Images",
    "LabelledRows",
    "Pair",
    "content_digest",
    "decode_image",
    "overlap",
    "pick",
]


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Inputs with their labels.

    Attributes:
        inputs: ``str`` or a ``Pair`` for text tasks, or a ``Conversation`` where rows are
            instructions; for images an array H×W×C, uint8 or float32 (digits).
        labels: for each input its number in ``label_names``; None for causal-lm.
        numbers: for instructions, the row number of each input in its source, from 1, which
            messages name; else empty.
    """

    inputs: Sequence[Any]
    labels: tuple[int, ...] | None
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def digest(self) -> Digest:
        """Digest of the contents and labels of all rows, in order."""
        labels = self.labels or (None,) * len(self)
        pairs = zip(self.inputs, labels, strict=True)
        return digest([content_digest(row, None if n is None else str(n)) for row, n in pairs])

    def at(self, kept: Sequence[int]) -> LabelledRows:
        """The rows of these numbers, from 0, in their order."""
        return LabelledRows(
            pick(self.inputs, kept),
            None if self.labels is None else tuple(self.labels[at] for at in kept),
            tuple(self.numbers[at] for at in kept) if self.numbers else (),
        )


class Pair(NamedTuple):
    """Two texts that are one input."""

    first: str
    second: str


class Images(Sequence[Any]):
    """A sequence of images that are decoded at each access.

    Args:
        encoded: paths, bytes, Hugging Face's ``{"bytes", "path"}``, or arrays.
        order: numbers of the images in this sequence; default: all, in order.
    """

    def __init__(self, encoded: Sequence[Any], order: Sequence[int] | None = None) -> None:
        self.encoded = encoded
        self.order = range(len(encoded)) if order is None else order

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | Images:
        if isinstance(index, slice):
            return Images(self.encoded, self.order[index])
        return decode_image(self.encoded[self.order[index]])


def pick(inputs: Sequence[Any], order: Sequence[int]) -> Sequence[Any]:
    """The inputs of these numbers, in their order; images stay encoded."""
    if isinstance(inputs, Images):
        return Images(inputs.encoded, [inputs.order[index] for index in order])
    return tuple(inputs[index] for index in order)


def decode_image(value: Any) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Decode an image, and turn it upright by its EXIF tag.

    Returns:
        H×W×1 for grey images, H×W×3 for all others, without alpha; arrays are returned as they are.

    Raises:
        ValueError: no image, several in one file, or more than 8 bits a channel.
        OSError: a file that is damaged or missing. PIL may raise other errors on damaged files.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"holds {type(value).__name__}, expected an image")
    with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as opened:
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":  # a photograph with its previews
            raise ValueError(f"holds {frames} pictures: save each as a file of its own")
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel: save it as 8-bit")
        grey = image.mode in ("1", "L", "LA", "La")
        array = np.array(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    return array[..., None] if grey else array


def content_digest(row: Any, label: str | None) -> Digest:
    """Digest of an input and its label.

    Args:
        row: a text, a pair, a conversation or an image as an array.
        label: name of the label; None for causal-lm.
    """
    if isinstance(row, str):
        return digest({"text": row, "label": label})
    if isinstance(row, Pair):
        return digest({"text": row.first, "pair": row.second, "label": label})
    if isinstance(row, Conversation):
        turns = [[turn.role, turn.content] for turn in row.turns]
        return digest({"turns": turns, "label": label})
    image = {
        "dtype": str(row.dtype),
        "shape": list(row.shape),
        "bytes": hashlib.sha256(row.tobytes()).hexdigest(),
    }
    return digest({"image": image, "label": label})


def overlap(rows: LabelledRows, others: LabelledRows) -> int:
    """How many of some rows have an input that is among others too, whatever the labels."""
    known = {content_digest(row, None) for row in others.inputs}
    return sum(content_digest(row, None) in known for row in rows.inputs)
