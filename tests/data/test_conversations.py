"""Rows of instructions: read from every format, digested by what is said, refused by row number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s3t.config import Config
from s3t.data import Conversation, load_all, load_private
from s3t.data.conversations import Turn, conversation_of
from s3t.data.rows import content_digest
from s3t.errors import ConfigError
from s3t.training.prepare.checks import check_run
from s3t.types import digest
from tests.support.sources import problems, write

PAIRS = {"prompt": "q", "completion": "a"}
ASKED = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
ROWS: list[dict[str, Any]] = [{"q": f"{n}?", "a": f"{n}!", "id": f"s{n}"} for n in range(4)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(private: str, public: str, **columns: Any) -> Config:
    kinds = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}

    def source(path: str) -> dict[str, str]:
        return {"format": kinds[Path(path).suffix], "files": path}

    data = {
        "private": source(private),
        "public": {"validation": source(public), "test": source(public)},
        "columns": columns,
        "chat_template": "base" if "messages" in columns else None,
    }
    base = {"task": "causal-lm", "model": {"base": "make:gpt2"}}
    return Config.model_validate({**base, "data": data})


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_prompts_and_completions_are_read_from_every_format(suffix: str) -> None:
    path = write(f"a.{suffix}", ROWS)
    found = load_all(config(path, path, **PAIRS, id="id"))
    assert found.private.rows.inputs[1] == Conversation.of("1?", "1!")
    assert found.test.inputs == found.private.rows.inputs
    assert found.overlap == 4
    assert found.private.samples[1].content == content_digest(Conversation.of("1?", "1!"), None)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_messages_are_read_from_every_format(suffix: str) -> None:
    held = json.dumps(ASKED) if suffix == "csv" else ASKED
    path = write(f"a.{suffix}", [{"m": held, "id": "s0"}])
    (one,) = load_private(config(path, path, messages="m", id="id"), ()).rows.inputs
    assert one == Conversation.of("Who?", "I.")
    assert one.messages() == ASKED and one.messages(1) == ASKED[:1]


def test_digests_cover_roles_and_contents_and_no_text_is_a_conversation() -> None:
    ours = [
        Conversation.of("a", "b"),
        Conversation.of("ab", ""),
        Conversation((Turn("system", "a"), Turn("assistant", "b"))),
        Conversation((Turn("user", "a"),)),
        "a b",
    ]
    assert len({content_digest(one, None) for one in ours}) == len(ours)
    assert content_digest("a b", None) == digest({"text": "a b", "label": None}), "as ever"


def test_rows_know_where_they_stand_in_the_source_wherever_they_are_taken() -> None:
    path = write("a.jsonl", ROWS[::-1])
    private = load_private(config(path, path, **PAIRS, id="id"), ())
    assert private.rows.numbers == (4, 3, 2, 1), "samples are sorted by id"
    assert private.without({"s1"}).rows.numbers == (4, 2, 1)


def test_problems_of_pairs_come_together_by_row() -> None:
    rows = [*ROWS, {"q": "x", "a": " "}, {"q": None, "a": "y"}, {"q": 3, "a": "\ud800"}]
    found = problems(load_private, config(write("a.jsonl", rows), "a.jsonl", **PAIRS), ())
    assert found == (
        "column 'q' (data.columns.prompt) is empty in row 6",
        "column 'q' is not valid text in row 7",
        "column 'a' (data.columns.completion) is empty in row 5",
        "column 'a' is not valid text in row 7",
    )
    found = problems(load_private, config("a.jsonl", "a.jsonl", prompt="q", completion="b"), ())
    assert found[0].startswith("no column 'b' (data.columns.completion): the columns are 'a'")


def test_problems_of_messages_come_together_by_row() -> None:
    user, bot = ASKED
    rows = [
        ASKED,
        None,
        "no json",
        [user],
        [user, {**bot, "role": "bot"}],
        [user, {**bot, "content": " "}],
        [user, {**bot, "content": None}],
        [user, {**bot, "content": ["x"]}],
        [user, {**bot, "tool_calls": []}],
        [user, {**bot, "name": None}],
        [user, "I."],
        [bot, user, bot],
        {"role": "user"},
        [],
    ]
    rows.append('[{"role": "user", "content": "Q", "content": "R"}]')
    path = write("a.jsonl", [{"m": row} for row in rows])
    found = problems(load_private, config(path, path, messages="m"), ())
    start = "column 'm' (data.columns.messages): messages "
    assert [one.removeprefix(start) for one in found] == [
        "are empty in rows 2, 14",
        "are not a list of {role, content}, nor that as JSON in rows 3, 13",
        "have no turn of the assistant, so there is nothing to learn in row 4",
        "have the role 'bot', expected system, user, assistant in row 5",
        "hold an empty content of the assistant in rows 6, 7",
        "hold a content that is not valid text in row 8",
        "hold 'tool_calls', and only role and content are understood in row 9",
        "hold something else than {role, content} in row 11",
        "begin with the assistant, who has nothing to answer in row 12",
        "are not a list of {role, content}, nor that as JSON (keys occur twice: 'content') "
        "in row 15",
    ]


def test_a_question_must_not_end_with_an_answer() -> None:
    assert conversation_of(ASKED[:1], asking=True).turns == (Turn("user", "Who?"),)
    with pytest.raises(ValueError, match="end with the assistant"):
        conversation_of(ASKED, asking=True)


def test_what_the_tokenizer_finds_is_told_before_anything_is_written(tmp_path: Path) -> None:
    long = {"q": "x" * 70, "a": "y", "id": "s9"}
    path, public = write("a.jsonl", [long, *ROWS]), write("b.jsonl", [*ROWS, long])
    with pytest.raises(ConfigError) as caught:
        check_run(config(path, public, **PAIRS, id="id"))
    told = str(caught.value)
    assert "data.private: row 1: data.max_length 64 cuts away all" in told
    assert "data.public.validation: row 5: " in told and "data.public.test: row 5: " in told
    assert "in 1 of 5: raise it, to 80" in told
    assert not (tmp_path / "runs").exists()
