"""Rows become tensors of one shape, by numbers that no private sample has a part in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from s3t.errors import DataError
from s3t.model.built import byte_tokenizer
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder

PAD, START, END = 0, 1, 2


@pytest.fixture
def texts() -> TextEncoder:
    return TextEncoder(byte_tokenizer(), 16)


def images(channels: int = 1, size: int = 8) -> ImageEncoder:
    return ImageEncoder(channels, size, (0.5,), (0.5,))


# ── texts ────────────────────────────────────────────────────────────────────────────────────


def test_texts_are_framed_and_padded_on_the_right(texts: TextEncoder) -> None:
    rows = texts.encode(["ab", ""])
    assert rows.values.shape == (2, 16)
    assert rows.mask is not None
    assert rows.mask.sum(dim=1).tolist() == [4, 2]
    assert rows.values[0, 0] == START
    assert rows.values[0, 3] == END
    assert rows.values[0, 4:].eq(PAD).all()
    assert rows.values[1, :2].tolist() == [START, END]
    assert rows.truncated == 0


def test_long_texts_are_cut_and_keep_their_end(texts: TextEncoder) -> None:
    rows = texts.encode(["x" * 14, "x" * 15, "y" * 300])
    assert rows.truncated == 2
    assert rows.values[:, -1].tolist() == [END] * 3
    assert rows.mask is not None
    assert rows.mask.all()
    assert texts.decode(rows.values[2].tolist()) == "y" * 14


def test_a_text_is_encoded_for_itself(texts: TextEncoder) -> None:
    many = [f"text {number}" * (number % 4) for number in range(50)]
    together = texts.encode(many)
    for number in (0, 3, 49):
        assert torch.equal(texts.encode([many[number]]).values[0], together.values[number])


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 🌍", "line\nline\ttab", "</s>"])
def test_bytes_come_back(text: str) -> None:
    encoder = TextEncoder(byte_tokenizer(), 64)
    decoded = encoder.decode(encoder.encode([text]).values[0].tolist())
    assert decoded == (text if text != "</s>" else ""), "a special token is not text"


def test_a_prompt_has_no_closing_token(texts: TextEncoder) -> None:
    tokens = texts.prompt("ab")
    assert tokens[0] == START
    assert tokens[-1] != END
    assert len(tokens) == 3
    assert texts.prompt("") == [START]


def test_padding_to_another_length(texts: TextEncoder) -> None:
    rows = texts.pad([[5, 6], []], length=32)
    assert rows.values.shape == (2, 32)
    assert rows.mask is not None
    assert rows.mask.sum(dim=1).tolist() == [2, 0]


def test_no_texts_are_no_rows(texts: TextEncoder) -> None:
    assert len(texts.encode([])) == 0


@pytest.mark.parametrize("value", [None, 3, b"bytes", ["list"]])
def test_what_is_no_text_is_refused(texts: TextEncoder, value: Any) -> None:
    with pytest.raises(DataError, match="a text is expected"):
        texts.encode(["fine", value])
    with pytest.raises(DataError, match="a text is expected"):
        texts.prompt(value)


def test_the_fingerprint_is_that_of_the_vocabulary_and_the_length(texts: TextEncoder) -> None:
    before = texts.fingerprint()
    texts.encode(["a use changes nothing", "x" * 99])
    assert texts.fingerprint() == before == TextEncoder(byte_tokenizer(), 16).fingerprint()
    assert TextEncoder(byte_tokenizer(), 32).fingerprint() != before
    other = byte_tokenizer()
    other.add_tokens(["new"])
    assert TextEncoder(other, 16).fingerprint() != before


# ── images ───────────────────────────────────────────────────────────────────────────────────


def test_bytes_and_fractions_are_the_same_image() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    as_bytes, as_floats = images().encode([grey]), images().encode([grey / 255])
    assert as_bytes.values.shape == (1, 1, 8, 8)
    assert as_bytes.values.dtype == torch.float32
    assert torch.allclose(as_bytes.values, as_floats.values)
    assert torch.equal(as_bytes.values, images().encode([grey[:, :, None]]).values)
    assert as_bytes.mask is None


def test_normalisation_is_per_channel() -> None:
    encoder = ImageEncoder(3, 4, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    (found,) = encoder.encode([np.full((4, 4, 3), 255, np.uint8)]).values
    assert found[:, 0, 0].tolist() == pytest.approx([0.9, 0.4, 0.175])


def test_channels_are_made_to_fit() -> None:
    colour = np.random.default_rng(0).random((4, 4, 3)).astype(np.float32)
    grey = images(1, 4).encode([colour]).values
    assert torch.allclose(grey[0, 0], torch.from_numpy(colour.mean(axis=2)) * 2 - 1, atol=1e-6)
    tripled = images(3, 4).encode([colour[:, :, 0]]).values
    assert torch.equal(tripled[0, 0], tripled[0, 2])


def test_sizes_are_made_to_fit() -> None:
    rows = images(1, 8).encode([np.ones((16, 20)), np.ones((3, 3)), np.ones((8, 8))])
    assert rows.values.shape == (3, 1, 8, 8)
    assert torch.allclose(rows.values, torch.ones(3, 1, 8, 8))


def test_an_image_is_encoded_for_itself() -> None:
    many = [np.random.default_rng(n).random((8, 8)) for n in range(5)]
    together = images().encode(many).values
    assert torch.equal(images().encode(many[3:4]).values[0], together[3])


@pytest.mark.parametrize(
    "value",
    [np.ones(8), np.ones((2, 2, 2, 2)), np.ones((0, 8)), np.array([["a"]]), np.array(None), "path"],
)
def test_what_is_no_image_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="an image"):
        images().encode([value])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        images().encode([np.full((8, 8), bad)])


def test_the_fingerprint_names_what_shapes_a_row() -> None:
    found = [
        ImageEncoder(1, 8, (0.5,), (0.5,)),
        ImageEncoder(3, 8, (0.5,), (0.5,)),
        ImageEncoder(1, 4, (0.5,), (0.5,)),
        ImageEncoder(1, 8, (0.4,), (0.5,)),
        ImageEncoder(1, 8, (0.5,), (0.4,)),
    ]
    prints = [str(encoder.fingerprint()) for encoder in found]
    assert len(set(prints)) == len(found)
