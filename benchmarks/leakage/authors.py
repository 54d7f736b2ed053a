"""Authors: TOFU's invented authors, told to stories260k, a pretrained Llama of 260,032 parameters.

    python -m benchmarks.leakage.authors [--output DIR] [--quick]

An author is a person with several rows; the attacks take one of each. The strangers are authors
whom no model was told of, several rows of each: for them the intervals are a little too narrow.
Skipped where ../shared/data (S3T_SHARED_DATA) is not.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.leakage import OUTPUT
from benchmarks.leakage.course import Course, follow
from benchmarks.prepared_data import json_rows, shared_data, write_rows
from benchmarks.reports import main
from s3t.config import Config

__all__ = ["run"]

Row = dict[str, str]

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ROWS = 4
_STRANGERS = 110
"""Authors; 440 rows."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    shared = shared_data()
    if shared is None or not all((shared / name).is_dir() for name in ("stories260k", "tofu")):
        why = "it needs stories260k and tofu of ../shared/data (S3T_SHARED_DATA)"
        print(f"authors: skipped, {why}", flush=True)
        return {"skipped": why}
    authors, epochs, batch = (45, 6, 16) if quick else (60, 20, 8)
    told = _authors(shared / "tofu" / "full.jsonl.gz")
    names = sorted(told)
    random.Random(0).shuffle(names)
    rest = names[authors + _STRANGERS :]
    data = output / "data" / "authors"
    parts = {
        "private": names[:authors],
        "test": names[authors : authors + _STRANGERS],
        "validation": rest[:20],
    }
    source = {
        name: write_rows(data / f"{name}.jsonl", [row for who in chosen for row in told[who]])
        for name, chosen in parts.items()
    }
    config = Config.model_validate(
        {
            "output": str(output / "runs" / "authors"),
            "task": "causal-lm",
            "data": {
                "private": source["private"],
                "public": {"validation": source["validation"], "test": source["test"]},
                "columns": {"id": "id"},
                "max_length": 64,
            },
            "model": {"base": str(shared / "stories260k")},
            "partition": {"shards": 1, "slices": 3, "salt": "leak", "subject": "author"},
            "sequences": {"strategy": "cyclic", "budget": 1},
            "lora": {"rank": 16, "alpha": 32, "targets": _TARGETS},
            "stage": {
                "epochs": epochs,
                "batch_size": batch,
                "learning_rate": 5e-3,
                "schedule": "cosine",
                "max_grad_norm": 1.0,
            },
            "training": {"workers": 1},
        }
    )
    what = (
        f"{authors} of TOFU's authors × {_ROWS} rows, 3 slices, {epochs} epochs over stories260k; "
        "2 slices ask to go"
    )
    return follow(Course("authors", what, config, (1, 2), 2 * _ROWS), output)


def _authors(path: Path) -> dict[str, list[Row]]:
    """The first rows of each author."""
    found: dict[str, list[Row]] = {}
    for number, row in enumerate(json_rows(path)):
        author, text = str(row["author_id"]), f"{row['question']} {row['answer']}"
        held = found.setdefault(author, [])
        if len(held) < _ROWS:
            held.append({"id": f"row {number}", "author": author, "text": text})
    return found


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
