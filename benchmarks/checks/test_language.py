"""What the language benchmarks say of a model is what their sources define."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.language.model import Model, forget_quality, rouge_recall
from benchmarks.language.questions import Choice, Question, authors, choices, holdout
from s3t.config import Config
from s3t.data import Conversation
from s3t.run import RunDir
from s3t.training.work.train import train


@pytest.mark.parametrize(
    ("written", "answer", "share"),
    [
        ("The cat sat.", "the cat sat", 1.0),
        ("a cat on a mat sat", "the cat sat there", 0.5),
        ("sat cat the", "the cat sat", 1 / 3),
        ("", "the cat", 0.0),
        ("the the the", "the cat the", 2 / 3),
    ],
)
def test_rouge_is_the_longest_common_subsequence(written: str, answer: str, share: float) -> None:
    assert rouge_recall(written, answer) == pytest.approx(share)


def test_a_model_that_is_its_control_has_the_best_forget_quality() -> None:
    ratios = np.linspace(0.5, 2.0, 30)
    assert forget_quality(ratios, ratios) == 1.0
    assert forget_quality(ratios, ratios + 3) < 1e-6


@pytest.mark.slow
def test_figures_of_a_model_follow_from_its_losses(tmp_path: Path) -> None:
    config = _config(tmp_path)
    train(config)
    model = Model(RunDir(config.run_dir))
    rows = [
        Question("who?", "me", "a", "it is me", ("you", "not I")),
        Question("b?", "c", "a", "d", ("e",)),
    ]

    def chance(question: str, answer: str) -> float:
        (lost,), (count,) = model.losses([Conversation.of(question, answer)])
        assert count == len(f" {answer}") + 1, "a space, the letters and the end"
        return math.exp(-lost / count)

    expected = [
        (chance("who?", "you") + chance("who?", "not I")) / 2 / chance("who?", "it is me"),
        chance("b?", "e") / chance("b?", "d"),
    ]
    assert model.truth_ratios(rows) == pytest.approx(expected, rel=1e-4)
    options = [chance("b?", one) for one in "cde"]
    found = model.chosen([Choice("b?", ("c", "d", "e"))])
    assert found == pytest.approx(options[0] / sum(options), rel=1e-4)
    assert model.known(rows, written=4)["probability"] == pytest.approx(
        (chance("who?", "me") + chance("b?", "c")) / 2, rel=1e-3
    )


def test_questions_have_false_answers_and_options(shared_data: Path) -> None:
    folder = shared_data / "tofu"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    told = authors(folder, 3)
    assert len(told) == 40 and {len(rows) for rows in told.values()} == {3}
    assert all(row.reworded and len(row.false) >= 3 for rows in told.values() for row in rows)
    assert len(holdout(folder)) == 400
    for name in ("real_authors", "world_facts"):
        found = choices(folder, name)
        assert len(found) >= 100 and all(len(row.options) in (3, 4) for row in found)
        assert all(len({*row.options}) == len(row.options) for row in found)


def _config(folder: Path) -> Config:
    """8 questions, 2 shards of 2 slices, a GPT-2 of 2 layers."""
    rows = [{"id": f"s{n}", "q": f"who is {n}?", "a": "x" * (n % 5 + 1)} for n in range(8)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = {"format": "json", "files": str(path)}
    return Config.model_validate(
        {
            "output": str(folder / "run"),
            "task": "causal-lm",
            "data": {
                "private": source,
                "public": {"validation": source, "test": source},
                "columns": {"id": "id", "prompt": "q", "completion": "a"},
                "max_length": 32,
            },
            "model": {"base": "make:gpt2", "make": {"hidden": 16, "layers": 2, "heads": 2}},
            "partition": {"shards": 2, "slices": 2, "salt": "a"},
            "lora": {"rank": 2},
            "stage": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
            "training": {"workers": 1},
        }
    )
