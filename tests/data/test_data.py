"""Reading sources: ids, subjects, labels, digests, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3t.config import Config
from s3t.data import label_names, load_all, load_private, load_public
from s3t.errors import DataError
from s3t.types import digest
from tests.support.sources import LABELS, PUBLIC, ROWS, Row, problems, text_config, write


@pytest.fixture(autouse=True)
def _here(sources: None) -> None:
    """All that follows lies in a folder of its own."""


@pytest.mark.parametrize("path", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_the_same_rows_from_every_format(path: str):
    config = text_config(write(path, ROWS), columns={"id": "id"}, partition={"subject": "who"})
    private = load_private(config, LABELS)
    assert [s.id for s in private.samples] == ["007", "1e3", "7"]
    assert [s.subject for s in private.samples] == ["0042", "2024-01-01", None]
    assert list(private.rows.inputs) == [ROWS[0]["text"], "nan", "NA"]
    assert private.rows.labels == (1, 0, 0)
    assert len(private.rows) == 3 and private.folded == 0
    assert private.index == {"007": 0, "1e3": 1, "7": 2}
    assert private.index is private.index
    assert private.samples[0].content == digest({"text": ROWS[0]["text"], "label": "good"})


def test_a_list_of_files_and_globs_is_read_in_order_once():
    write("d/b.csv", ROWS[1:2])
    write("d/a.csv", ROWS[:1])
    write("c.csv", ROWS[2:])
    config = text_config(["c.csv", "d/*.csv", "d/a.csv"], columns={"id": "id"})
    assert [s.id for s in load_private(config, LABELS).samples] == ["007", "1e3", "7"]


def test_a_file_name_may_hold_glob_signs():
    write("a[1].csv", ROWS)
    assert len(load_private(text_config("a[1].csv"), LABELS).samples) == 3


def test_a_byte_order_mark_is_not_part_of_a_column():
    Path("a.csv").write_text("text,label\nhi,good\n", encoding="utf-8-sig")
    assert load_private(text_config("a.csv"), LABELS).rows.inputs[0] == "hi"


def test_a_json_list_is_read():
    Path("a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert len(load_private(text_config("a.json"), LABELS).samples) == 3


@pytest.mark.parametrize("path", ["a.jsonl", "a.parquet"])
def test_numbers_become_text_and_gaps_stay_empty(path: str):
    rows = [
        {"text": f"t{n}", "label": n % 2, "id": n, "who": who}
        for n, who in enumerate([3.0, float("nan"), None, 4])
    ]
    config = text_config(
        write(path, rows), columns={"id": "id"}, partition={"subject": "who"}, labels=["0", "1"]
    )
    private = load_private(config, ("0", "1"))
    assert [s.subject for s in private.samples] == ["3", None, None, "4"]
    assert [s.id for s in private.samples] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("column", ["id", "who"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "holds true, false, or a number that is not exact, in row 1"),
        (2.5, "holds true, false, or a number that is not exact, in row 1"),
        (2.0**53 + 2, "holds true, false, or a number that is not exact, in row 1"),
        (float("inf"), "holds true, false, or a number that is not exact, in row 1"),
        ("a\0b", "holds NUL, or more than 4,096 characters, in row 1"),
        ("a" * 4097, "holds NUL, or more than 4,096 characters, in row 1"),
    ],
)
def test_names_that_no_request_could_name_are_refused(column: str, value: Any, expected: str):
    row = {"text": "t", "label": "good", "id": "1", "who": "p"} | {column: value}
    config = text_config(
        write("a.jsonl", [row]), columns={"id": "id"}, partition={"subject": "who"}
    )
    (problem,) = problems(load_private, config, LABELS)
    assert f"column {column!r} {expected}" in problem


def test_names_are_what_the_data_say():
    names = [" x", "x ", "a,b", "c\nd", "[/bold]", "-v", '"q"', "007", "1e3", "a\u0301"]
    rows = [{"text": "t", "label": "good", "id": name, "who": name} for name in names]
    for path in ("a.csv", "a.jsonl", "a.parquet"):
        config = text_config(write(path, rows), columns={"id": "id"}, partition={"subject": "who"})
        samples = load_private(config, LABELS).samples
        assert [(one.id, one.subject) for one in samples] == [(n, n) for n in sorted(names)]


def test_split_expressions():
    write("a.csv", [{"text": f"t{n}", "label": "bad"} for n in range(10)])
    first = load_private(text_config("a.csv", split="train[:80%]"), LABELS)
    assert {*first.rows.inputs} == {f"t{n}" for n in range(8)}
    rest = load_private(text_config("a.csv", split="train[8:9]+train[-1:]"), LABELS)
    assert {*rest.rows.inputs} == {"t8", "t9"}
    (problem,) = problems(load_private, text_config("a.csv", split="test"), LABELS)
    assert "split 'test' cannot be used" in problem and "'train[:80%]'" in problem
    (problem,) = problems(load_private, text_config("a.csv", split="train[50:60]"), LABELS)
    assert "split" in problem or "no rows" in problem


# --- ids and folding -----------------------------------------------------------------------------


def test_derived_ids_fold_exact_copies_of_one_subject():
    rows = [
        {"text": "a", "label": "bad", "who": "ann"},
        {"text": "a", "label": "bad", "who": "ann"},
        {"text": "a", "label": "bad", "who": "bob"},
        {"text": "a", "label": "bad", "who": ""},
        {"text": "a", "label": "bad", "who": "  "},
        {"text": "a", "label": "good", "who": "ann"},
    ]
    private = load_private(text_config(write("a.csv", rows), partition={"subject": "who"}), LABELS)
    assert len(private.samples) == 4 and private.folded == 2
    assert [s.id for s in private.samples] == sorted(s.id for s in private.samples)
    for one in private.samples:
        assert one.id == digest([one.subject, one.content])
    for one, row, label in zip(
        private.samples, private.rows.inputs, private.rows.labels or (), strict=True
    ):
        assert one.content == digest({"text": row, "label": LABELS[label]})


def test_given_ids_keep_exact_copies():
    rows = [{"text": "a", "label": "bad", "id": n} for n in range(3)]
    private = load_private(text_config(write("a.csv", rows), columns={"id": "id"}), LABELS)
    assert len(private.samples) == 3 and private.folded == 0
    assert len({s.content for s in private.samples}) == 1


def test_ids_twice_and_blank_are_problems_together():
    rows = [{"text": "a", "label": "bad", "id": i} for i in ["x", "", "x", "y", " "]]
    found = problems(load_private, text_config(write("a.csv", rows), columns={"id": "id"}), LABELS)
    assert found == (
        "column 'id' (data.columns.id) is empty in rows 2, 5",
        "ids occur twice: 'x'; give every row its own id",
    )


# --- risk tiers ----------------------------------------------------------------------------------


def risk_config(rows: list[Row] | str, path: str = "a.jsonl", **more: Any) -> Config:
    """Text rows with ids and a risk column, ``risk``; more keys go to ``partition.risk``."""
    subject, adapt = more.pop("subject", None), more.pop("adapt", None)
    given = more.pop("columns", {"id": "id"})
    public = {"adapt": {"format": "json", "files": adapt}} if adapt else {}
    return text_config(
        rows if isinstance(rows, str) else write(path, rows),
        columns=given,
        public=public,
        partition={"subject": subject, "risk": {"column": "risk", **more}},
    )


def risk_rows(*values: Any, **more: Any) -> list[Row]:
    return [
        {"text": f"t{n}", "label": "bad", "id": f"s{n:02d}", "risk": value, **more}
        for n, value in enumerate(values)
    ]


def tiers(config: Config) -> list[int]:
    assert load_private(config, LABELS).samples == load_all(config).private.samples
    return [one.tier for one in load_private(config, LABELS).samples]


@pytest.mark.parametrize("path", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_number_gives_the_tier(path: str):
    rows = risk_rows(-1.5, 29.999, 30, 59, 60, 1e9)
    assert tiers(risk_config(rows, path, thresholds=[30, 60])) == [0, 0, 1, 1, 2, 2]


def test_numbers_in_other_spellings():
    rows = risk_rows("3", " 3e0 ", 10**30, "-0")
    assert tiers(risk_config(rows, thresholds=[3])) == [1, 1, 1, 0]


@pytest.mark.parametrize("path", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_date_gives_its_age_on_a_fixed_day(path: str):
    dates = ["2024-12-31", "2024-12-22", "2024-12-21", "2023-05-05", "2025-02-01"]
    config = risk_config(risk_rows(*dates), path, thresholds=[10, 365], as_of="2024-12-31")
    assert tiers(config) == [0, 0, 1, 2, 0]


def test_dates_and_times_of_parquet_and_their_text():
    import datetime as dt

    for kind in (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 23, 59), "2024-01-01T23:59:59Z"):
        config = risk_config(risk_rows(kind), "a.parquet", thresholds=[10], as_of="2024-01-11")
        assert tiers(config) == [1]
        config = risk_config(risk_rows(kind), "a.parquet", thresholds=[11], as_of="2024-01-11")
        assert tiers(config) == [0]


def test_quantiles_are_those_of_the_public_column_alone():
    write("adapt.jsonl", [{**PUBLIC[0], "risk": value} for value in (9, 1, 7, 3)])
    quantiles: Row = {"quantiles": [0.5], "adapt": "adapt.jsonl"}
    config = risk_config(risk_rows(3, 6, 7, 8), **quantiles)
    assert tiers(config) == [0, 0, 1, 1] and load_all(config).thresholds == (7,)
    # whoever else is there, and whatever their values are
    assert tiers(risk_config(risk_rows(3, 6000, 7, 8000), **quantiles)) == [0, 1, 1, 1]
    assert tiers(risk_config(risk_rows(6), **quantiles)) == [0]
    write("adapt.jsonl", [{**PUBLIC[0], "risk": value} for value in (9, 1, 7, 8)])
    assert tiers(risk_config(risk_rows(3, 6, 7, 8), **quantiles)) == [0, 0, 0, 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=20),
    st.data(),
)
def test_no_row_moves_another(drawn: list[tuple[int, int]], data: st.DataObject):
    """Removing rows leaves every other sample its tier, and so its place."""
    risk_of = {who: value for value, who in drawn}  # the same for all rows of a person
    rows = [
        {"text": f"t{n}", "label": "bad", "id": f"s{n}", "who": f"p{who}", "risk": risk_of[who]}
        for n, (_, who) in enumerate(drawn)
    ]
    kept = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    write("adapt.jsonl", [{**PUBLIC[0], "risk": value} for value in range(10)])
    shape: Row = {"subject": "who", "quantiles": [0.3, 0.6], "adapt": "adapt.jsonl"}
    whole = {s.id: s for s in load_private(risk_config(rows, **shape), LABELS).samples}
    part = load_private(risk_config([rows[n] for n in kept], **shape), LABELS).samples
    assert len(part) == len(kept) and all(whole[one.id] == one for one in part)


def test_a_person_in_several_tiers_is_refused():
    rows = [{**row, "who": who} for row, who in zip(risk_rows(1, 2, 5, 9), "abba", strict=True)]
    (problem,) = problems(load_all, risk_config(rows, subject="who", thresholds=[4]))
    assert problem == (
        "partition.risk puts rows of one person into several tiers (subjects 'a', 'b'): "
        "give a column that is the same for all rows of a person"
    )
    assert tiers(risk_config(rows, subject="who", thresholds=[10])) == [0, 0, 0, 0]
    assert tiers(risk_config(rows, thresholds=[4])) == [0, 0, 1, 1]


def test_exact_copies_in_several_tiers_are_refused():
    rows = [{**row, "text": text} for row, text in zip(risk_rows(1, 2, 5), "xyx", strict=True)]
    (problem,) = problems(load_private, risk_config(rows, thresholds=[4]), LABELS)
    assert "exact copies into several tiers (ids 's00', 's02'): give copies the same" in problem
    # folded into one sample the first of them would decide, which depends on their order
    (problem,) = problems(load_private, risk_config(rows, thresholds=[4], columns={}), LABELS)
    assert "exact copies into several tiers (rows 1, 3): give copies the same" in problem
    mine = [{**row, "who": who} for row, who in zip(rows, ["a", "b", ""], strict=True)]
    assert tiers(risk_config(mine, subject="who", thresholds=[4])) == [0, 0, 1]


@pytest.mark.parametrize(
    ("values", "risk", "expected"),
    [
        (
            [1, None, " ", float("nan"), "x", True, "inf", "1_0", [1], 10**400],
            {},
            [
                "column 'risk' (partition.risk.column) is empty in rows 2, 3, 4",
                "column 'risk' (partition.risk.column) is not a finite number in rows 5, 6, 7, 8, "
                "9, 10: for dates give partition.risk.as_of",
            ],
        ),
        (
            ["2024-01-01", "", "01.02.2024", 20240101, "2024-02-30"],
            {"as_of": "2024-06-01"},
            [
                "column 'risk' (partition.risk.column) is empty in row 2",
                "column 'risk' (partition.risk.column) is not an ISO date in rows 3, 4, 5: "
                "write it as YYYY-MM-DD",
            ],
        ),
    ],
)
def test_cells_that_give_no_tier_are_named_by_row(values: list[Any], risk: Row, expected: Any):
    config = risk_config(risk_rows(*values), thresholds=[3], **risk)
    assert list(problems(load_private, config, LABELS)) == expected


def test_problems_of_the_risk_column_come_with_the_others():
    rows = [{"text": "", "label": "bad", "id": "a"}]
    write("adapt.jsonl", [{**PUBLIC[0], "risk": value} for value in (1, 1, 1, 2)])
    config = risk_config(rows, quantiles=[0.5], adapt="adapt.jsonl")
    expected = (
        "data.private: no column 'risk' (partition.risk.column): the columns are 'id', 'label', "
        "'text'",
        "data.private: column 'text' (data.columns.text) is empty in row 1",
        "data.public.adapt: column 'risk' (partition.risk): the quantiles [0.5] of its 4 values "
        "are [1.0], which leaves a tier without any: give thresholds, or fewer quantiles",
    )
    assert problems(load_all, config) == problems(load_private, config, LABELS) == expected
    write("adapt.jsonl", PUBLIC)
    assert "data.public.adapt: no column 'risk' (partition.risk" in problems(load_all, config)[-1]
    write("adapt.jsonl", [PUBLIC[0], {**PUBLIC[0], "risk": 3}])
    assert "is empty in row 1" in problems(load_all, config)[-1]
    # thresholds need no column in public data, and without adapt there are no quantiles
    assert tiers(risk_config(risk_rows(1, 2), thresholds=[2], adapt="adapt.jsonl")) == [0, 1]
    (problem,) = problems(load_all, risk_config(risk_rows(1), quantiles=[0.5]))
    assert problem.startswith("partition.risk.quantiles needs data.public.adapt")


# --- bad rows and columns ------------------------------------------------------------------------


def test_all_problems_of_a_source_come_together():
    rows = [
        {"text": "", "label": "bad"},
        {"text": "b", "label": ""},
        {"text": "c", "label": "ugly"},
        {"text": "d", "label": "odd"},
    ]
    config = text_config(write("a.csv", rows))
    with pytest.raises(DataError, match=r"data\.private: 3 problems") as caught:
        load_private(config, LABELS)
    empty_text, empty_label, unknown = caught.value.problems
    assert "'text'" in empty_text and empty_text.endswith("row 1")
    assert "'label'" in empty_label and empty_label.endswith("row 2")
    assert unknown.startswith("labels 'odd', 'ugly' are not among 'bad', 'good'")
    assert "never from private samples" in unknown


def test_many_unknown_labels_are_counted():
    rows = [{"text": "a", "label": f"l{n:02d}"} for n in range(15)]
    (problem,) = problems(load_private, text_config(write("a.csv", rows)), LABELS)
    assert "'l09' and 5 more" in problem


def test_labels_that_differ_in_each_row_are_no_classes():
    rows = [{"text": f"t{n}", "label": f"message {n}"} for n in range(20)]
    (problem,) = problems(load_private, text_config(write("a.csv", rows)), LABELS)
    assert problem.startswith("the label column has another value in each of 20 rows, so these are")
    (problem,) = problems(load_private, text_config(write("a.csv", [*rows, rows[0]])), LABELS)
    assert problem.startswith("labels 'message 0', ")


def test_missing_columns_name_those_that_exist():
    config = text_config(
        write("a.csv", ROWS), columns={"text": "body", "id": "key"}, partition={"subject": "p"}
    )
    (problem,) = problems(load_private, config, LABELS)
    for part in ("'body' (data.columns.text)", "'key' (data.columns.id)", "'p' (partition.subj"):
        assert part in problem
    assert "the columns are 'id', 'label', 'text', 'who'" in problem


def test_missing_files_come_together():
    config = text_config(["no.csv", "none-*.csv", "."])
    found = problems(load_private, config, LABELS)
    assert "'no.csv' does not exist" in found[0]
    assert "no file matches 'none-*.csv'" in found[1]
    assert "'.' is a directory" in found[2]


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text,label,text\na,b,c\n", "names columns twice: 'text'"),
        ("a.csv", b"text,label\na,bad\nb\nc,bad,x\n", "expected 2 cells in lines 3, 4"),
        ("a.csv", b"text,label\n\xff,bad\n", "line 2 holds byte 0xff, which is not utf-8"),
        ("a.csv", b'text,label\n"a,bad\n', "cannot read 'a.csv'"),
        ("a.csv.gz", b"not gzip", "cannot read 'a.csv.gz'"),
        (
            "a.jsonl",
            b'{"text": "a", "label": "bad"}\n{"text":\n[1]\n',
            "no key of it twice, in lines 2, 3",
        ),
        ("a.jsonl", b'{"text": "a", "label": "bad", "label": "good"}', "twice, in lines 1"),
        ("a.jsonl", b'{"text": "a", "label": "bad", "x": {"y": 1, "y": 2}}', "twice, in lines 1"),
        ("a.json", b'[{"text": "a", "text": "b", "label": "bad"}]', "keys occur twice: 'text'"),
        ("a.jsonl", b"[" * 100_000, "cannot read 'a.jsonl'"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "no key of it twice, in lines 1"),
        ("a.jsonl", b"[1, 2", "cannot read 'a.jsonl'"),
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b'{"text": 3, "label": "bad"}', "not valid text in row 1"),
        ("a.jsonl", b'{"text": "\\ud800", "label": "bad"}', "not valid text in row 1"),
        ("a.jsonl", b'{"text": "a", "label": ["bad"]}', "not text or a number in row 1"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b", "label": "bad"}', "is empty in row 1"),
        ("a.parquet", b"PAR1", "cannot read 'a.parquet'"),
    ],
)
def test_bad_files(path: str, content: bytes, expected: str):
    Path(path).write_bytes(content)
    found = problems(load_private, text_config(path), LABELS)
    assert expected in "\n".join(found)


def test_a_parquet_file_that_names_a_column_twice_is_refused():
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["bad"])]
    pq.write_table(pa.table(columns, names=["text", "text", "label"]), "a.parquet")
    (problem,) = problems(load_private, text_config("a.parquet"), LABELS)
    assert problem == "'a.parquet' names columns twice: 'text'"


@pytest.mark.parametrize(
    ("file", "ids", "kind"),
    [("mine/a.csv", ["007", "08"], "csv"), ("mine/a.jsonl", ["2020-01-01", "2020-01-02"], "json")],
)
def test_ids_that_datasets_would_change_are_refused(file: str, ids: list[str], kind: str):
    write(
        file, [{"text": f"row {one}", "label": "bad", "id": one, "who": f"p{one}"} for one in ids]
    )
    source = {"format": "hub", "name": "mine"}
    config = text_config(file, columns={"id": "id"}, partition={"subject": "who"})
    assert [str(one.id) for one in load_private(config, LABELS).samples] == ids
    private = config.data.private.model_validate(source)
    hub = config.model_copy(update={"data": config.data.model_copy(update={"private": private})})
    (problem,) = problems(load_private, hub, LABELS)
    assert "column 'id' is text that datasets reads as numbers or dates, in rows 1, 2" in problem
    assert f"with format {kind!r}" in problem


def test_files_with_other_columns_are_refused():
    write("a.csv", ROWS)
    write("b.csv", [{"text": "a", "label": "bad"}])
    (problem,) = problems(load_private, text_config(["a.csv", "b.csv"]), LABELS)
    assert problem == "'b.csv': columns differ from those of 'a.csv'"
    write("a.parquet", ROWS)
    write("b.parquet", [{"text": "a", "label": "bad"}])
    (problem,) = problems(load_private, text_config(["a.parquet", "b.parquet"]), LABELS)
    assert problem.startswith("columns of the files differ")


# --- labels --------------------------------------------------------------------------------------


def test_labels_come_from_config_else_from_public_data_only():
    write("a.csv", [{"text": "t", "label": "private-only"}])
    write("adapt.jsonl", [{"text": "t", "label": "awkward"}])
    assert label_names(text_config("a.csv", labels=["z", "a"])) == ("z", "a")
    assert label_names(text_config("a.csv")) == ("bad", "good")
    adapt = {"adapt": {"format": "json", "files": "adapt.jsonl"}}
    assert label_names(text_config("a.csv", public=adapt)) == ("awkward", "bad", "good")


def test_class_names_of_public_data_keep_their_order():
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zoo", "ant"])}
    )
    public = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    public.to_parquet("public.parquet")
    source = {"format": "parquet", "files": "public.parquet"}
    write("a.csv", [{"text": "t", "label": "zoo"}])
    config = text_config("a.csv", public={"validation": source, "test": source})
    assert label_names(config) == ("zoo", "ant")
    assert load_public(config, "test", ("zoo", "ant")).labels == (1, 0)
    assert load_private(config, ("zoo", "ant")).rows.labels == (0,)


def test_label_names_reports_problems_of_public_data():
    write("public.jsonl", [{"text": "t", "label": None}])
    with pytest.raises(DataError, match=r"data\.public\.validation: .*empty in row 1") as caught:
        label_names(text_config(write("a.csv", ROWS)))
    assert len(caught.value.problems) == 2


def test_causal_lm_has_no_labels():
    write("a.jsonl", [{"text": "b"}, {"text": "a"}, {"text": "a"}])
    config = text_config("a.jsonl", task="causal-lm", model={"base": "make:gpt2"})
    data = load_all(config)
    assert data.labels == label_names(config) == ()
    assert data.private.rows.labels is None and data.private.folded == 1
    assert data.test.labels is None and list(data.test.inputs) == ["fine", "awful"]
    assert {s.content for s in data.private.samples} == {
        digest({"text": text, "label": None}) for text in "ab"
    }


# --- everything together -------------------------------------------------------------------------


def test_load_all_counts_overlap():
    rows = [PUBLIC[0], {"text": "fine", "label": "bad"}, {"text": "own", "label": "bad"}]
    data = load_all(text_config(write("a.csv", rows)))
    assert data.overlap == 1 and data.labels == LABELS and data.adapt is None
    assert data.validation.labels == data.test.labels == (1, 0)
    assert len(data.private.samples) == 3


def test_load_all_reports_every_source():
    write("a.csv", [{"text": "", "label": "what"}])
    public = {"adapt": {"format": "json", "files": "no.jsonl"}}
    found = problems(load_all, text_config("a.csv", public=public))
    assert found[0].startswith("data.private: column 'text'")
    assert found[1].startswith("data.public.adapt: file 'no.jsonl' does not exist")
    assert len(found) == 2  # without the public labels, 'what' cannot be called unknown
    found = problems(load_all, text_config("a.csv", public=public, labels=["bad", "good"]))
    assert len(found) == 3 and "'what'" in found[1]


def test_public_rows_with_labels_outside_the_config_are_problems():
    config = text_config(write("a.csv", ROWS), labels=["bad"])
    (problem,) = problems(load_public, config, "test", ("bad",))
    assert "labels 'good' are not among 'bad'" in problem
    (problem,) = problems(load_public, config, "adapt", ("bad",))
    assert "data.public.adapt is not in the config" in problem


# --- speed and side effects ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["a.csv", "a.jsonl"])
def test_private_files_leave_no_copy_and_load_fast(path: str, monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": f"sentence {n} " * 8, "label": "bad", "who": n % 999} for n in range(20_000)]
    write(path, rows)
    scratch = Path("scratch").absolute()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    start = time.perf_counter()
    private = load_private(text_config(path, partition={"subject": "who"}), LABELS)
    assert time.perf_counter() - start < 5
    assert len(private.samples) == 20_000 and not list(scratch.iterdir())


def test_importing_is_light():
    code = (
        "import sys, s3t.data, s3t.data.partition;"
        "print([m for m in ('torch', 'datasets', 'sklearn', 'PIL', 'numpy') if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert told.stdout.strip() == "[]"
