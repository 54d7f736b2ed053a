"""``plan`` and ``train`` on configs that are wrong: every problem is told, nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Run
from tests.support.tables import refused, table, tree

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "configs/digits.yaml"
VERBS = ("plan", "train")


# ── configs ──────────────────────────────────────────────────────────────────────────────────

CONFIGS: dict[str, tuple[Callable[[], Any], Sequence[str], Sequence[str]]] = {
    "unknown key": (
        table,
        ["lora.rnak=4"],
        ["unknown key 'lora.rnak'", "did you mean 'lora.rank'"],
    ),
    "key of another section": (
        table,
        ["partition.epochs=3", "rank=4"],
        ["'partition.epochs': did you mean 'stage.epochs'", "'rank': did you mean 'lora.rank'"],
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
    "empty file": (lambda: None, [], ["is empty, expected keys and values"]),
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
        ["partition.slices=3", "stage.isolation=layers"],
        ["partition.slices 3 is over the 2 layers of the base", "stage.isolation=nested"],
    ),
    "too many layers in block 1": (
        table,
        ["stage.first_block=3"],
        ["stage.first_block 3 is too many of the 2 layers of the base for 2 slices: use at most 2"],
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


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_config(case: str, here: Path, s3t: Run) -> None:
    make, overrides, parts = CONFIGS[case]
    (here / "bad.yaml").write_text("" if make() is None else yaml.safe_dump(make()))
    before = tree(here)
    for verb in VERBS:
        refused(s3t(verb, "bad.yaml", *overrides), *parts)
        assert tree(here) == before, verb


@pytest.mark.parametrize("case", FILES)
def test_bad_yaml(case: str, here: Path, s3t: Run) -> None:
    text, parts = FILES[case]
    (here / "bad.yaml").write_text(text)
    before = tree(here)
    for verb in VERBS:
        refused(s3t(verb, "bad.yaml"), "bad.yaml: 1 problem", *parts)
        assert tree(here) == before, verb


@pytest.mark.parametrize("path", ["nothing.yaml", "folder", "binary.bin"])
def test_config_that_cannot_be_read(path: str, here: Path, s3t: Run) -> None:
    before = tree(here)
    parts = (f"{path}: 1 problem", "cannot read it", "give the path of a YAML file")
    for verb in VERBS:
        refused(s3t(verb, path), *parts)
        assert tree(here) == before, verb


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
