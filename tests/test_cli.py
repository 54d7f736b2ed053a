"""The command line on bad input: one message, the exit code of its class, nothing changed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3t.cli.parsing import split_launch
from s3t.run import RunDir
from s3t.training.work.train import train
from tests.conftest import Run, Said
from tests.small_runs import person_rows, small_configs, write_csv

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "configs/digits.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small csv files, which is also the working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, rows in TABLES.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "binary.bin").write_bytes(bytes(range(128, 256)))
    (folder / "folder").mkdir()
    return folder


def good(count: int = 24) -> list[str]:
    return [f"{n},line {n},{'ab'[n % 2]}" for n in range(count)]


TABLES: dict[str, Sequence[str]] = {
    "private.csv": ["key,text,label", *good()],
    "public.csv": ["key,text,label", "p0,one,a", "p1,two,b"],
    "twice.csv": ["key,text,label", *good(), "3,again,a"],
    "unknown_label.csv": ["key,text,label", *good(), "99,what,c"],
    "no_label.csv": ["key,text", "1,x"],
    "few.csv": ["key,text,label", "0,line 0,a"],
    "ragged.csv": ["key,text,label", "1,x"],
    "header_only.csv": ["key,text,label"],
    "blank_text.csv": ["key,text,label", *good(), "98,,a"],
    "not_json.jsonl": ["{"],
}


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest and every folder below, to see whether anything changed."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def table(private: str = "private.csv", public: str = "public.csv") -> dict[str, Any]:
    source = {"format": "csv", "files": public}
    return {
        "task": "text-classification",
        "data": {
            "private": {"format": "csv", "files": private},
            "public": {"validation": source, "test": source},
            "columns": {"id": "key"},
            "max_length": 16,
        },
        "model": {"base": "make:bert", "make": {"hidden": 16, "layers": 2, "heads": 2}},
        "partition": {"shards": 1, "slices": 2},
    }


def refused(said: Said, *parts: str, code: int = 2) -> None:
    """One message on standard error, no traceback, nothing on standard output."""
    assert said.code == code, said
    assert said.out == ""
    assert "Traceback" not in said.err and "unexpected" not in said.err, said.err
    assert said.err.count("s3t: ") == 1 or "Usage: " in said.err, said.err
    assert [part for part in parts if part not in said.err] == [], said.err


# ── configs ──────────────────────────────────────────────────────────────────────────────────

CONFIGS: dict[str, tuple[Callable[[], Any], Sequence[str], Sequence[str]]] = {
    "unknown key": (
        table,
        ["lora.rnak=4"],
        ["unknown key 'lora.rnak'", "did you mean 'lora.rank'"],
    ),
    "unknown section": (table, ["zebra=red"], ["unknown key 'zebra': remove it"]),
    "several problems at once": (
        table,
        ["lora.rnak=4", "stage.epochs=0", "partition.shards=none", "name"],
        ["4 problems", "lora.rnak", "stage.epochs", "partition.shards", "'name'", "key=value"],
    ),
    "unknown key and budget over L!": (
        table,
        ["lora.rnak=4", "sequences.budget=3"],
        ["2 problems", "'lora.rnak'", "sequences.budget 3 is over the 2 permutations of 2 slices"],
    ),
    "budget over L!": (
        table,
        ["sequences.budget=3"],
        ["1 problem", "sequences.budget 3 is over the 2 permutations of 2 slices: lower it"],
    ),
    "budget over L! of 20 slices and more": (
        table,
        ["partition.slices=1", "sequences.budget=2"],
        ["sequences.budget 2 is over the 1 permutations of 1 slices"],
    ),
    "zero shards": (table, ["partition.shards=0"], ["partition.shards", "(got 0)"]),
    "a fraction of a shard": (table, ["partition.shards=1.5"], ["partition.shards", "(got 1.5)"]),
    "NaN learning rate": (table, ["stage.learning_rate=.nan"], ["stage.learning_rate", "finite"]),
    "infinite learning rate": (table, ["stage.learning_rate=.inf"], ["stage.learning_rate"]),
    "negative learning rate": (table, ["stage.learning_rate=-1"], ["stage.learning_rate", "-1"]),
    "dropout of 1": (table, ["lora.dropout=1"], ["lora.dropout", "(got 1)"]),
    "max_length not a multiple of 16": (
        table,
        ["data.max_length=20"],
        ["max_length 20 is not a multiple of 16"],
    ),
    "explicit sequence beyond the slices": (
        table,
        ["sequences.strategy=explicit", "sequences.explicit=[[0,2]]"],
        ["sequences.explicit[0] [0, 2] names slice 2: there are 2, numbered from 0"],
    ),
    "explicit sequence that repeats": (
        table,
        ["sequences.strategy=explicit", "sequences.explicit=[[0,0],[]]"],
        ["sequences.explicit[0] [0, 0]", "sequences.explicit[1] [] is empty", "2 problems"],
    ),
    "the same explicit sequence twice": (
        table,
        ["sequences.strategy=explicit", "sequences.explicit=[[0],[0]]"],
        ["holds the same sequence twice"],
    ),
    "negative slice": (
        table,
        ["sequences.strategy=explicit", "sequences.explicit=[[-1]]"],
        ["sequences.explicit.0.0", "(got -1)"],
    ),
    "explicit without its strategy": (
        table,
        ["sequences.explicit=[[0]]"],
        ["sequences.explicit needs sequences.strategy=explicit"],
    ),
    "strategy explicit without sequences": (
        table,
        ["sequences.strategy=explicit"],
        ["sequences.explicit is empty"],
    ),
    "unknown strategy": (
        table,
        ["sequences.strategy=best"],
        ["sequences.strategy", "(got 'best')"],
    ),
    "unknown task": (table, ["task=regression"], ["task: ", "(got 'regression')"]),
    "unknown format": (table, ["data.private.format=xls"], ["data.private.format", "'xls'"]),
    "unknown base to make": (
        table,
        ["model.base=make:t5"],
        ["'make:t5' cannot be made", "make:vit"],
    ),
    "wrong task for the base": (
        table,
        ["model.base=make:vit"],
        ["model.base 'make:vit' does not fit task 'text-classification'"],
    ),
    "an encoder for causal-lm": (
        table,
        ["task=causal-lm"],
        ["model.base 'make:bert' is an encoder: task causal-lm needs a decoder"],
    ),
    "rotations of texts": (
        table,
        ["model.adapt.rotations=true"],
        ["model.adapt needs data.public.adapt", "model.adapt.rotations", "image-classification"],
    ),
    "fallback without public data for it": (
        table,
        ["aggregation.on_exhausted=base"],
        ["aggregation.on_exhausted=base needs data.public.adapt"],
    ),
    "labels named twice": (table, ["data.labels=[a, b, a]"], ["labels holds a name twice"]),
    "no data": (lambda: {"task": "causal-lm"}, [], ["data is missing", "model is missing"]),
    "empty file": (lambda: None, [], ["holds a NoneType, expected keys and values"]),
    "a list": (lambda: [1, 2], [], ["holds a list, expected keys and values"]),
    "override of a value as a section": (
        table,
        ["task.name=x"],
        ["override 'task.name=x': 'task' is not a section"],
    ),
    "override that is not YAML": (table, ["name=[1"], ["override 'name=[1'", "not YAML"]),
    "file does not exist": (
        lambda: table("nothing.csv"),
        [],
        ["data.private", "file 'nothing.csv' does not exist (looked in "],
    ),
    "directory instead of a file": (
        lambda: table("folder"),
        [],
        ["'folder' is a directory: name its files, or a glob"],
    ),
    "binary instead of csv": (lambda: table("binary.bin"), [], ["cannot read 'binary.bin'"]),
    "empty csv": (lambda: table("header_only.csv"), [], ["has no rows"]),
    "ragged csv": (lambda: table("ragged.csv"), [], ["expected 3 cells in lines 2"]),
    "missing columns": (
        lambda: table("no_label.csv"),
        ["partition.subject=person", "data.columns.text=body"],
        ["'body' (data.columns.text)", "'label' (data.columns.label)", "'person' (partition.subj"],
    ),
    "duplicate ids": (lambda: table("twice.csv"), [], ["ids occur twice: '3'", "its own id"]),
    "unknown private label": (
        lambda: table("unknown_label.csv"),
        [],
        ["labels 'c' are not among 'a', 'b'", "never from private samples"],
    ),
    "empty text": (lambda: table("blank_text.csv"), [], ["'text'", "is empty in row 25"]),
    "risk column that holds no numbers": (
        table,
        ["partition.risk.column=label", "partition.risk.thresholds=[1]"],
        [
            "column 'label' (partition.risk.column) is not a finite number in rows 1, 2",
            "risk.as_of",
        ],
    ),
    "risk tier without samples": (
        table,
        ["partition.risk.column=key", "partition.risk.thresholds=[99]"],
        ["shard 0 slice 1 (tier 1) got none of the 24 samples", "other thresholds"],
    ),
    "problems of several sources": (
        lambda: table("twice.csv", "no_label.csv"),
        [],
        ["data.private: ids occur twice", "data.public.validation: no column 'label'"],
    ),
    "empty slices": (
        lambda: table("few.csv"),
        [],
        ["1 problem", "got none of the 1 samples", "use fewer shards or slices"],
    ),
    "far more slices than samples": (
        table,
        ["partition.shards=500000000"],
        ["slices cannot all get one of the 24 samples"],
    ),
    "more slices than layers": (
        table,
        ["partition.slices=3"],
        ["partition.slices 3 is over the 2 layers of the base", "stage.isolation=snapshot"],
    ),
    "unknown base": (
        table,
        ["model.base=nobody/nothing"],
        ["model.base 'nobody/nothing' cannot be loaded", "give a hub name, a local folder"],
    ),
    "folder that is no base": (
        table,
        ["model.base=folder"],
        ["model.base 'folder' cannot be loaded"],
    ),
    "unknown target": (
        table,
        ["lora.targets=[q_porj]"],
        ["lora.targets names no linear map of the base ['q_porj']"],
    ),
    "unknown split": (table, ["data.private.split=dev"], ["split 'dev' cannot be used"]),
}

FILES: dict[str, tuple[str, Sequence[str]]] = {
    "not YAML": ("task: [", ["is not YAML: while parsing"]),
    "a key twice": ("task: causal-lm\ntask: causal-lm\n", ["keys occur twice: 'task'"]),
}


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize("case", CONFIGS)
def test_bad_config(case: str, verb: str, here: Path, s3t: Run) -> None:
    make, overrides, parts = CONFIGS[case]
    (here / "bad.yaml").write_text("" if make() is None else yaml.safe_dump(make()))
    before = tree(here)
    refused(s3t(verb, "bad.yaml", *overrides), *parts)
    assert tree(here) == before


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize("case", FILES)
def test_bad_yaml(case: str, verb: str, here: Path, s3t: Run) -> None:
    text, parts = FILES[case]
    (here / "bad.yaml").write_text(text)
    before = tree(here)
    refused(s3t(verb, "bad.yaml"), "bad.yaml: 1 problem", *parts)
    assert tree(here) == before


@pytest.mark.parametrize("verb", ["plan", "train"])
@pytest.mark.parametrize("path", ["nothing.yaml", "folder", "binary.bin"])
def test_config_that_cannot_be_read(path: str, verb: str, here: Path, s3t: Run) -> None:
    before = tree(here)
    refused(s3t(verb, path), f"{path}: 1 problem", "cannot read it", "give the path of a YAML file")
    assert tree(here) == before


def test_output_that_holds_something_else(here: Path, s3t: Run) -> None:
    (here / "good.yaml").write_text(yaml.safe_dump(table()))
    before = tree(here)
    refused(s3t("train", "good.yaml", "output=."), "holds files that are no run", "output=DIR")
    refused(s3t("train", "good.yaml", "output=private.csv"), "private.csv cannot be written")
    refused(s3t("train", "good.yaml", "output=private.csv/run"), "cannot be written", "output=DIR")
    assert tree(here) == before


def test_run_of_another_config(digits_run: Path, s3t: Run) -> None:
    before = tree(digits_run)
    said = s3t("train", DIGITS, f"output={digits_run}", "lora.rank=4", "training.workers=1")
    refused(said, "holds a run of another config", "lora.rank was 8, is 4", "output=DIR")
    assert tree(digits_run) == before


# ── runs ─────────────────────────────────────────────────────────────────────────────────────

VERBS = ("samples", "status", "forecast", "deactivate", "evaluate", "predict")


def words(verb: str, run: Path, here: Path) -> list[object]:
    """A command that works on a sound run."""
    more: dict[str, list[object]] = {
        "deactivate": ["--ids", "digit-0003", "--json"],
        "predict": ["--input", here / "one.jsonl", "--output", here / "out.jsonl"],
    }
    return [verb, run, *more.get(verb, ["--json"])]


@pytest.fixture
def one(here: Path) -> Path:
    """Input of ``predict`` that is fine: two blank images."""
    row = json.dumps({"image": [[0.0] * 8] * 8, "id": "blank"})
    (here / "one.jsonl").write_text(f"{row}\n{row}\n")
    return here


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("path", ["nothing", "folder", "private.csv"])
def test_not_a_run(path: str, verb: str, one: Path, s3t: Run) -> None:
    before = tree(one)
    said = s3t(*words(verb, Path(path), one))
    refused(said, f"{path} is not a run directory (no plan.json)", "s3t train CONFIG")
    assert tree(one) == before


def flip(path: Path, at: int) -> None:
    """Change one bit of a file; a negative place counts from its end."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_plan(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    plan["epochs"] += 1
    (run / "plan.json").write_text(json.dumps(plan))


def edit_config(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("alpha: 16.0", "alpha: 1.0"))


def execute(run: Path, statement: str) -> None:
    with closing(sqlite3.connect(run / "ledger.db")) as connection, connection:
        connection.execute(statement)


DAMAGES: dict[str, tuple[Callable[[Path], object], Sequence[str], Sequence[str]]] = {
    "plan edited": (
        edit_plan,
        VERBS[1:],
        ["the plan is not what was written", "restore plan.json"],
    ),
    "plan cut short": (
        lambda run: (run / "plan.json").write_text("{"),
        VERBS[1:],
        ["this is no plan", "restore plan.json"],
    ),
    "ledger is no database": (
        lambda run: (run / "ledger.db").write_bytes(b"not a ledger" * 1000),
        VERBS,
        ["ledger.db is damaged or no ledger (file is not a database)", "restore it from a copy"],
    ),
    "ledger is empty": (
        lambda run: (run / "ledger.db").write_bytes(b""),
        VERBS,
        ["ledger.db is a database but no ledger"],
    ),
    "ledger is missing": (
        lambda run: (run / "ledger.db").unlink(),
        VERBS,
        ["ledger.db is missing, so it is unknown what was deleted", "restore it"],
    ),
    "ledger without a table": (
        lambda run: execute(run, "DROP TABLE run"),
        VERBS,
        ["no such table: run", "restore it from a copy"],
    ),
    "ledger of a newer s3t": (
        lambda run: execute(run, "UPDATE schema_version SET version = 99"),
        VERBS,
        ["schema 99", "upgrade s3t"],
    ),
    "base changed": (
        lambda run: flip(run / "base/model.safetensors", -1),
        ("evaluate", "predict"),
        ["the base has fingerprint", "restore"],
    ),
    "config edited": (
        edit_config,
        ("evaluate", "predict"),
        ["config.yaml is not what the run was trained with (another lora)", "restore it"],
    ),
}


@pytest.mark.parametrize(
    ("case", "verb"), [(case, verb) for case in DAMAGES for verb in DAMAGES[case][1]]
)
def test_damage(case: str, verb: str, digits_run: Path, one: Path, s3t: Run) -> None:
    damage, _, parts = DAMAGES[case]
    damage(digits_run)
    before = tree(digits_run), tree(one)
    refused(s3t(*words(verb, digits_run, one)), *parts, code=4)
    assert (tree(digits_run), tree(one)) == before


DEACTIVATIONS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "nothing named": ([], ["nothing to delete: give at least one sample id or subject"]),
    "an empty id": (["--ids", ""], ["unknown sample ids ''"]),
    "unknown id": (
        ["--ids", "digit-0003", "--ids", "nobody"],
        ["unknown sample ids 'nobody': nothing was deleted", "s3t samples "],
    ),
    "ids with a comma": (
        ["--ids", "digit-0003,digit-0004", "--subjects", "a,b"],
        ["unknown sample ids 'digit-0003,digit-0004' and subjects 'a,b'"],
    ),
    "an id with blanks": (["--ids", " digit-0003"], ["unknown sample ids ' digit-0003'"]),
    "an id like markup": (["--ids", "[/bold]"], ["unknown sample ids '[/bold]'"]),
    "an id like an option": (
        ["--ids", "-v", "--ids", "--json"],
        ["unknown sample ids '--json', '-v'"],
    ),
    "an id with NUL in a file": (["--ids-file", "nul.txt"], ["is not text in UTF-8"]),
    "a line with blanks": (["--ids-file", "blanks.txt"], ["unknown sample ids ' ', 'digit-0003 '"]),
    "a line that is no JSON string": (
        ["--subjects-file", "quote.txt"],
        ["quote.txt, line 2 begins with a quote and is no JSON string"],
    ),
    "a file in UTF-16": (["--ids-file", "wide.txt"], ["wide.txt cannot be read", "in UTF-8"]),
    "unknown subject": (["--subjects", "ann"], ["unknown subjects 'ann': nothing was deleted"]),
    "unknown ids and subjects": (
        ["--ids", "x", "--subjects", "y"],
        ["unknown sample ids 'x' and subjects 'y'"],
    ),
    "id that is not text": (["--ids", "\udcff"], ["is not text in UTF-8"]),
    "request id that is not text": (
        ["--ids", "digit-0003", "--request-id", "\udcff"],
        ["is not text in UTF-8"],
    ),
    "ids file missing": (["--ids-file", "nothing.txt"], ["nothing.txt cannot be read"]),
    "ids file is a directory": (["--ids-file", "folder"], ["folder cannot be read"]),
    "ids file is binary": (["--ids-file", "binary.bin"], ["binary.bin cannot be read"]),
    "ids file is empty": (["--ids-file", "empty.txt"], ["nothing to delete"]),
    "ids file of unknown ids": (
        ["--ids-file", "private.csv"],
        ["unknown sample ids '0,line 0,a', '1,line 1,b'", "and 15 more"],
    ),
    "unknown option": (["--idz", "digit-0003"], ["No such option: --idz"]),
}


@pytest.mark.parametrize("case", DEACTIVATIONS)
def test_bad_deactivation(case: str, digits_run: Path, here: Path, s3t: Run) -> None:
    more, parts = DEACTIVATIONS[case]
    (here / "empty.txt").write_text("\n\r\n")
    (here / "nul.txt").write_bytes(b"a\0b\n")
    (here / "blanks.txt").write_text("digit-0003 \n \n")
    (here / "quote.txt").write_text('p1\n"p2\n')
    (here / "wide.txt").write_text("digit-0003\n", encoding="utf-16")
    before = tree(digits_run), tree(here)
    refused(s3t("deactivate", digits_run, *more, "--json"), *parts)
    assert (tree(digits_run), tree(here)) == before


def test_request_id_of_another_deletion(digits_run: Path, s3t: Run) -> None:
    first = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r", "--json")
    assert first.code == 0
    before = tree(digits_run)
    said = s3t("deactivate", digits_run, "--ids", "digit-0004", "--request-id", "r", "--json")
    refused(said, "request id 'r' stands for another deletion: nothing was deleted")
    assert tree(digits_run) == before


INPUTS: dict[str, tuple[str | bytes | None, Sequence[str]]] = {
    "file missing": (None, ["input.jsonl cannot be read"]),
    "file empty": ("\n", ["input.jsonl holds no rows", "give JSON lines"]),
    "binary": (bytes(range(128, 256)), ["input.jsonl cannot be read"]),
    "not JSON": ('{"image": []}\nhello\n', ["input.jsonl, line 2 is not JSON"]),
    "not an object": ("[1, 2]\n", ["line 1 holds a list, expected an object"]),
    "wrong column": ('{"picture": [[0]]}', ["row 0 has no 'image': it has ['picture']"]),
    "empty image": ('{"image": []}', ["row 0: ", "integers from 0 to 255"]),
    "one row of pixels": ('{"image": [0, 1, 2]}', ["row 0: an image [height, width, channels]"]),
    "ragged image": ('{"image": [[0, 1], [2]]}', ["row 0: ", "inhomogeneous"]),
    "four dimensions": ('{"image": [[[[0]]]]}', ["row 0: an image [height, width, channels]"]),
    "pixels above 255": ('{"image": [[0, 256]]}', ["row 0: ", "from 0 to 255", "rescale"]),
    "pixels below 0": ('{"image": [[-1, 2]]}', ["row 0: ", "rescale"]),
    "fractions above 1": ('{"image": [[0.5, 16.0]]}', ["row 0: ", "fractions from 0 to 1"]),
    "NaN pixels": ('{"image": [[NaN, 0.5]]}', ["row 0: an image holds a value that is not finite"]),
    "words for pixels": ('{"image": [["a"]]}', ["row 0: "]),
    "nothing for an image": ('{"image": null}', ["row 0: "]),
    "image file missing": ('{"image": "nothing.png"}', ["row 0: FileNotFoundError", "nothing.png"]),
    "image file is none": ('{"image": "private.csv"}', ["row 0: UnidentifiedImageError"]),
    "second row is bad": (
        '{"image": [[0.5]]}\n{"image": [[7.5]]}\n',
        ["row 1: an image is integers from 0 to 255 or fractions"],
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_bad_input(case: str, digits_run: Path, here: Path, s3t: Run) -> None:
    content, parts = INPUTS[case]
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (here / "input.jsonl").write_bytes(raw)
    before = tree(digits_run), tree(here)
    refused(s3t("predict", digits_run, "--input", "input.jsonl", "--output", "out.jsonl"), *parts)
    assert (tree(digits_run), tree(here)) == before


TEXTS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "wrong column": ('{"words": "x"}', [], ["row 0 has no 'text': it has ['words']"]),
    "not a text": ('{"text": 7}', [], ["prompt 0: a text is expected, got 7"]),
    "empty text": ('{"text": " "}', [], ["prompt 0: a text is expected, got ' '"]),
    "half a character": ('{"text": "\\ud800"}', [], ["prompt 0: ", "is not valid Unicode"]),
    "too long": (
        json.dumps({"text": "x" * 40}),
        [],
        ["prompt 0 has 41 tokens: 1 to 28 leave room", "data.max_length 32"],
    ),
    "too many tokens asked for": ('{"text": "x"}', ["--max-new-tokens", "31"], ["1 to 1 leave"]),
    "no tokens asked for": ('{"text": "x"}', ["--max-new-tokens", "0"], ["max_new_tokens 0 must"]),
    "negative temperature": ('{"text": "x"}', ["--temperature", "-1"], ["temperature -1.0"]),
    "temperature is no number": ('{"text": "x"}', ["--temperature", "nan"], ["temperature nan"]),
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_prompt(case: str, text_run: Path, here: Path, s3t: Run) -> None:
    content, more, parts = TEXTS[case]
    (here / "input.jsonl").write_text(content)
    before = tree(text_run), tree(here)
    room = [] if "--max-new-tokens" in more else ["--max-new-tokens", "4"]
    said = s3t("predict", text_run, "--input", "input.jsonl", "--output", "out", *room, *more)
    refused(said, *parts)
    assert (tree(text_run), tree(here)) == before


@pytest.mark.parametrize("target", ["folder", "private.csv/out.jsonl"])
def test_output_of_predict_that_cannot_be_written(
    target: str, digits_run: Path, one: Path, s3t: Run
) -> None:
    before = tree(one)
    said = s3t("predict", digits_run, "--input", "one.jsonl", "--output", target)
    refused(said, f"--output {target} cannot be written")
    assert tree(one) == before


def test_public_data_that_is_gone(text_run: Path, s3t: Run) -> None:
    config = text_run / "config.yaml"
    config.write_text(config.read_text().replace("public.jsonl", "gone.jsonl"))
    refused(s3t("evaluate", text_run), "data.public.test", "gone.jsonl' does not exist")


def test_usage_errors(s3t: Run) -> None:
    for arguments in ([], ["plan"], ["forget"], ["predict", "run"], ["status", "a", "b"]):
        said = s3t(*arguments)
        assert said.code == 2 and "Traceback" not in said.err, (arguments, said)


def test_unexpected_error_is_one_line(
    digits_run: Path, s3t: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("s3t.service.S3T.status", fail)
    said = s3t("status", digits_run, "--json")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("s3t: unexpected ZeroDivisionError: a bug (S3T_TRACEBACK=1")
    monkeypatch.setenv("S3T_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        s3t("status", digits_run, "--json")


# ── what is accepted ─────────────────────────────────────────────────────────────────────────


def test_images_of_another_size_are_resized(digits_run: Path, here: Path, s3t: Run) -> None:
    (here / "in.jsonl").write_text(json.dumps({"image": [[[0, 0, 0]] * 5] * 11, "id": 4}))
    said = s3t("predict", digits_run, "--input", "in.jsonl", "--output", "deep/er/out.jsonl")
    assert (said.code, said.out) == (0, "")
    (answer,) = [json.loads(line) for line in (here / "deep/er/out.jsonl").read_text().splitlines()]
    assert answer["id"] == 4


def test_lines_are_cut_at_newlines_alone(text_run: Path, here: Path, s3t: Run) -> None:
    (here / "in.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    room = ["--max-new-tokens", "2"]
    said = s3t("predict", text_run, "--input", "in.jsonl", "--output", "out.jsonl", *room)
    assert said.code == 0, said
    assert len((here / "out.jsonl").read_text(encoding="utf-8").split("\n")) == 2


ODD_NAMES = [
    *("a,b", "a", "b", " x", "x", "x ", "-v", "--json", "[/bold]"),
    *("c\nd", "e\r", '"f"', "g\u2028", "a\u0301"),
]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose samples have odd ids, and persons of the same names."""
    folder = tmp_path_factory.mktemp("odd")
    make = small_configs(folder)
    rows = person_rows()
    for name, row in zip(ODD_NAMES, rows, strict=False):
        row["id"] = row["who"] = name
    write_csv(folder / "odd.csv", rows)
    config = make(private="odd.csv", partition={"shards": 1}, stage={"epochs": 1})
    train(config)
    return config.run_dir


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("what", ["ids", "subjects"])
def test_a_name_is_what_the_data_say(name: str, what: str, odd: Path, here: Path, s3t: Run) -> None:
    (here / "names.txt").write_text(json.dumps(name) + "\r\n", encoding="utf-8-sig")
    ways = [[f"--{what}", name], [f"--{what}-file", "names.txt"]]
    if not set('\n\r"') & set(name):
        (here / "plain.txt").write_bytes(f"\ufeff{name}\r\n\n".encode())
        ways.append([f"--{what}-file", "plain.txt"])
    with RunDir.existing(odd).ledger() as ledger:
        expected = [ledger.deleted.keyed(name)]
    for way in ways:
        said = s3t("deactivate", odd, *way, "--dry-run", "--json")
        assert json.loads(said.out)["deleted"] == expected, way


def test_what_is_listed_can_be_read_back(odd: Path, here: Path, s3t: Run) -> None:
    lines = s3t("samples", odd).out.splitlines(keepends=True)
    listed = [line.partition("  ")[0] for line in lines[: len(ODD_NAMES)]]
    (here / "names.txt").write_text("\n".join(listed), encoding="utf-8")
    said = s3t("deactivate", odd, "--ids-file", "names.txt", "--dry-run", "--json")
    assert len(json.loads(said.out)["deleted"]) == len(ODD_NAMES)


def test_names_come_from_options_and_files(digits_run: Path, here: Path, s3t: Run) -> None:
    listed = [
        json.loads(line)["sample_id"]
        for line in s3t("samples", digits_run, "--json").out.splitlines()
    ]
    (here / "ids.txt").write_text(f"{listed[4]}\n\n{listed[5]}\r\n")
    more = ["--ids", listed[0], "--ids", listed[2], "--ids-file", "ids.txt"]
    said = s3t("deactivate", digits_run, *more, "--json")
    with RunDir.existing(digits_run).ledger() as ledger:
        expected = sorted(ledger.deleted.keyed(listed[number]) for number in (0, 2, 4, 5))
    assert json.loads(said.out)["deleted"] == expected


@pytest.mark.parametrize(
    ("given", "overrides", "launch"),
    [
        ("lora.rank=4 output=x", "lora.rank=4 output=x", ""),
        ("--num_processes 2 lora.rank=4", "lora.rank=4", "--num_processes 2"),
        ("--num_processes=2 output=x", "output=x", "--num_processes=2"),
        ("--multi_gpu output=x", "output=x", "--multi_gpu"),
        ("--cpu name=x --num_processes 2", "name=x", "--cpu --num_processes 2"),
        ("--config_file a=b.yaml seed=1", "seed=1", "--config_file a=b.yaml"),
        ("lora.rnak=4 --cpu", "lora.rnak=4", "--cpu"),
    ],
)
def test_launch_options_and_overrides(given: str, overrides: str, launch: str) -> None:
    assert split_launch(given.split()) == (overrides.split(), launch.split())


# ── what people read ─────────────────────────────────────────────────────────────────────────


def test_plain_output(digits_run: Path, s3t: Run) -> None:
    plan = s3t("plan", DIGITS)
    assert "4 shards × 4 slices, budget 4: 64 nodes" in plan.out
    assert "expected deletions until exhaustion: 54.1" in plan.out
    said = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r", "--dry-run")
    assert said.out.startswith("request r: would delete 1 samples (0 were deleted before), view 1")
    said = s3t("deactivate", digits_run, "--ids", "digit-0003", "--request-id", "r")
    assert said.out.startswith("request r: deleted 1 samples (0 were deleted before), view 1")
    status = s3t("status", digits_run)
    assert status.out.startswith("view 1: 1 of 800 samples deleted")
    assert status.out.count(" ×") == 2  # one slice of the grid, one in the legend
    samples = s3t("samples", digits_run)
    assert [line for line in samples.out.splitlines() if line.endswith("deleted")] == [
        line for line in samples.out.splitlines() if line.startswith("digit-0003  ")
    ]


def test_forecast(digits_run: Path, s3t: Run) -> None:
    names = [line.split() for line in s3t("samples", digits_run).out.splitlines()]
    first = {place: name for name, place, *_ in names}
    for place in ("2:0", "2:1", "2:2", "2:3", "0:1"):
        assert s3t("deactivate", digits_run, "--ids", first.pop(place)).code == 0
    told = json.loads(s3t("forecast", digits_run, "--json").out)
    assert list(told) == [
        *("view", "persons_left", "first_slices_left", "first_slices_missing", "exhausted"),
        *("first_death", "exhaustion", "observed", "trials", "seed", "shards"),
    ]
    assert (told["view"], told["persons_left"], told["first_slices_left"]) == (5, 795, 11)
    assert (told["exhausted"], told["trials"], told["seed"]) == (False, None, None)
    for event in ("first_death", "exhaustion"):
        for found in told[event].values():
            assert list(found) == ["p5", "p50", "p95", "mean"]
            assert 0 < found["p5"] < found["p50"] < found["p95"]
    assert told["observed"]["persons"] == 4
    assert list(told["observed"]) == ["persons", "days", "per_day"]
    assert [list(shard) for shard in told["shards"]] == [
        ["shard", "first_slices", "persons_left", "median_requests"]
    ] * 4
    assert told["shards"][2]["first_slices"] == []
    assert told["shards"][2]["median_requests"] is None

    lines = s3t("forecast", digits_run).out.splitlines()
    assert lines[0] == "view 5: 795 persons left, 11 first slices left in 3 of 4 shards"
    row = [f"{told['exhaustion']['requests'][name]:.0f}" for name in ("p5", "p50", "p95")]
    assert lines[3].split()[:4] == ["exhausted", *row]
    assert "all are alike, and the figures exact" in lines[4]
    assert "as observed since the first request: 4 in " in lines[8]
    assert lines[-2].split()[2:] == ["dead"]
    assert lines[-4].split()[3:] == ["0", "2", "3"]

    options = [word for one in first.values() for word in ("--ids", one)]
    assert s3t("deactivate", digits_run, *options).code == 0
    said = s3t("forecast", digits_run)
    assert (said.code, said.err) == (0, "")
    state = "view 6: 784 persons left, 0 first slices left in 0 of 4 shards"
    assert said.out == f"{state}, EXHAUSTED: no shard serves\n"
    told = json.loads(s3t("forecast", digits_run, "--json").out)
    assert (told["exhausted"], told["exhaustion"], told["first_death"]) == (True, None, None)


def test_forecast_without_a_rate(text_run: Path, s3t: Run) -> None:
    lines = s3t("forecast", text_run).out.splitlines()
    assert "no rate in time before two deletions" in lines
    assert not any(line.startswith("days") for line in lines)
    told = json.loads(s3t("forecast", text_run, "--json").out)
    assert told["observed"] is None and told["exhaustion"]["days"] is None


@pytest.mark.parametrize(
    ("words", "problem"), [(["--trials", "0"], "0 trials"), (["--seed", "-1"], "seed -1")]
)
def test_forecast_that_cannot_be_drawn(
    words: list[str], problem: str, text_run: Path, s3t: Run
) -> None:
    refused(s3t("forecast", text_run, *words, "--json"), f"{problem}: expected")


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_problems_of_data_base_and_partition_come_together(verb: str, here: Path, s3t: Run) -> None:
    (here / "good.yaml").write_text(yaml.safe_dump(table()))
    before = tree(here)
    words = ("partition.slices=3", "data.columns.id=nobody", "lora.targets=[nothing]")
    refused(s3t(verb, "good.yaml", *words), "problems", "nobody", "partition.slices 3")
    assert tree(here) == before


# ── planning ─────────────────────────────────────────────────────────────────────────────────

ASKED = ("budget", "--samples", "800", "--layers", "4", "--deletions", "20")


def test_budget(s3t: Run, here: Path) -> None:
    before = tree(here)
    said = s3t(*ASKED)
    assert (said.code, said.err) == (0, "")
    told = json.loads(s3t(*ASKED, "--json").out)
    lines = said.out.splitlines()
    assert lines[0].startswith("800 samples, 4 layers, 20 deletions: ")
    assert f"{told['candidates']:,} plans in {len(told['cells'])} cells" in lines[0]
    assert lines[1].startswith("curve power:1,1,0.3 (assumed; ")
    rows = [line.split() for line in lines[3:] if line[:6].strip().isdigit()]
    assert 1 < len(rows) <= 15
    assert [float(row[5].replace(",", "")) for row in rows] == sorted(
        float(row[5].replace(",", "")) for row in rows
    )
    (chosen,) = (row for row in rows if row[-1] == "◄")
    one = told["recommended"]
    assert chosen[:5] == [
        *map(str, (one["shards"], one["slices"], one["kind"], one["leaves"], one["nodes"]))
    ]
    assert told["reason"] in " ".join(lines)
    config = "\n".join(line[2:] for line in lines[lines.index("in a config:") + 1 :])
    assert f"{config}\n" == told["config"]
    assert tree(here) == before


def test_budget_with_all_options(s3t: Run, here: Path) -> None:
    (here / "curve.csv").write_text("samples,utility\n0,0.1\n50,0.7\n800,0.9\n")
    options = ["--curve", "curve.csv", "--max-passes", "5000", "--max-bytes", "50000"]
    options += ["--risk", "0.05", "--epochs", "2", "--min-slice", "20", "--stage-overhead", "3"]
    options += ["--bytes-per-layer", "700", "--picture", "deep/front.svg"]
    said = s3t(*ASKED, *options)
    assert (said.code, said.err) == (0, "")
    assert "curve measured, 3 points from curve.csv\n" in said.out
    assert (here / "deep/front.svg").read_bytes().startswith(b"<?xml")
    told = json.loads(s3t(*ASKED, *options, "--json").out)
    one = told["recommended"]
    assert one["passes"] <= 5000 and one["bytes"] <= 50_000 and one["exhausted"] <= 0.05
    assert told["question"]["least"] == 20 and told["question"]["overhead"] == 3
    assert s3t(*ASKED, "--picture", "front.png").code == 0
    assert (here / "front.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_budget_recommends_can_be_planned(s3t: Run, here: Path) -> None:
    asked = ["--samples", "24", "--layers", "3", "--deletions", "1", "--curve", "linear"]
    told = json.loads(s3t("budget", *asked, "--json").out)
    one = told["recommended"]
    assert (one["kind"], one["shards"], one["slices"]) == ("tree", 1, 3)
    config = table() | yaml.safe_load(told["config"])
    config["model"]["make"]["layers"] = 3
    (here / "good.yaml").write_text(yaml.safe_dump(config))
    plan = json.loads(s3t("plan", "good.yaml", "--horizon", 1, "--json").out)
    assert (plan["shards"], plan["slices"], plan["nodes"]) == (1, 3, one["nodes"])
    moments = plan["horizon"]["moments"]
    served = [moment["data_served"] for moment in moments]
    assert sum(served) / 2 == pytest.approx(one["utility"])  # linear: worth is the share served
    assert served[-1] == pytest.approx(one["utility_at_end"])
    assert moments[-1]["exhausted"] == one["exhausted"] == 0


BUDGETS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "several problems": (
        ["--samples", "0", "--deletions", "-1", "--risk", "2", "--max-passes", "-1"],
        ["budget: 4 problems", "samples 0", "deletions -1", "risk 2", "max-passes -1"],
    ),
    "too few samples": (["--samples", "5"], ["samples 5 do not fill one slice of 8"]),
    "no layers": (["--layers", "0"], ["layers 0: at least 1"]),
    "no number": (["--samples", "many"], ["Invalid value for '--samples'"]),
    "too little training": (["--max-passes", "10"], ["no plan fits: the cheapest takes 2,000"]),
    "storage of unknown bytes": (["--max-bytes", "10"], ["max-bytes needs bytes-per-layer"]),
    "no such curve": (["--curve", "steep"], ["--curve steep is neither linear nor power:"]),
    "curve is a folder": (["--curve", "folder"], ["--curve folder is neither"]),
    "curve is binary": (["--curve", "binary.bin"], ["--curve binary.bin is neither"]),
    "curve of other columns": (["--curve", "private.csv"], ["curve private.csv holds ['key', "]),
    "curve that is no JSON": (["--curve", "not_json.jsonl"], ["curve not_json.jsonl is not JSON"]),
    "curve without numbers": (["--curve", "power:1"], ["expected power:TOP,GAP,EXPONENT"]),
    "picture of another kind": (["--picture", "a.gif"], ["'gif'", "png, svg, pdf"]),
    "picture without a kind": (["--picture", "front"], ["a picture as ''"]),
    "picture where none can be": (["--picture", "private.csv/a.png"], ["--picture private.csv/a"]),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_bad_budget(case: str, s3t: Run, here: Path) -> None:
    more, parts = BUDGETS[case]
    before = tree(here)
    refused(s3t(*ASKED, *more, "--json"), *parts)
    assert tree(here) == before


def test_a_picture_without_matplotlib(
    s3t: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    before = tree(here)
    refused(
        s3t(*ASKED, "--picture", "a.png"), "a picture needs matplotlib: pip install 's3t[plot]'"
    )
    assert tree(here) == before


def test_a_budget_that_nothing_lasts_says_so(s3t: Run) -> None:
    said = s3t("budget", "--samples", "300", "--layers", "4", "--deletions", "200")
    assert said.code == 0 and "No plan lasts: " in said.out


def test_a_budget_needs_no_torch(run_python: Callable[[str], str]) -> None:
    code = f"""
import sys
from s3t import cli
sys.argv = ["s3t", *{ASKED}, "--json"]
assert cli.main() == 0
print(sorted({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_plan_along_a_horizon(s3t: Run) -> None:
    plain = json.loads(s3t("plan", DIGITS, "--json").out)
    told = json.loads(s3t("plan", DIGITS, "--horizon", "20", "--json").out)
    along = told.pop("horizon")
    assert told == plain, "nothing else changes"
    assert (along["requests"], along["trials"]) == (20, None)
    assert [moment["requests"] for moment in along["moments"]] == [0, 3, 6, 9, 11, 14, 17, 20]
    assert along["sample_passes"] == along["cyclic_sample_passes"] == 80_000
    for moment in along["moments"]:
        assert {**moment["cyclic"]} == {k: v for k, v in moment.items() if k != "cyclic"}
    last = along["moments"][-1]
    assert last["exhausted"] == pytest.approx(3.868e-4, rel=1e-3)
    assert (
        last["slices_served"]
        == pytest.approx(4 * last["data_served"])
        == pytest.approx(1.018, 1e-3)
    )


def test_plan_along_a_horizon_for_people(s3t: Run) -> None:
    tree_of_less = ["sequences={strategy: tree, unit: slice-passes, budget: 24}"]
    lines = s3t("plan", DIGITS, *tree_of_less, "--horizon", "2").out.splitlines()
    at = lines.index("deletions  slices   data  exhausted │ slices   data  exhausted")
    rows = [line.replace("│", " ").split() for line in lines[at + 1 : at + 4]]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][1:] == ["4.00", "100.0%", "0"] * 2
    assert lines[at + 4].endswith("; exact")
    assert lines[at + 5].endswith("60% of the 80,000 of cyclic")


def test_a_horizon_follows_the_rates_of_tiers(s3t: Run, here: Path) -> None:
    rows = ["key,text,label,age", *(f"{line},{n % 4}" for n, line in enumerate(good()))]
    (here / "aged.csv").write_text("\n".join(rows) + "\n")
    config = table("aged.csv")
    risk = {"column": "age", "thresholds": [2], "rates": [0, 3]}
    config["partition"]["risk"] = risk
    (here / "good.yaml").write_text(yaml.safe_dump(config))
    told = json.loads(s3t("plan", "good.yaml", "--horizon", "50", "--json").out)
    last = told["horizon"]["moments"][-1]
    assert (last["slices_served"], last["exhausted"]) == (pytest.approx(1), 0)


@pytest.mark.parametrize("horizon", ["-1", "1.5", "soon"])
def test_what_is_no_horizon(horizon: str, s3t: Run) -> None:
    refused(s3t("plan", DIGITS, "--horizon", horizon), "Invalid value for '--horizon'")
