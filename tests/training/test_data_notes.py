"""What plan says of persons: the numbers by which a wrong column is found."""

from __future__ import annotations

from pathlib import Path

from s3t.config import Config
from s3t.data import Data, LabelledRows, PrivateData
from s3t.training.prepare.checks import check_run
from s3t.training.prepare.data_notes import data_notes
from s3t.types import Digest, Sample, SampleId, Subject
from tests.support.small_runs import person_rows, write_csv
from tests.support.sources import text_config


def notes(people: list[str | None], folded: int = 0, overlap: int = 0) -> list[str]:
    samples = tuple(
        Sample(SampleId(f"s{n}"), None if who is None else Subject(who), Digest(f"d{n}"))
        for n, who in enumerate(people)
    )
    rows = LabelledRows((), ())
    private = PrivateData(samples, rows, folded)
    data = Data((), private, None, rows, rows, overlap, ())
    return [*data_notes(config(), data)]


def config() -> Config:
    return text_config("rows.csv", partition={"subject": "who"})


def test_persons_and_rows_without_one_are_counted() -> None:
    assert notes(["ann", "ann", "bob", None, None]) == [
        "2 persons in 5 samples, by the column 'who'",
        "2 samples name no person in 'who': only an id deletes them",
    ]


def test_a_column_with_another_value_in_each_row_is_told() -> None:
    rows: list[str | None] = [f"message {n}" for n in range(20)]
    told = "another value in each of 20 samples: see that it names persons"
    assert told in notes(rows)[1] and told in notes([*rows, None])[2]
    assert len(notes([*rows, "message 0"])) == 1 and len(notes(rows[:19])) == 1


def test_names_that_a_request_may_miss_are_told() -> None:
    found = notes(["Ann", "ann ", "bob", "17.0", "17", "x.0"])
    assert found[1] == (
        "2 persons have names that look alike ('Ann', 'ann '): they count as different persons, "
        "and deleting one leaves the others"
    )
    assert found[2] == (
        "1 persons end in .0 ('17.0'), as spreadsheets write numbers: a request for '17' does not "
        "find them"
    )
    assert len(found) == 3


def test_words_for_none_are_no_persons() -> None:
    found = notes(["ann", "NULL", "nan", None])
    assert found[2].startswith("a person is named 'NULL', 'nan': if that stands for none, leave")


def test_copies_and_public_content_are_told() -> None:
    assert [note[:22] for note in notes(["ann"], 2, 3)[1:]] == [
        "2 exact copies of the ",
        "3 private samples are ",
    ]


def test_plan_and_train_say_how_many_cannot_be_forgotten(tmp_path: Path) -> None:
    write_csv(tmp_path / "rows.csv", person_rows(40))
    made = {"hidden": 16, "layers": 2, "heads": 2}
    cut = {"cut_from": "private", "validation": "20%", "test": "20%"}
    tree = {
        "task": "text-classification",
        "data": {"private": {"files": str(tmp_path / "rows.csv")}, **cut},
        "model": {"base": "make:bert", "make": made},
        "partition": {"shards": 2, "slices": 2, "subject": "who"},
    }
    checked = check_run(Config.model_validate(tree))
    assert checked.data.cut is not None and 0 < checked.data.cut.persons < 40
    assert checked.notes[0] == checked.data.cut.sentence(), "which train logs and plan prints"
    assert f"{checked.data.cut.persons} of 40 persons, " in checked.notes[0]
    assert len(checked.data.private.samples) == 120 - checked.data.cut.rows
