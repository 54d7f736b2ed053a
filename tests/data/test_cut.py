"""Public rows that are cut aside by a keyed hash: whole persons, and each row by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.config import Config
from s3t.data import cut_names, label_names, load_all, load_private, load_public
from s3t.data.columns import Columns
from s3t.data.cut import REST, cut
from s3t.errors import DataError
from s3t.training.prepare.replan import add_files
from tests.support.sources import Row, problems, write

SHARES = {"adapt": 0.2, "validation": 0.2, "test": 0.2}


@pytest.fixture(autouse=True)
def _here(sources: None) -> None:
    """All that follows lies in a folder of its own."""


def rows(count: int, each: int = 3) -> list[Row]:
    return [
        {"id": f"r{n}", "who": f"p{n // each}", "text": f"text {n}", "label": "ab"[n % 2]}
        for n in range(count)
    ]


def config(data: dict[str, Any] | None = None, **more: Any) -> Config:
    own = {"private": {"files": "rows.csv"}, "cut_from": "private", **SHARES}
    base = {"task": "text-classification", "model": {"base": "make:bert"}}
    columns = {"columns": {"id": "id"}}
    return Config.model_validate({**base, "data": {**own, **columns, **(data or {})}, **more})


def of_persons(**more: Any) -> Config:
    return config(partition={"subject": "who"}, **more)


def texts(rows: Any) -> set[str]:
    return {*rows.inputs}


def parts_of(found: Columns, salt: str = "x") -> dict[str, list[int]]:
    return cut(found, salt, {"test": 0.3, "validation": 0.3})


def test_private_rows_are_cut_by_whole_persons():
    write("rows.csv", given_rows := rows(300))
    found = load_all(of_persons())
    public = {"adapt": found.adapt, "validation": found.validation, "test": found.test}
    assert all(40 < len(part) < 80 for part in public.values())
    kept = {sample.subject for sample in found.private.samples}
    people = {row["text"]: row["who"] for row in given_rows}
    aside = [{people[text] for text in texts(part)} for part in public.values()]
    assert sum(map(len, aside)) + len(kept) == 100 == len({*kept}.union(*aside))
    assert sum(map(len, public.values())) + len(found.private.samples) == 300
    assert found.cut is not None and found.cut.of_persons == 100 and found.cut.of_rows == 300
    assert found.cut.persons == 100 - len(kept)
    expected = f"{found.cut.persons} of 100 persons, {found.cut.rows} of 300 rows are cut aside as"
    assert found.cut.sentence() == f"{expected} public: they cannot be forgotten"


def test_each_part_is_read_alone_as_it_is_with_the_others():
    write("rows.csv", rows(90))
    whole, labels = load_all(of_persons()), ("a", "b")
    assert label_names(of_persons()) == whole.labels == labels
    for name in ("adapt", "validation", "test"):
        part = load_public(of_persons(), name, labels)
        assert part.inputs == getattr(whole, name).inputs
        assert part.labels == getattr(whole, name).labels
    assert load_private(of_persons(), labels).samples == whole.private.samples


def test_a_row_that_comes_or_goes_moves_no_other():
    many = rows(200, each=1)

    def dealt(some: Sequence[Row]) -> dict[str, set[str]]:
        write("rows.csv", list(some))
        found = load_all(of_persons())
        private = {"private": texts(found.private.rows)}
        return private | {one: texts(getattr(found, one)) for one in ("validation", "test")}

    whole = dealt(many)
    for part, held in dealt(many[::-2]).items():
        assert held < whole[part] and held


@given(names=st.lists(st.none() | st.text("abc", min_size=1), min_size=1, max_size=20))
def test_the_part_of_a_row_is_a_function_of_the_row(names: list[str | None]):
    inputs = [f"t{n % 4}" for n in range(len(names))]
    parts = parts_of(Columns("data.private", inputs=inputs, subjects=names))
    where = {row: part for part, held in parts.items() for row in held}
    assert sorted(where) == [*range(len(names))]
    for row, name in enumerate(names):
        alone = parts_of(Columns("data.private", inputs=[inputs[row]], subjects=[name]))
        assert alone[where[row]] == [0]


def test_copies_stay_together_whatever_their_ids_and_labels():
    inputs = ["same", "same", "other"]
    for salt in "abcdefgh":
        parts = parts_of(Columns("x", inputs=inputs, labels=["a", "b", "a"], subjects=[None] * 3))
        assert any({0, 1} <= {*held} for held in parts.values()), salt


def test_the_salt_moves_rows_and_parts_do_not_follow_slots():
    found = Columns("x", inputs=["t"] * 400, subjects=[f"p{n}" for n in range(400)])
    one, two = parts_of(found, "x"), parts_of(found, "y")
    assert one != two and all(60 < len(held) < 210 for held in (*one.values(), *two.values()))
    assert {*one} == {"test", "validation", REST}


def test_one_public_source_is_cut_and_the_rest_adapts():
    write("rows.csv", rows(30))
    write("open.csv", rows(200))
    public = {"cut_from": "public", "public": {"files": "open.csv"}, "adapt": None}
    found = load_all(of_persons(data=public))
    assert found.adapt is not None and found.cut is None and len(found.private.samples) == 30
    sizes = [len(found.validation), len(found.test), len(found.adapt)]
    assert sum(sizes) == 200 and min(sizes) > 15
    # and persons are whole: those of the public rows have a column of that name
    people = [
        {int(text.split()[1]) // 3 for text in part.inputs}
        for part in (found.validation, found.test, found.adapt)
    ]
    assert sum(map(len, people)) == len(set().union(*people)) == 67


def test_labels_come_from_rows_cut_aside_alone():
    write("rows.csv", [*rows(60), {"id": "x", "who": "p0", "text": "z", "label": "rare"}])
    person = next(f"p{n}" for n in range(20) if f"p{n}" not in cut_names(of_persons())[1])
    write("rows.csv", [*rows(60), {"id": "x", "who": person, "text": "z", "label": "rare"}])
    (problem,) = problems(load_all, of_persons())
    assert problem.startswith("labels 'rare' are not among 'a', 'b'")


def test_instructions_keep_the_numbers_of_their_rows():
    lines = [{"q": f"q{n}", "a": f"a{n}"} for n in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"private": {"files": "rows.jsonl"}, "columns": {"prompt": "q", "completion": "a"}}
    found = load_all(config(data={**data, **SHARES}, task="causal-lm", model={"base": "make:gpt2"}))
    for number, one in zip(found.test.numbers, found.test.inputs, strict=True):
        assert one.turns[0].content == f"q{number - 1}"


def test_ids_and_persons_cut_aside_are_named():
    write("rows.csv", rows(60))
    ids, people = cut_names(of_persons())
    held = load_all(of_persons()).private.samples
    assert ids == {row["id"] for row in rows(60)} - {sample.id for sample in held}
    assert people == {row["who"] for row in rows(60)} - {sample.subject for sample in held}


def test_a_part_without_rows_is_a_problem():
    write("rows.csv", rows(3))
    with pytest.raises(DataError, match="no row of 3 falls into the part"):
        load_all(of_persons())


def test_files_that_come_later_change_no_public_row():
    write("rows.csv", rows(120))
    write("later.csv", later := [{**row, "id": f"x{row['id']}"} for row in rows(240)])
    before = load_all(of_persons())
    for files in (("later.csv",), ("later.csv", "later.csv")):
        changed = add_files(of_persons(), files)
        assert changed.data.cut_files == str(Path("rows.csv").absolute())
        after = load_all(changed)
        for part in ("adapt", "validation", "test"):
            assert getattr(after, part).inputs == getattr(before, part).inputs
            assert load_public(changed, part, ("a", "b")).inputs == getattr(before, part).inputs
        people = {sample.subject for sample in after.private.samples}
        assert not people & cut_names(changed)[1]
        ids = {sample.id for sample in after.private.samples}
        assert ids > {sample.id for sample in before.private.samples}
        assert ids & {row["id"] for row in later} == {
            row["id"] for row in later if row["who"] in people
        }
    assert add_files(changed, ("public.jsonl",)).data.cut_files == changed.data.cut_files


def test_copies_in_the_rows_cut_aside_count_once():
    write("rows.csv", rows(60))
    once = load_all(of_persons(data={"columns": {}}))
    write("rows.csv", rows(60) * 2)
    twice = load_all(of_persons(data={"columns": {}}))
    assert twice.private.folded == len(twice.private.samples)
    for part in ("adapt", "validation", "test"):
        assert getattr(twice, part).inputs == getattr(once, part).inputs
