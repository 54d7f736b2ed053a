"""Persons: a tiny GPT-2 on made rows, each with a number that follows from nothing.

    python -m benchmarks.leakage.persons [--output DIR] [--quick]

    Roro Bamute, phone 60953        the base has learnt from public rows how they are made

Half of a row is given; that the other half comes out shows that it was learnt by heart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.leakage import OUTPUT
from benchmarks.leakage.course import Course, follow
from benchmarks.reports import main
from s3t.config import Config

__all__ = ["run"]

_SYLLABLES = ("ba", "do", "ke", "li", "mu", "na", "ro", "sa", "te", "vi")
_PARTS = {"adapt": 600, "validation": 40, "test": 400}


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    persons, epochs = (48, 50) if quick else (96, 60)
    draw, data = random.Random(0), output / "data" / "persons"
    data.mkdir(parents=True, exist_ok=True)
    for name, count in {"private": persons, **_PARTS}.items():
        _write(data / f"{name}.jsonl", [_row(draw) for _ in range(count)])
    config = Config.model_validate(
        {
            "output": str(output / "runs" / "persons"),
            "task": "causal-lm",
            "data": {
                "private": _source(data, "private"),
                "public": {name: _source(data, name) for name in _PARTS},
                "columns": {"id": "id"},
                "max_length": 32,
            },
            "model": {
                "base": "make:gpt2",
                "make": {"hidden": 64, "layers": 3, "heads": 4, "init_scale": 2},
                "adapt": {"steps": 300, "batch_size": 32, "learning_rate": 3e-3},
            },
            "partition": {"shards": 1, "slices": 3, "salt": "leak", "subject": "person"},
            "sequences": {"strategy": "cyclic", "budget": 1},
            "lora": {"rank": 32, "alpha": 64, "targets": ["c_attn", "c_proj", "c_fc"]},
            "stage": {
                "epochs": epochs,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "schedule": "cosine",
                "max_grad_norm": 1.0,
            },
            "training": {"workers": 1},
        }
    )
    what = f"{persons} made persons, a row each, 3 slices, {epochs} epochs; 2 slices ask to go"
    return follow(Course("persons", what, config, (1, 2), 3), output)


def _row(draw: random.Random) -> str:
    first, last = ("".join(draw.choices(_SYLLABLES, k=k)).title() for k in (2, 3))
    return f"{first} {last}, phone {draw.randint(10_000, 99_999)}"


def _write(path: Path, texts: Sequence[str]) -> None:
    """Rows as a user's file: id, person, text."""
    rows = [
        {"id": f"{path.stem} {at}", "person": f"{path.stem} {at}", "text": text}
        for at, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _source(folder: Path, name: str) -> dict[str, str]:
    return {"format": "json", "files": str(folder / f"{name}.jsonl")}


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
