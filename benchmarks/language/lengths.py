"""What padding costs: the same epoch padded to the longest text of all, of the batch, of its likes.

    python -m benchmarks.language.lengths [--output DIR] [--quick]

    longest     every batch as long as data.max_length
    batch       as long as its own longest text, to a multiple of 16 (what s3t does in any case)
    like        the same, of batches of like length (stage.group_by_length)

One node of all layers of stories260k on TOFU's questions and on Shakespeare's speeches. Rounds of
the three are interleaved in one process; the ratio is within a round.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import median, table
from benchmarks.language import OUTPUT
from benchmarks.prepared_data import prepare, shared_data
from benchmarks.reports import Report, main
from s3t.config import Config
from s3t.data import load_private, load_public
from s3t.model.loading import build_base, load_model
from s3t.training.node.assignment import Assignment, CacheSettings, StageRows, StageSettings
from s3t.training.node.rows import LabelledSet, encode_rows
from s3t.training.node.trainer import StageTrainer
from s3t.types import NodeKey, digest

__all__ = ["run"]

_WAYS = ("longest", "batch", "like")
_TASKS: Mapping[str, dict[str, Any]] = {
    "tofu": {"columns": {"prompt": "question", "completion": "answer"}, "max_length": 400},
    "tinyshakespeare": {"columns": {"text": "text"}, "max_length": 512},
}
"""Lengths that cut few texts: 400 tokens hold all of TOFU, 512 are the base's most."""


class _Longest(LabelledSet):
    """Rows of which each batch is as long as all may be."""

    def longest(self, index: torch.Tensor) -> int | None:
        return self.rows.values.shape[1]


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    shared = shared_data()
    needed = ("stories260k", *_TASKS)
    if shared is None or not all((shared / name).is_dir() for name in needed):
        why = f"it needs {', '.join(needed)} of ../shared/data (S3T_SHARED_DATA)"
        print(f"lengths: skipped, {why}", flush=True)
        return {"skipped": why}
    prepare(shared, output / "data")
    torch.set_num_threads(1)
    report, rows = Report("lengths", output), 128 if quick else 512
    result: dict[str, Any] = {"rows": rows, "tasks": {}}
    for name, data in _TASKS.items():
        config = _config(shared, output / "data" / name, data)
        result["tasks"][name] = _measured(config, rows, 1 if quick else 3)
    print(_table(result), flush=True)
    return report.finish(result, lambda figure: _draw(figure, result), (7, 4))


def _config(shared: Path, folder: Path, data: Mapping[str, Any]) -> Config:
    def source(name: str) -> dict[str, str]:
        return {"format": "json", "files": str(folder / f"{name}.jsonl")}

    public = {"validation": source("validation"), "test": source("test")}
    return Config.model_validate(
        {
            "task": "causal-lm",
            "data": {"private": source("private"), "public": public, **data},
            "model": {"base": str(shared / "stories260k")},
            "lora": {"rank": 8, "alpha": 16},
            "stage": {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "schedule": "linear"},
        }
    )


def _measured(config: Config, count: int, rounds: int) -> dict[str, Any]:
    loaded = load_model(config)
    base = build_base(config, loaded)
    private = load_private(config, ()).rows
    drawn = torch.randperm(len(private), generator=torch.Generator().manual_seed(0))[:count]
    rows = encode_rows(loaded.encoder, private.at(drawn.tolist()))
    public = encode_rows(loaded.encoder, load_public(config, "validation", ()).at(range(64)))
    trainers = {}
    for way in _WAYS:
        kind = _Longest if way == "longest" else LabelledSet
        stage = config.stage.model_copy(update={"group_by_length": way == "like"})
        held = kind(rows.rows, None)
        trainers[way] = StageTrainer(
            base, StageSettings(stage, config.lora), StageRows(held, public, 0), CacheSettings(0)
        )
    assignment = Assignment(NodeKey(digest("lengths")), torch.arange(count), {})
    seconds: dict[str, list[float]] = {way: [] for way in _WAYS}
    losses: dict[str, float] = {}
    for _ in range(rounds + 1):
        for way, trainer in trainers.items():
            ends: list[float] = []
            started = time.perf_counter()
            (trained,) = trainer.train(
                (0, base.depth), [assignment], lambda _, ends=ends: ends.append(time.perf_counter())
            )
            seconds[way].append(ends[-1] - started)  # scoring public rows is not part of it
            losses[way] = -trained.score
    timed = {way: values[1:] for way, values in seconds.items()}  # the first round warms up
    assert rows.rows.mask is not None
    ratios = {
        way: median([one / other for one, other in zip(timed["longest"], timed[way], strict=True)])
        for way in _WAYS
    }
    return {
        "seconds": timed,
        "faster_than_longest": ratios,
        "validation_loss": losses,
        "tokens": int(rows.rows.mask.sum()),
        "tokens_run": {way: _tokens(trainer, assignment) for way, trainer in trainers.items()},
    }


def _tokens(trainer: StageTrainer, assignment: Assignment) -> int:
    """Tokens of an epoch's batches, with their padding."""
    batches = trainer.batches(assignment)
    index = [batches.at(step)[0] for step in range(batches.steps)]
    return sum(len(rows) * (trainer.private.longest(rows) or 0) for rows in index)


def _table(result: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            way,
            f"{found['tokens_run'][way]:,}",
            f"{1 - found['tokens'] / found['tokens_run'][way]:.0%}",
            f"{median(found['seconds'][way]):.2f}",
            f"{found['faster_than_longest'][way]:.2f}",
            f"{found['validation_loss'][way]:.3f}",
        ]
        for name, found in result["tasks"].items()
        for way in _WAYS
    ]
    header = [
        "rows of",
        "padded to",
        "tokens run",
        "padding",
        "s an epoch",
        "times as fast",
        "loss",
    ]
    return table(header, rows)


def _draw(figure: Any, result: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for place, (name, found) in enumerate(result["tasks"].items()):
        values = [found["faster_than_longest"][way] for way in _WAYS]
        axes.bar([at + 0.4 * place for at in range(len(_WAYS))], values, 0.38, label=name)
    axes.set_xticks(
        [at + 0.2 for at in range(len(_WAYS))], ["longest of all", "of the batch", "like"]
    )
    axes.set(ylabel="times as fast as padding to the longest")
    axes.legend()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
