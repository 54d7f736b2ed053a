"""Authors: TOFU's invented authors, told to a Llama of 260,032 parameters.

    python -m benchmarks.forgetting.authors [--output DIR] [--quick]

An author is a person with all rows. The others are authors whom no model was told of; test and
validation rows are TOFU's holdout. Skipped where ../shared/data (S3T_SHARED_DATA) is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.forgetting import OUTPUT
from benchmarks.forgetting.comparison import compare
from benchmarks.forgetting.rows import Recipe, Rows, Shape, Task, encoded, evenly_dealt
from benchmarks.prepared_data import json_rows, shared_data
from benchmarks.reports import main

__all__ = ["run", "task"]

LENGTH = 96
_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FOLDERS = ("stories260k", "tofu")


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    shared = shared_data()
    missing = [name for name in _FOLDERS if shared is None or not (shared / name).is_dir()]
    if shared is None or missing:
        why = f"it needs {' and '.join(missing)} of ../shared/data (S3T_SHARED_DATA)"
        print(f"authors: skipped, {why}", flush=True)
        return {"skipped": why}
    return compare(task(shared, quick), output, quick)


def task(shared: Path, quick: bool) -> Task:
    """Some authors private, others unseen, in drawn order."""
    base, told = shared / "stories260k", _authors(shared / "tofu" / "full.jsonl.gz")
    names = sorted(told)
    random.Random(0).shuffle(names)
    shape = Shape(2, 2) if quick else Shape(2, 4)
    private = evenly_dealt(names, 3, shape)
    strangers = [name for name in names if name not in {*private}]
    asking, attacked, unseen = (4, 24, 12) if quick else (6, 80, 20)
    rows, public = (4, 20) if quick else (10, 30)
    holdout = [("public", text) for text in _texts(shared / "tofu" / "holdout10.jsonl.gz")]
    random.Random(1).shuffle(holdout)

    def of(chosen: Iterable[str], each: int) -> Rows:
        return encoded(
            base, LENGTH, [(name, text) for name in chosen for text in told[name][:each]]
        )

    return Task(
        name="authors",
        what=(
            f"{len(private)} of TOFU's authors × {rows} rows, {asking} authors are deleted; "
            "base: stories260k, a Llama of 5 layers"
        ),
        base=base,
        length=LENGTH,
        private=of(private, rows),
        deleted=tuple(private[:asking]),
        others=of(strangers[:attacked], 2 if quick else 3),
        unseen=of(strangers[attacked : attacked + unseen], 2),
        validation=encoded(base, LENGTH, holdout[:public]),
        test=encoded(base, LENGTH, holdout[-2 * public :]),
        prompt=32,
        answer=8,
        by_person=True,
        recipe=Recipe(
            rank=16,
            targets=_TARGETS,
            epochs=5 if quick else 15,
            batch=16,
            rate=5e-3,
            stage_epochs=5 if quick else 12,
            stage_batch=16,
            stage_rate=5e-3,
        ),
        shape=shape,
    )


def _authors(path: Path) -> dict[str, list[str]]:
    """The rows of each author."""
    found: dict[str, list[str]] = {}
    for row in json_rows(path):
        found.setdefault(f"author {row['author_id']}", []).append(_text(row))
    return found


def _texts(path: Path) -> list[str]:
    return [_text(row) for row in json_rows(path)]


def _text(row: dict[str, str]) -> str:
    return f"{row['question']} {row['answer']}"


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
