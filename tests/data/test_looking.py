"""Which column is what: by name, by content, and where it is not clear."""

from __future__ import annotations

from typing import Any

import pytest

from s3t.data.looking import Role, guess, look_at
from s3t.data.sources import Table

TALK = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
WORDS = ["the parcel is late again", "please send me the invoice", "it does not work at all"]


def table(columns: dict[str, list[Any]]) -> Table:
    return Table(tuple(columns), len(next(iter(columns.values()))), columns.__getitem__)


def found(role: Role, columns: dict[str, list[Any]]) -> tuple[str, ...]:
    return guess(role, look_at(table(columns)).values()).candidates


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (WORDS, "text"),
        (["a", "b b", "c"], "word"),
        (["1", "2.5", "-3"], "number"),
        ([1, None, 3], "number"),
        ([TALK, TALK, TALK], "messages"),
        (['[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'], "messages"),
        ([b"\x89PNG", b"\x89PNG"], "image"),
        ([{"bytes": b"\x89PNG", "path": None}], "image"),
        (["[sic] so he said it to me"], "text"),
        ([None, None], "other"),
        ([{"a": 1}, {"a": 2}], "other"),
    ],
)
def test_kind(values: list[Any], kind: str) -> None:
    assert look_at(table({"x": values}))["x"].kind == kind


def test_counts_skip_empty_cells() -> None:
    look = look_at(table({"who": ["a", "", "a", None, " "]}))["who"]
    assert (look.rows, look.filled, look.values) == (5, 2, {"a": 2})


COLUMNS: dict[str, list[Any]] = {
    "id": [f"m{n}" for n in range(12)],
    "Customer ID": ["c1", "c2", "c3"] * 4,
    "message": WORDS * 4,
    "topic": ["a", "b"] * 6,
    "channel": ["web", "mail"] * 6,
}


@pytest.mark.parametrize(
    ("role", "column"),
    [("id", "id"), ("subject", "Customer ID"), ("text", "message"), ("label", "topic")],
)
def test_a_name_tells(role: Role, column: str) -> None:
    assert found(role, COLUMNS) == (column,)


def test_content_has_to_fit_the_name() -> None:
    assert found("id", {"id": ["a", "a", "b", "b"]}) == ()
    assert found("label", {"label": ["a", "b", "c", "d"]}) == ()
    assert found("text", {"message": [1, 2]}) == ()


def test_content_tells_where_no_name_does() -> None:
    three = ["x", "y", "z"] * 4
    assert found("label", {"a": WORDS * 4, "b": three, "customer": three}) == ("b",)
    assert found("label", {"b": three, "c": three}) == ("b", "c")
    assert found("label", {"b": three, "n": ["1", "2", "3"] * 4}) == ("b",)
    long = [f"{one} {one} {one}" for one in WORDS]
    assert found("text", {"short": WORDS, "long": long}) == ("long",)
    assert found("text", {"one": WORDS, "two": [f"{one} so" for one in WORDS]}) == ("one", "two")


def test_a_plain_name_counts_before_others() -> None:
    assert found("label", {"stars": ["1", "2"] * 4, "label": ["x", "y"] * 4}) == ("label",)
    people = {"customer": ["a", "b"] * 2, "email": ["a@b", "b@c"] * 2}
    assert found("subject", people) == ("customer",)
    assert found("subject", {"user": ["a", "b"] * 2, "patient": ["a", "b"] * 2}) == (
        "user",
        "patient",
    )


def test_images_of_a_folder_are_images() -> None:
    paths = ["a.png", "b.png"]
    columns: dict[str, list[Any]] = {"picture": paths, "label": ["x", "y"]}
    folder = Table(tuple(columns), 2, columns.__getitem__, origins=[(path,) for path in paths])
    assert look_at(folder)["picture"].kind == "image"
