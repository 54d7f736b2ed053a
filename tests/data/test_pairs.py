"""Texts that are judged two at a time: read, digested, tokenized and asked for as pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from s3t.data import load_private
from s3t.data.rows import Pair, content_digest
from s3t.errors import DataError, InputError
from s3t.model.built import byte_tokenizer
from s3t.model.inputs.encoders import TextEncoder
from s3t.service import S3T
from s3t.training.work.train import train
from tests.support.small_runs import nodes, person_rows, small_configs, write_csv
from tests.support.sources import LABELS, problems, text_config, write

COLUMNS = {"text": "a", "text_pair": "b"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("public.jsonl", [{"a": "x", "b": "y", "label": label} for label in LABELS])


def test_pairs_are_read_and_refused_by_row() -> None:
    rows = [{"a": "one", "b": "two", "label": "good"}, {"a": "one", "b": "", "label": "bad"}]
    private = load_private(text_config(write("a.csv", rows[:1]), columns=COLUMNS), LABELS)
    assert private.rows.inputs == (Pair("one", "two"),)
    found = problems(load_private, text_config(write("a.csv", rows), columns=COLUMNS), LABELS)
    assert found == ("column 'b' (data.columns.text_pair) is empty in row 2",)
    contents = [Pair("ab", "c"), Pair("a", "bc"), "abc"]
    assert len({content_digest(one, "good") for one in contents}) == 3


def test_pairs_are_joined_as_the_tokenizer_joins_two() -> None:
    tokenizer: PreTrainedTokenizerFast = byte_tokenizer()
    rows = TextEncoder(tokenizer, 16).encode([Pair("ab", "c"), Pair("a", "b" * 30)])
    assert rows.values[0].tolist()[:3] == tokenizer("ab", "c")["input_ids"][:3]
    assert rows.truncated == 1
    with pytest.raises(DataError, match="a text is expected"):
        TextEncoder(tokenizer, 16).encode([("a", 3)])


@pytest.mark.slow
def test_a_run_of_pairs_answers_pairs(tmp_path: Path) -> None:
    make = small_configs(tmp_path)
    for name, persons in (("private", 16), ("public", 8)):
        rows = [row | {"more": f"so {row['id']}"} for row in person_rows(persons)]
        write_csv(tmp_path / f"{name}.csv", rows)
    data = make().data.model_dump()
    alone, pairs = (
        make(name, data=data | {"columns": data["columns"] | {"text_pair": more}})
        for name, more in (("alone", None), ("pairs", "more"))
    )
    train(alone)
    train(pairs)
    assert not {*nodes(alone)} & {*nodes(pairs)}
    with S3T.load(pairs.run_dir) as model:
        asked = {"text": "person 1 says 8", "more": "so s011"}
        assert model.predict([asked]) == model.predict([[asked["text"], asked["more"]]])
        for row in ("text", [asked["text"]], {"text": "a"}):
            with pytest.raises(InputError, match="row 0"):
                model.predict([row])


def test_pairs_are_for_classifiers(tmp_path: Path) -> None:
    config = small_configs(tmp_path)(task="causal-lm", model={"base": "make:gpt2"})
    columns = config.data.columns.model_copy(update={"text_pair": "more"})
    data = config.data.model_copy(update={"columns": columns})
    (problem,) = config.model_copy(update={"data": data}).problems()
    assert "data.columns.text_pair does not fit task 'causal-lm'" in problem
