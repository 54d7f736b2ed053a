"""Real pretrained models on real data, through the same commands as everything else, run in here.

Small parts of the data, so that it fits CI: what is shown is that the path works, not how well.
"""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from s3t import S3T
from tests.support.commands import Run

pytestmark = pytest.mark.heavy


def train(s3t: Run, folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = s3t("train", "config.yaml", "output=run", "training.workers=1", cwd=folder)
    assert done.code == 0, done.err
    return folder / "run"


def test_minilm_on_banking77(shared_data: Path, tmp_path: Path, s3t: Run) -> None:
    for part, count in (("train", 100), ("test", 40)):
        with gzip.open(shared_data / f"banking77/{part}.csv.gz", "rt", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["category"] in KEPT][:count]
        with (tmp_path / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "category"])
            writer.writeheader()
            writer.writerows({"id": f"{part}-{at}", **row} for at, row in enumerate(rows))
    public = {"format": "csv", "files": "test.csv"}
    run = train(
        s3t,
        tmp_path,
        {
            "task": "text-classification",
            "data": {
                "private": {"format": "csv", "files": "train.csv"},
                "public": {"validation": public, "test": public},
                "columns": {"label": "category", "id": "id"},
                "max_length": 32,
            },
            "model": {"base": str(shared_data / "minilm"), "pooling": "mean"},
            "partition": {"shards": 2, "slices": 2},
            "stage": {"epochs": 2, "learning_rate": 5e-3, "schedule": "linear"},
        },
    )
    found = json.loads(s3t("evaluate", "run", "--json", cwd=tmp_path).out)
    assert found["accuracy"] > 0.8  # two intents, half and half
    done = s3t("deactivate", "run", "--ids", "train-0", "--ids", "train-7", "--json", cwd=tmp_path)
    receipt = json.loads(done.out)
    assert len(receipt["deleted"]) == 2 and receipt["nodes_dead"]
    after = json.loads(s3t("evaluate", "run", "--json", cwd=tmp_path).out)
    assert after["view"] == 1 and after["accuracy"] > 0.6
    assert run.joinpath("nodes").is_dir()


def test_stories260k_on_tofu(shared_data: Path, tmp_path: Path, s3t: Run) -> None:
    with gzip.open(shared_data / "tofu/full.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:280]
    for name, part in (("private", rows[:240]), ("public", rows[240:])):
        lines = [
            json.dumps({"text": f"{row['question']} {row['answer']}", "person": row["author_id"]})
            for row in part
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    public = {"format": "json", "files": "public.jsonl"}
    run = train(
        s3t,
        tmp_path,
        {
            "task": "causal-lm",
            "data": {
                "private": {"format": "json", "files": "private.jsonl"},
                "public": {"validation": public, "test": public},
                "max_length": 64,
            },
            "model": {"base": str(shared_data / "stories260k")},
            "partition": {"shards": 2, "slices": 2, "subject": "person", "salt": "tofu"},
            "stage": {"epochs": 1, "learning_rate": 1e-2},
            "aggregation": {"on_exhausted": "base"},
        },
    )
    with S3T.load(run) as model:
        before = model.evaluate()
        receipt = model.deactivate(subjects=["3"])
        assert len(receipt.deleted) == 20  # an author's rows
        assert model.evaluate().metric == "perplexity"
        (answer,) = model.generate([{"text": "Who is this author"}], max_new_tokens=8)
        assert answer.view == 1 and answer.completion
        model.deactivate(subjects=[str(person) for person in range(12)])
        assert model.status().exhausted
        assert before.value < model.evaluate().value  # the base alone has not read of authors


KEPT = ("card_arrival", "exchange_rate")
