"""The runs that these benchmarks train: the digits demo, and a run of seconds."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3t.config import Config, load_config
from s3t.run import RunDir
from s3t.service import S3T

__all__ = ["TINY", "delete", "digits", "persons", "small", "stream"]

TINY = (
    "model.make.hidden=16",
    "model.make.heads=2",
    "model.adapt.steps=5",
    "stage.epochs=1",
)
"""Overrides that make of the digits demo a run of seconds, for ``--quick``."""


def digits(folder: Path, salt: str, quick: bool, training: dict[str, Any] | None = None) -> Config:
    """The digits demo in a folder, partitioned by another salt."""
    words = [f"output={folder}", f"partition.salt={salt}", *(TINY if quick else ())]
    words += [f"training.{key}={value}" for key, value in (training or {}).items()]
    return load_config(Path(__file__).parents[2] / "configs" / "digits.yaml", words)


def stream(run: RunDir, count: int, seed: str) -> list[str]:
    """Ids of random samples that are left, in random order."""
    with run.ledger() as ledger:
        left = [str(entry.sample_id) for entry in ledger.samples(deleted=False)]
    return random.Random(seed).sample(left, count)


def delete(run: RunDir, ids: Sequence[str]) -> None:
    """One request for each id, as a service would get them."""
    with S3T.load(run.root) as service:
        for one in ids:
            service.deactivate([one])


PERSONS = 40


def persons(path: Path) -> None:
    """A table of persons' texts, three rows each."""
    with path.open("w", encoding="utf-8", newline="") as stream_:
        writer = csv.DictWriter(stream_, ["id", "who", "text", "label"])
        writer.writeheader()
        for person in range(PERSONS):
            for number in range(3):
                writer.writerow(
                    {
                        "id": f"s{person:02d}{number}",
                        "who": f"p{person:02d}",
                        "text": f"person {person} says {number * 7 + person}",
                        "label": ("good", "bad")[(person + number) % 2],
                    }
                )


def small(folder: Path, output: str) -> Config:
    """A text classifier of 2 × 3 slices, 18 nodes, over a BERT of 3 layers: a run of a second."""
    persons(folder / "persons.csv")
    source = {"format": "csv", "files": str(folder / "persons.csv")}
    return Config.model_validate(
        {
            "name": output,
            "output": str(folder / output),
            "task": "text-classification",
            "data": {
                "private": source,
                "public": {"validation": source, "test": source, "adapt": source},
                "columns": {"id": "id"},
                "max_length": 32,
            },
            "model": {
                "base": "make:bert",
                "make": {"hidden": 16, "layers": 3, "heads": 2, "init_scale": 5},
            },
            "partition": {"shards": 2, "slices": 3, "salt": "kills", "subject": "who"},
            "sequences": {"strategy": "cyclic"},
            "lora": {"rank": 2},
            "stage": {"epochs": 2, "learning_rate": 1e-2},
            "training": {"workers": 1},
        }
    )
