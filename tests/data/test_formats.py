"""Formats by suffix and name, delimiters and encodings of text files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from s3t.config import Config, SourceConfig
from s3t.data import load_private
from s3t.errors import DataError
from tests.support.sources import LABELS, text_config


@pytest.fixture(autouse=True)
def _here(sources: None) -> None:
    """All that follows lies in a folder of its own."""


def source(path: str, **more: Any) -> Config:
    """A config whose private data has no format but that of its name."""
    tree = text_config("rows.csv").model_dump()
    tree["data"]["private"] = {"files": path, **more}
    return Config.model_validate(tree)


def texts(path: str, **more: Any) -> list[str]:
    return sorted(load_private(source(path, **more), LABELS).rows.inputs)


@pytest.mark.parametrize(
    ("files", "expected", "delimiter"),
    [
        ("a.csv", "csv", None),
        ("A.CSV.GZ", "csv", None),
        ("a.tsv.xz", "csv", None),
        ("rows-*.jsonl.bz2", "json", None),
        (["a.ndjson", "b.json"], "json", None),
        ("part-[0-9].parquet", "parquet", None),
        ("photos", "imagefolder", None),
    ],
)
def test_a_suffix_tells_the_format(files: Any, expected: str, delimiter: str | None) -> None:
    found = SourceConfig.model_validate({"files": files})
    assert (found.format, found.delimiter) == (expected, delimiter)


def test_other_names_of_formats_are_those_formats() -> None:
    for name, format_ in (("jsonl", "json"), ("ndjson", "json"), ("tsv", "csv")):
        one = SourceConfig.model_validate({"format": name, "files": "rows.txt"})
        assert one.format == format_ and (one.delimiter == "tab") is (name == "tsv")


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"files": "a.txt"}, "suffixes of files (.txt) do not tell one format"),
        ({"files": ["a.csv", "a.json"]}, "suffixes of files (.csv, .json) do not tell"),
        ({"files": "a.json", "delimiter": ";"}, "delimiter is of csv"),
        ({"files": "a.csv", "delimiter": "-"}, "Input should be"),
        ({"files": "a.parquet", "encoding": "cp1252"}, "encoding is of csv and json"),
        ({"files": "a.csv", "encoding": "latin77"}, "encoding 'latin77' is unknown: use utf-8"),
        ({"files": "a.csv", "encoding": "hex"}, "encoding 'hex' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(tree: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        SourceConfig.model_validate(tree)
    assert expected in str(caught.value)


@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
def test_a_delimiter_is_found_or_given(sign: str) -> None:
    lines = [f"text{sign}label", f"one{sign}good", f'"a{sign} b, c; d|e"{sign}bad']
    Path("a.csv").write_text("\n".join(lines))
    expected = sorted(["one", f"a{sign} b, c; d|e"])
    assert texts("a.csv") == texts("a.csv", delimiter=sign) == expected


def test_a_comma_comes_first_and_other_signs_stay_text() -> None:
    Path("a.csv").write_text('text,label,"x;y"\n"one;two|three",good,;\n')
    assert texts("a.csv") == ["one;two|three"]
    Path("a.csv").write_text("text\none; two\n")
    with pytest.raises(DataError, match="no column 'label'"):
        texts("a.csv")


def test_a_tab_comes_first_in_a_tsv_file() -> None:
    Path("a.tsv").write_text("text\tlabel\tx,y\none, two\tgood\t,\n")
    assert texts("a.tsv") == ["one, two"]
    Path("a.tsv").write_text("text;label\none;good\n")
    assert texts("a.tsv") == ["one"], "as some programs write it"


def test_uneven_lines_name_the_delimiter() -> None:
    Path("a.csv").write_text("text;label\na, b;good\nc;d;bad\n")
    expected = r"'a.csv': expected 2 cells in lines 3, .* separated by ';'.*give another delimiter"
    with pytest.raises(DataError, match=expected):
        texts("a.csv", delimiter=";")


def test_an_encoding_is_named_with_the_line_and_the_way_out() -> None:
    rows = "text,label\nplain,good\ncafé,bad\n"
    Path("a.csv.gz").write_bytes(gzip.compress(rows.encode("cp1252")))
    with pytest.raises(DataError) as caught:
        texts("a.csv.gz")
    (problem,) = caught.value.problems
    assert problem.startswith("cannot read 'a.csv.gz': line 3 holds byte 0xe9, which is not utf-8")
    assert "encoding: cp1252 (Latin-1)" in problem
    assert texts("a.csv.gz", encoding="cp1252") == ["café", "plain"]
    Path("b.csv").write_bytes(rows.encode("utf-16"))
    with pytest.raises(DataError, match="encoding: utf-16"):
        texts("b.csv")
    assert texts("b.csv", encoding="utf-16") == ["café", "plain"]


def test_json_has_an_encoding_too() -> None:
    Path("a.jsonl").write_bytes('{"text": "café", "label": "good"}\n'.encode("latin-1"))
    assert texts("a.jsonl", encoding="latin-1") == ["café"]
