"""Rows as Python objects: tables are rows, one text is one row, and nothing private is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s3t.config import ColumnsConfig, SourceConfig
from s3t.data.given import records, rows_of
from s3t.data.lending import lent, taken_out
from s3t.data.sources import read_table
from s3t.errors import DataError, InputError

ROWS = [{"text": "one", "label": "a", "age": 3}, {"text": "two", "label": "b", "age": None}]


def tables() -> dict[str, Any]:
    import datasets
    import pandas as pd
    import pyarrow as pa

    return {
        "pandas": pd.DataFrame(ROWS),
        "datasets": datasets.Dataset.from_list(ROWS),
        "pyarrow": pa.Table.from_pylist(ROWS),
        "list": ROWS,
        "tuple": tuple(ROWS),
    }


@pytest.mark.parametrize("kind", ["pandas", "datasets", "pyarrow", "list", "tuple"])
def test_the_rows_of_a_table_are_its_rows(kind: str) -> None:
    given = tables()[kind]
    found = records(given)
    assert found == ROWS
    assert type(found[0]["age"]) is (float if kind == "pandas" else int)
    assert rows_of(given) == ROWS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("two words", ["two words"]),
        ({"text": "one"}, [{"text": "one"}]),
        (Path("picture.png"), [Path("picture.png")]),
        (["a", "b"], ["a", "b"]),
        ((text for text in "ab"), ["a", "b"]),
        ([], []),
    ],
)
def test_what_stands_alone_is_one_row(given: Any, expected: list[Any]) -> None:
    assert rows_of(given) == expected


def test_an_array_is_its_rows() -> None:
    assert [row.shape for row in rows_of(np.zeros((3, 8, 8)))] == [(8, 8)] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (7, "rows are expected as a table or a list of dicts, got a int"),
        ("text", "rows are expected as a table or a list of dicts, got a str"),
        ([{"a": 1}, "b"], "row 2 is a str"),
        ([{1: "a"}], "column 1 has a name that is no text"),
    ],
)
def test_what_is_no_rows_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        records(given)


def test_private_rows_are_lent_and_gone_afterwards(tmp_path: Path) -> None:
    before = {**os.environ}
    source = SourceConfig.model_validate({"format": "rows"})
    with lent(ROWS):
        table = read_table(source, ColumnsConfig())
        assert (table.size, table.column("text")) == (2, ["one", "two"])
        (name,) = {*os.environ} - {*before}
        path = Path(os.environ[name])
        assert path.is_file() and path.parent.stat().st_mode & 0o077 == 0
    assert not path.exists() and dict(os.environ) == before
    with pytest.raises(DataError, match=r"S3T\.repair\(run, data=rows\)"):
        read_table(source, ColumnsConfig())


def test_public_rows_are_files_and_private_ones_are_taken_out(tmp_path: Path) -> None:
    given = {"private": ROWS, "public": {"validation": ROWS, "test": {"files": "test.csv"}}}
    data, private = taken_out(given, tmp_path)
    assert private is ROWS and data["private"] == {"format": "rows"}
    assert data["public"]["test"] == {"files": "test.csv"}
    assert Path(data["public"]["validation"]["files"]).read_text().count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["validation.jsonl"]
    assert given["private"] is ROWS, "what was given is as it was"


def test_a_value_without_a_form_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"data\.private, row 1: a object has no form"),
        lent([{"text": object()}]),
    ):
        pass
