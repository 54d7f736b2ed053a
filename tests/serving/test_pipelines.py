"""transformers' pipelines over a run: the calls that their users make, and views underneath."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from transformers.pipelines.pt_utils import KeyDataset

import s3t as package
from s3t import S3T
from s3t.errors import ExhaustedError, InputError
from s3t.run import RunDir
from tests.support.small_runs import person_rows

TEXTS = [row["text"] for row in person_rows(6)]
PROMPTS = ["private line 7", "x", "public line 11 aa"]


@pytest.fixture
def classifier(small_run: RunDir) -> Iterator[S3T]:
    with S3T.load(small_run.root) as service:
        yield service


@pytest.fixture
def texts(text_run: Path) -> Iterator[S3T]:
    with S3T.load(text_run) as service:
        yield service


@pytest.fixture
def images(digits_run: Path) -> Iterator[S3T]:
    with S3T.load(digits_run) as service:
        yield service


def scores(found: list[dict[str, Any]]) -> dict[str, float]:
    return {one["label"]: one["score"] for one in found}


def close(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found.keys() == expected.keys() and all(
        math.isclose(found[label], expected[label], abs_tol=2e-6) for label in found
    )


# ── text classification ──────────────────────────────────────────────────────────────────────


def test_texts_are_classified_as_by_predict(classifier: S3T) -> None:
    pipe = classifier.pipeline()
    expected = classifier.predict(TEXTS)
    assert isinstance(pipe, hf.TextClassificationPipeline)
    assert [one["label"] for one in pipe(TEXTS)] == [one.label for one in expected]
    assert pipe(TEXTS[0])[0]["label"] == expected[0].label
    for size in (1, 4):
        found = pipe(TEXTS, batch_size=size, top_k=None)
        for one, other in zip(found, expected, strict=True):
            assert close(scores(one), other.probabilities)
    assert [len(one) for one in pipe(TEXTS[:2], top_k=1)] == [1, 1]


def test_rows_may_come_from_a_dataset_or_a_generator(classifier: S3T) -> None:
    pipe = classifier.pipeline(batch_size=4)
    expected = [one.label for one in classifier.predict(TEXTS)]
    rows = KeyDataset([{"text": text} for text in TEXTS], "text")  # type: ignore[arg-type]
    assert [one["label"] for one in pipe(rows)] == expected
    assert [one["label"] for one in pipe(text for text in TEXTS)] == expected


def test_long_texts_are_cut_as_by_predict(classifier: S3T) -> None:
    long = "person 3 says " * 20
    (found,) = classifier.pipeline(top_k=None)([long])
    assert close(scores(found), classifier.predict([long])[0].probabilities)


def test_transformers_own_pipeline_takes_the_model(classifier: S3T) -> None:
    ours = classifier.pipeline()
    model: Any = ours.model
    theirs = hf.pipeline("text-classification", model=model, tokenizer=ours.tokenizer)
    assert theirs(TEXTS) == ours(TEXTS)
    assert "ServedModel" in repr(theirs)


def test_what_a_run_does_not_understand_is_refused(classifier: S3T, tmp_path: Path) -> None:
    pipe = classifier.pipeline()
    model: Any = pipe.model
    with pytest.raises(InputError, match="single texts"):
        ids = torch.ones((1, 4), dtype=torch.int64)
        model(input_ids=ids, attention_mask=ids, token_type_ids=ids)
    with pytest.raises(InputError, match="input_ids or pixel_values"):
        model()
    with pytest.raises(InputError, match="use s3t export"):
        pipe.save_pretrained(tmp_path)


def test_a_deletion_takes_effect_at_the_next_call(classifier: S3T) -> None:
    pipe, seen = classifier.pipeline(top_k=None), []
    model: Any = pipe.model
    plain = model._serving.answer
    model._serving.answer = lambda ask: plain(lambda e, view: (seen.append(view), ask(e, view))[1])
    before = pipe(TEXTS)
    classifier.deactivate(subjects=["p03"])
    after = pipe(TEXTS)
    assert set(seen[: len(TEXTS)]) == {0} and set(seen[len(TEXTS) :]) == {1}
    expected = classifier.predict(TEXTS)
    assert [close(scores(a), e.probabilities) for a, e in zip(after, expected, strict=True)]
    assert before != after


def test_with_nothing_left_it_raises(classifier: S3T) -> None:
    pipe = classifier.pipeline()
    assert pipe("person 1 says 8")
    classifier.deactivate(subjects=[f"p{person:02d}" for person in range(16)])
    with pytest.raises(ExhaustedError):
        pipe("person 1 says 8")


# ── image classification ─────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_images_are_classified_as_by_predict(images: S3T, tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(5)]
    expected = images.predict(arrays)
    pipe = images.pipeline(top_k=10)
    pictures = [Image.fromarray(array) for array in arrays]
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    for rows, size in ((arrays, 1), (arrays, 3), (pictures, 2), (paths, 1)):
        found = pipe(rows, batch_size=size)
        for one, other in zip(found, expected, strict=True):
            assert close(scores(one), other.probabilities)
    assert len(pipe(pictures[0], top_k=3)) == 3


# ── text generation ──────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_texts_go_on_as_by_generate(texts: S3T) -> None:
    pipe = texts.pipeline()
    expected = [one.completion for one in texts.generate(PROMPTS, max_new_tokens=9)]
    assert isinstance(pipe, hf.TextGenerationPipeline)
    for size in (1, 3):
        found = pipe(PROMPTS, max_new_tokens=9, batch_size=size, return_full_text=False)
        assert [one[0]["generated_text"] for one in found] == expected
    (whole,) = pipe(PROMPTS[0], max_new_tokens=9)
    assert whole["generated_text"] == PROMPTS[0] + expected[0]
    (ids,) = pipe(PROMPTS[0], max_new_tokens=9, return_tensors=True)
    assert ids["generated_token_ids"][:1] == [1]
    streamed = pipe((text for text in PROMPTS), max_new_tokens=9, return_full_text=False)
    assert [one[0]["generated_text"] for one in streamed] == expected


@pytest.mark.slow
def test_draws_follow_the_seed(texts: S3T) -> None:
    pipe = texts.pipeline(max_new_tokens=8, return_full_text=False)
    how = {"do_sample": True, "temperature": 3.0}

    def drawn(**more: Any) -> list[str]:
        return [one["generated_text"] for one in pipe("x", **how, **more)]

    (ours,) = texts.generate(["x"], max_new_tokens=8, temperature=3.0, seed=5)
    assert drawn(seed=5) == [ours.completion]
    hf.set_seed(1)
    first = drawn(num_return_sequences=3)
    hf.set_seed(1)
    assert drawn(num_return_sequences=3) == first and len(set(first)) > 1
    assert len({*drawn(seed=1, top_k=1), *drawn(seed=2, top_p=1e-6), *_greedy(pipe)}) == 1
    config = hf.GenerationConfig(max_new_tokens=2, do_sample=False)
    assert len(pipe("x", generation_config=config)[0]["generated_text"]) <= 2


def _greedy(pipe: Any) -> list[str]:
    return [one["generated_text"] for one in pipe("x")]


@pytest.mark.slow
def test_options_that_would_be_ignored_are_refused(texts: S3T) -> None:
    pipe = texts.pipeline()
    with pytest.raises(InputError, match="does not know num_beams"):
        pipe("x", num_beams=4)
    with pytest.raises(InputError, match="another eos_token_id"):
        pipe("x", eos_token_id=9)
    with pytest.raises(InputError, match="leave room"):
        pipe("x" * 20, max_new_tokens=30)
    (found,) = pipe("x", max_length=6, return_full_text=False)
    assert len(found["generated_text"]) <= 4
    with pytest.raises(InputError, match="language model: use generate"):
        pipe.model(input_ids=torch.ones((1, 2), dtype=torch.int64))


@pytest.mark.slow
def test_the_runs_own_tokenizer_is_left_as_it_is(text_run: Path) -> None:
    with S3T.load(text_run) as service:
        before = service.serving.model().encoder.fingerprint()
        service.pipeline()(PROMPTS, max_new_tokens=2, batch_size=3)
        assert service.serving.model().encoder.fingerprint() == before


@pytest.mark.slow
def test_a_pipeline_of_a_run_directory(text_run: Path) -> None:
    pipe = package.pipeline(text_run, max_new_tokens=4, return_full_text=False)
    before = pipe("private line")
    with S3T.load(text_run) as other:
        other.deactivate(["t05"])
        (expected,) = other.generate(["private line"], max_new_tokens=4)
    after = pipe("private line")
    assert after[0]["generated_text"] == expected.completion
    assert before
