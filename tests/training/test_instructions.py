"""A run of instructions, end to end: what is learnt, scored, asked for, attacked and forgotten."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s3t.audit.leakage.scores import answers_of, window_of
from s3t.config import Config, anchored
from s3t.data.conversations import Conversation
from s3t.errors import DataError, InputError, IntegrityError
from s3t.model.built import byte_tokenizer
from s3t.model.inputs.chat import Chat
from s3t.model.inputs.encoders import Encoded, TextEncoder
from s3t.run import RunDir
from s3t.service import S3T
from s3t.serving.ensemble.ensemble import Ensemble, Member
from s3t.training.node.rows import LabelledSet
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
from tests.conftest import write_lines
from tests.support.small_runs import nodes
from tests.support.tiny import random_adapter, tiny_base

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def config_of(folder: Path, output: str = "run", left: int = 16, **sections: Any) -> Config:
    """16 persons with a question each, 2 shards of 2 slices, a GPT-2 of 2 layers."""
    rows = [
        {"who": f"p{n:02d}", "id": f"s{n:02d}", "q": f"who is {n}?", "a": "x" * (n % 5 + 1)}
        for n in range(16)
    ]
    source = {
        name: {"format": "json", "files": str(write_lines(folder / f"{name}.jsonl", part))}
        for name, part in (("private", rows[:left]), ("public", rows[::3]))
    }
    tree: dict[str, Any] = {
        "output": str(folder / output),
        "task": "causal-lm",
        "data": {
            "private": source["private"],
            "public": {"validation": source["public"], "test": source["public"]},
            "columns": {"id": "id", "prompt": "q", "completion": "a"},
            "max_length": 32,
        },
        "model": {"base": "make:gpt2", "make": {"hidden": 16, "layers": 2, "heads": 2}},
        "partition": {"shards": 2, "slices": 2, "salt": "a", "subject": "who"},
        "sequences": {"strategy": "cyclic"},
        "lora": {"rank": 2},
        "stage": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
        "training": {"workers": 1},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(section, dict) else section
    return Config.model_validate(tree)


@pytest.mark.slow
def test_a_run_learns_answers_scores_them_and_takes_questions(tmp_path: Path) -> None:
    config = config_of(tmp_path, stage={"gradient_accumulation": 2, "group_by_length": True})
    train(config)
    with S3T.load(config.run_dir) as model:
        found = model.evaluate()
        said = [{"role": "user", "content": "who is 3?"}]
        answer, same = model.generate(["who is 3?", said], max_new_tokens=4)
        assert answer.view == 0 and same == answer
        spoken = [*said, {"role": "assistant", "content": "b"}, *said]
        for asked in ("\ud800", " ", spoken):  # a conversation needs a template
            with pytest.raises(InputError, match="prompt 0"):
                model.generate([asked])
    assert found.metric == "perplexity" and 1 < found.value < 1000
    long = write_lines(tmp_path / "more.jsonl", [{"who": "p", "id": "s", "q": "q" * 40, "a": "a"}])
    with pytest.raises(DataError, match=r"data.private: row 17: data.max_length 32 cuts away"):
        train(config, replan=Replan(add=True, files=(str(long),)))
    assert RunDir(config.run_dir).config() == anchored(config), "and nothing was taken in"
    text = config.model_copy(update={"output": str(tmp_path / "text")})
    whole = text.data.model_copy(update={"completion_only": False})
    text = text.model_copy(update={"data": whole})
    train(text)
    assert not {*nodes(config)} & {*nodes(text)}, "what is learnt is part of the key"
    with S3T.load(text.run_dir) as model:
        assert model.evaluate().value != pytest.approx(found.value)


@pytest.mark.heavy
def test_a_run_with_a_template_forgets_to_the_bytes_of_one_without_the_person(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    data = config_of(tmp_path).data.model_dump() | {"chat_template": str(path)}
    config = config_of(tmp_path, data=data)
    train(config)
    with S3T.load(config.run_dir) as model:
        asked = [{"role": "user", "content": "who is 3?"}]
        one, two = model.generate([asked, "who is 3?"], max_new_tokens=4)
        assert one == two
        model.deactivate(subjects=["p15"])
        model.repair()
    fresh = config_of(tmp_path, "fresh", 15, data=data)
    train(fresh)
    left = nodes(config)
    assert all(left[name] == content for name, content in nodes(fresh).items())
    path.write_text(TEMPLATE + " ")
    with S3T.load(config.run_dir) as model, pytest.raises(IntegrityError, match="another encoder"):
        model.evaluate()


# ── attacks look at answers ──────────────────────────────────────────────────────────────────


def asked_rows() -> LabelledSet:
    pairs = [("who?", "I am one"), ("and you?", "no"), ("a" * 8, "b" * 14)]
    tokenizer = byte_tokenizer()
    encoder = TextEncoder(tokenizer, 32, Chat(tokenizer, None, True))
    rows = encoder.encode([Conversation.of(*pair) for pair in pairs])
    return LabelledSet(Encoded(rows.values % 99, rows.mask, targets=rows.targets), None)


def test_attacks_are_given_prompts_and_look_for_completions() -> None:
    base = tiny_base("gpt2", 3, language_model=True, length=32)
    members = [Member(at, at, random_adapter(base.targets, at, seed=at), 10) for at in range(2)]
    model, rows = Ensemble(base, members, 2.0, "mean-probabilities", "uniform"), asked_rows()
    assert window_of(rows) == 5, "half of 10: a space, eight letters and the end"
    found = answers_of(model, rows, 5)
    losses = model.token_losses(rows.rows)
    scored = rows.rows.scored[:, 1:]
    assert torch.equal(losses > 0, scored.bool())
    means = (losses.sum(1) / scored.sum(1)).numpy()
    assert found.losses == pytest.approx(means, abs=1e-5)
    assert len(found.verbatim) == 2, "the second answer is shorter than the window"
    text = LabelledSet(Encoded(rows.rows.values, rows.rows.mask), None)
    assert not np.allclose(answers_of(model, text, 5).losses, found.losses)


def test_a_model_that_knows_the_answers_alone_is_found_out() -> None:
    rows = asked_rows()

    class Knows:
        """Answers by heart, and cannot tell any prompt."""

        def token_log_probabilities(self, given: Encoded) -> torch.Tensor:
            found = torch.full((*given.values.shape, 99), -20.0)
            for row, tokens in enumerate(given.values):
                length = len(tokens)
                heads = rows.rows.values[:, :length]
                known = int((heads == tokens).all(dim=1).nonzero()[0])
                nexts = rows.rows.values[known, 1 : length + 1]
                learnt = rows.rows.scored[known, 1 : length + 1].bool()
                wrong = (nexts + 1) % 99
                found[row, torch.arange(length), torch.where(learnt, nexts, wrong)] = 0.0
            return found.log_softmax(-1)

    knows: Any = Knows()
    found = answers_of(knows, rows, 5)
    assert found.verbatim == [True, True]
    assert found.scores["extraction strength"].tolist() == [1.0, 1.0, 1.0]
    assert math.isclose(float(found.losses.max()), 0.0, abs_tol=1e-5)
    text = LabelledSet(Encoded(rows.rows.values, rows.rows.mask), None)
    assert answers_of(knows, text, 3).verbatim == [False] * 3
