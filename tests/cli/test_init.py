"""``s3t init``: from a file of any form to a config that can be trained, or one clear refusal."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from s3t.config import load_config
from s3t.data import load_all
from tests.conftest import Run
from tests.support.tables import refused, tree

Row = dict[str, str]


def rows(persons: int = 60, each: int = 3) -> list[Row]:
    draw = random.Random(1)
    words = {"billing": "I was charged twice", "delivery": "the parcel is late"}
    found = []
    for number in range(persons * each):
        topic = draw.choice(list(words))
        text = f"hello {number}; {words[topic]}, please help"
        who = f"c{number // each}"
        found.append({"nr": f"m{number}", "customer": who, "message": text, "topic": topic})
    return found


def separated(path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows()[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows())


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")


def packed(path: Path) -> None:
    separated(path.with_suffix(""), ",")
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    path.with_suffix("").unlink()


WRITERS: dict[str, Callable[[Path], object]] = {
    "customers.csv": lambda path: separated(path, ","),
    "customers2.csv": lambda path: separated(path, ";"),
    "customers.tsv": lambda path: separated(path, "\t"),
    "customers.jsonl": lines,
    "customers.json": lambda path: path.write_text(json.dumps(rows()), encoding="utf-8"),
    "customers.parquet": lambda path: pq.write_table(pa.Table.from_pylist(rows()), path),
    "customers.csv.gz": packed,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_gives_the_same_data(name: str, folder: Path, s3t: Run) -> None:
    WRITERS[name](folder / name)
    said = s3t("init", name, "--yes")
    assert said.code == 0, said.err
    path = Path(name.partition(".")[0] + ".yaml")
    assert said.out.splitlines()[-2:] == [f"wrote {path}", f"next: s3t train {path}"]
    config = load_config(path)
    columns = config.data.columns
    assert (columns.text, columns.label, columns.id) == ("message", "topic", None)
    assert config.partition.subject == "customer"
    assert config.data.labels == ("billing", "delivery")
    data = load_all(config)
    count = len(data.private.samples) + len(data.validation) + len(data.test)
    assert count + len(data.adapt or ()) == len(rows())
    parts = [{one.subject for one in data.private.samples}, len(data.test) > 0]
    assert parts[1] and 20 < len(parts[0]) < 60  # whole persons are cut aside


def test_every_choice_is_told(folder: Path, s3t: Run) -> None:
    WRITERS["customers.csv"](folder / "customers.csv")
    told = s3t("init", "customers.csv", "--yes", "--id", "nr").out
    for part in (
        "task text-classification: ",
        "label 'topic': by its name, 2 classes (",
        "text 'message': by its name",
        "id 'nr': --id",
        "subject 'customer': by its name, 60 persons in 180 rows",
        "base make:bert: a small one made here",
        "cost: ",
        "deletions until exhaustion",
    ):
        assert part in told
        assert part.split(":")[0] in Path("customers.yaml").read_text(encoding="utf-8")


def test_plan_takes_the_config_from_another_folder(folder: Path, s3t: Run) -> None:
    inner = folder / "inner"
    inner.mkdir()
    WRITERS["customers.csv"](inner / "customers.csv")
    told = s3t("init", "inner/customers.csv", "--yes")
    assert told.code == 0, told.err
    assert yaml.safe_load((inner / "customers.yaml").read_text())["data"]["private"] == {
        "files": "customers.csv"
    }
    planned = s3t("plan", "inner/customers.yaml", "--json")
    assert planned.code == 0, planned.err
    found = json.loads(planned.out)
    assert f", {found['nodes']} nodes: made for" in told.out
    assert f"cost: {found['cost']:.2f} × " in told.out


def test_images_in_folders(folder: Path, s3t: Run) -> None:
    draw = np.random.default_rng(0)
    for number in range(60):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    said = s3t("init", "photos", "--yes")
    assert said.code == 0, said.err
    config = load_config("photos.yaml")
    assert (config.task, config.data.image_size) == ("image-classification", 16)
    assert config.model.make.channels == 3
    planned = s3t("plan", "photos.yaml", "--json")
    assert planned.code == 0, planned.err


def test_public_rows_of_a_file_of_their_own(folder: Path, s3t: Run) -> None:
    for name in ("customers.csv", "public.csv"):
        WRITERS["customers.csv"](folder / name)
    said = s3t("init", "customers.csv", "--yes", "--public", "public.csv", "--base", "make:roberta")
    assert said.code == 0, said.err
    config = load_config("customers.yaml")
    assert (config.data.cut_from, config.model.base) == ("public", "make:roberta")
    assert len(load_all(config).private.samples) == len(rows())


def test_an_encoding_goes_into_the_config(folder: Path, s3t: Run) -> None:
    separated(Path("latin.csv"), ";")
    text = Path("latin.csv").read_text(encoding="utf-8").replace("hello", "grüß Gott")
    Path("latin.csv").write_text(text, encoding="cp1252")
    refused(s3t("init", "latin.csv", "--yes"), "latin.csv", "encoding")
    assert s3t("init", "latin.csv", "--yes", "--encoding", "cp1252").code == 0
    assert "grüß Gott" in str(load_all(load_config("latin.yaml")).private.rows.inputs[0])


@pytest.mark.parametrize("name", ["texts", "chat"])
def test_examples_can_be_planned(name: str, folder: Path, s3t: Run) -> None:
    said = s3t("init", "--example", name, "here")
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == f"next: s3t train here/{name}.yaml"
    planned = s3t("plan", f"here/{name}.yaml", "--json")
    assert planned.code == 0, planned.err


def test_examples_that_ship(folder: Path, s3t: Run, repo_root: Path) -> None:
    assert s3t("init", "--example", "digits").code == 0
    shipped = (repo_root / "configs/digits.yaml").read_text(encoding="utf-8")
    assert Path("digits.yaml").read_text(encoding="utf-8") == shipped
    assert s3t("init", "--example", "hub/roberta_sst2").code == 0
    assert load_config("roberta_sst2.yaml").model.base == "FacebookAI/roberta-large"
    refused(s3t("init", "--example", "nothing"), "no example 'nothing'", "'digits'", "'chat'")


def test_without_a_terminal_nothing_is_guessed(folder: Path, s3t: Run) -> None:
    WRITERS["customers.csv"](folder / "customers.csv")
    before = tree(folder)
    refused(
        s3t("init", "customers.csv"), "--yes", "--label", "--subject", "label 'topic': by its name"
    )
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("content", "words", "parts"),
    [
        ("message,topic\nso it is not here,a\nso it is again,b\n", [], ["no column", "--label"]),
        ("message,topic\n", [], ["has no rows"]),
        (None, ["--label", "what"], ["'what' is no column"]),
        (None, ["--task", "sums"], ["--task 'sums' is none of"]),
        (None, ["--base", "."], ["--base . is no model"]),
        (None, ["--public", "nothing.csv"], ["nothing.csv"]),
    ],
)
def test_refusals(
    content: str | None, words: list[str], parts: list[str], folder: Path, s3t: Run
) -> None:
    WRITERS["customers.csv"](folder / "data.csv")
    if content is not None:
        (folder / "data.csv").write_text(content, encoding="utf-8")
    before = tree(folder)
    refused(s3t("init", "data.csv", "--yes", *words), *parts)
    assert tree(folder) == before


def test_rows_that_could_not_be_trained_are_refused(folder: Path, s3t: Run) -> None:
    bad = rows()
    bad[4]["message"] = " "
    bad[7]["topic"] = ""
    Path("bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad), encoding="utf-8")
    refused(s3t("init", "bad.jsonl", "--yes"), "'message'", "5", "'topic'", "8")
    assert not Path("bad.yaml").exists()


def test_too_few_rows_are_refused(folder: Path, s3t: Run) -> None:
    few = "".join(json.dumps(row) + "\n" for row in rows(8))
    Path("few.jsonl").write_text(few, encoding="utf-8")
    refused(s3t("init", "few.jsonl", "--yes"), "give more rows")


def test_no_file_is_written_over(folder: Path, s3t: Run) -> None:
    WRITERS["customers.csv"](folder / "customers.csv")
    Path("customers.yaml").write_text("mine\n")
    refused(s3t("init", "customers.csv", "--yes"), "customers.yaml", "--force", "--output")
    assert Path("customers.yaml").read_text() == "mine\n"
    assert s3t("init", "customers.csv", "--yes", "--force").code == 0
    assert s3t("init", "--example", "texts").code == 2
    assert not Path("texts.yaml").exists()
    refused(s3t("init"), "needs DATA", "--example")


def test_a_terminal_is_asked(folder: Path) -> None:
    """Three answers are the defaults, the fourth names a column of its own."""
    WRITERS["customers.csv"](folder / "customers.csv")
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    words = [sys.executable, "-m", "s3t", "init", "customers.csv"]
    process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env)
    os.write(ours, b"\n\nwhat\nnr\n\n")
    said = process.communicate(timeout=120)[0].decode()
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 0
    assert "id 'nr': as said" in said
    assert load_config("customers.yaml").data.columns.id == "nr"
