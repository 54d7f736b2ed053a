"""The task and its columns: given, asked, guessed, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from s3t.data.looking import Look, Role, look_at
from s3t.data.sources import Table
from s3t.errors import InputError
from s3t.run.init.choices import Choices, Given, choose

TEXTS = ["the parcel is late again", "please send me the invoice", "it does not work at all"] * 4
MESSAGES: dict[str, list[Any]] = {
    "id": [f"m{n}" for n in range(12)],
    "customer": ["c1", "c2", "c3"] * 4,
    "message": TEXTS,
    "topic": ["a", "b"] * 6,
}
PAIRS = {"question": TEXTS, "answer": [f"so that {one}" for one in TEXTS]}


def looks(columns: dict[str, list[Any]]) -> dict[str, Look]:
    return look_at(Table(tuple(columns), 12, columns.__getitem__))


def chosen(columns: dict[str, list[Any]], task: str | None = None, **given: str) -> Choices:
    said: dict[Role, str] = given  # type: ignore[assignment]
    return choose(looks(columns), Given(task, said), None)


def without(*names: str) -> dict[str, list[Any]]:
    return {name: values for name, values in MESSAGES.items() if name not in names}


def test_messages_with_labels() -> None:
    found = chosen(MESSAGES)
    assert found.task == "text-classification"
    assert found.columns == {
        "label": "topic",
        "text": "message",
        "id": "id",
        "subject": "customer",
    }
    assert "subject 'customer': by its name, 3 persons in 12 rows" in found.reasons
    assert "label 'topic': by its name, 2 classes (a 6, b 6)" in found.reasons


def test_what_is_not_there_is_told() -> None:
    found = chosen(without("id", "customer"))
    assert found.columns == {"label": "topic", "text": "message"}
    assert any("a digest of its content" in one for one in found.reasons)
    assert any("not persons" in one for one in found.reasons)


def test_flags_count_before_guesses() -> None:
    found = chosen(MESSAGES, label="customer", subject="none", id="none")
    assert found.columns == {"label": "customer", "text": "message"}


@pytest.mark.parametrize(
    ("columns", "columns_found"),
    [
        (PAIRS, {"prompt": "question", "completion": "answer"}),
        ({"chat": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 12},
         {"messages": "chat"}),
    ],
)  # fmt: skip
def test_what_a_language_model_learns(
    columns: dict[str, list[Any]], columns_found: dict[str, str]
) -> None:
    found = chosen(columns)
    assert (found.task, found.columns) == ("causal-lm", columns_found)


def test_texts_alone_are_learnt_if_it_is_said() -> None:
    found = chosen(without("topic"), task="causal-lm")
    assert (found.task, found.columns["text"]) == ("causal-lm", "message")


@pytest.mark.parametrize(
    ("columns", "given", "parts"),
    [
        (without("topic"), {}, ["--label", "--task causal-lm"]),
        (PAIRS | {"label": ["x", "y"] * 6}, {}, ["--label", "--task causal-lm", "'label'"]),
        (MESSAGES | {"class": ["x", "y"] * 6}, {}, ["'topic', 'class'", "--label"]),
        (MESSAGES | {"user": ["x", "y"] * 6}, {}, ["'customer', 'user'", "--subject", "none"]),
        (without("message"), {}, ["no column of 'id', 'customer', 'topic'", "--text"]),
        (MESSAGES, {"label": "nothing"}, ["--label 'nothing' is no column", "'topic'"]),
        (MESSAGES, {"label": "topic", "text": "topic"}, ["'topic' has another role"]),
        (MESSAGES, {"text": "none"}, ["--text none: the task needs it"]),
        (MESSAGES, {"task": "sums"}, ["--task 'sums' is none of", "'causal-lm'"]),
    ],
)
def test_what_is_not_clear_is_refused(
    columns: dict[str, list[Any]], given: dict[str, str], parts: Sequence[str]
) -> None:
    with pytest.raises(InputError) as caught:
        chosen(columns, **given)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_all_that_is_not_clear_is_refused_together() -> None:
    more = {"class": ["x", "y"] * 6, "user": ["x", "y"] * 6}
    with pytest.raises(InputError, match=r"(?s)--label.*--subject"):
        chosen(MESSAGES | more)


def test_a_person_is_asked_with_the_guess_as_default() -> None:
    asked = []

    def ask(what: str, flag: str, options: Sequence[str], default: str | None) -> str:
        asked.append((flag, default))
        return "none" if flag == "--id" else default or options[0]

    found = choose(looks(MESSAGES), Given(), ask)
    assert asked == [
        ("--label", "topic"),
        ("--text", "message"),
        ("--id", "id"),
        ("--subject", "customer"),
    ]
    assert "id" not in found.columns


def test_what_is_given_is_not_asked() -> None:
    asked = []

    def ask(what: str, flag: str, options: Sequence[str], default: str | None) -> str:
        asked.append(flag)
        return default or options[0]

    given: dict[Role, str] = {"label": "topic", "id": "none"}
    choose(looks(MESSAGES), Given(columns=given), ask)
    assert asked == ["--text", "--subject"]
