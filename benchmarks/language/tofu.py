"""TOFU: invented authors told to a Llama of 260,032 parameters, then forgotten one at a time.

    python -m benchmarks.language.tofu [--output DIR] [--quick]

    S3T              deactivate(author) ×10 ─► repair ─► the same bytes as a run without the ten
    one LoRA         trained without the first, the first five, all ten: each time from the start

Questions are prompts, answers are learnt alone. Forget quality is TOFU's: p of a
Kolmogorov–Smirnov test of the truth ratios of the deleted authors' questions against a model that
never saw them. Two controls are there: the LoRA that was trained without them, and, for S3T, the
run from scratch; what S3T serves after a repair *is* that run, byte for byte, so its p is 1.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.forgetting.rows import Shape, evenly_dealt
from benchmarks.language import OUTPUT
from benchmarks.language.model import Floats, Model, forget_quality
from benchmarks.language.questions import Choice, Question, authors, choices, holdout
from benchmarks.language.tofu_report import draw, tables
from benchmarks.prepared_data import shared_data, write_rows
from benchmarks.reports import Report, main
from s3t import S3T
from s3t.config import Config
from s3t.data import Conversation
from s3t.ledger import Gone
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train

__all__ = ["run"]

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_SHAPE = Shape(2, 4, "tofu-0")
_PUBLIC = 60
"""Rows of the holdout to validate on, and as many to test on."""


@dataclass(frozen=True)
class _Size:
    """How much is measured: authors of a slice, rows of each, epochs, checkpoints, questions with
    options of either kind at most; and how many processes train."""

    each: int
    rows: int
    epochs: int
    stage_epochs: int
    checkpoints: tuple[int, ...]
    choices: int
    workers: str | int


_FULL = _Size(3, 8, 12, 10, (1, 5, 10), 120, "auto")
_QUICK = _Size(1, 4, 2, 2, (1, 3), 30, 1)


@dataclass(frozen=True, eq=False)
class _Task:
    """Who is told of, who asks to go, and what the models are asked beside that."""

    told: Mapping[str, list[Question]]
    deleted: tuple[str, ...]
    holdout: list[Question]
    choices: Mapping[str, list[Choice]]

    def of(self, names: Sequence[str]) -> list[Question]:
        return [row for name in names for row in self.told[name]]

    @property
    def retained(self) -> list[Question]:
        return self.of([name for name in self.told if name not in self.deleted])


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    shared = shared_data()
    if shared is None or not all((shared / name).is_dir() for name in ("stories260k", "tofu")):
        why = "it needs stories260k and tofu of ../shared/data (S3T_SHARED_DATA)"
        print(f"tofu: skipped, {why}", flush=True)
        return {"skipped": why}
    size = _QUICK if quick else _FULL
    report, task = Report("tofu", output), _task(shared, size)
    makes = _Makes(shared, output, task, size)
    print(
        f"{len(task.told)} of TOFU's authors × {size.rows} questions, {len(task.deleted)} of them "
        "deleted one at a time; base: stories260k, a Llama of 5 layers",
        flush=True,
    )
    s3t, lora = makes.s3t("s3t"), makes.lora("lora")
    result: dict[str, Any] = {
        "authors": len(task.told),
        "rows_each": size.rows,
        "training_seconds": {"s3t": _timed_training(s3t), "lora": _timed_training(lora)},
    }
    result["before"] = {"s3t": _figures(s3t, task), "lora": _figures(lora, task)}
    known = {name: Model(_dir(c)).known(task.of(task.deleted)) for name, c in _both(s3t, lora)}
    result["known_before"] = known
    result |= _forgotten(task, size, makes, s3t, lora)
    result["repaired"] = _repaired(task, makes, s3t)
    print(tables(result), flush=True)
    return report.finish(result, lambda figure: draw(figure, result))


def _task(shared: Path, size: _Size) -> _Task:
    told = authors(shared / "tofu", size.rows)
    names = sorted(told)
    random.Random(0).shuffle(names)
    chosen = evenly_dealt(names, size.each, _SHAPE)
    return _Task(
        told={name: told[name] for name in chosen},
        deleted=tuple(chosen[: max(size.checkpoints)]),
        holdout=holdout(shared / "tofu")[_PUBLIC : 2 * _PUBLIC],
        choices={
            name: choices(shared / "tofu", name)[: size.choices]
            for name in ("real_authors", "world_facts")
        },
    )


class _Makes:
    """Configs of one task: S3T, and one LoRA fine-tune, on all authors or without some."""

    def __init__(self, shared: Path, output: Path, task: _Task, size: _Size) -> None:
        self._shared, self._output, self._task, self._size = shared, output, task, size
        held = holdout(shared / "tofu")[: 2 * _PUBLIC]
        rows = [{"question": row.question, "answer": row.answer} for row in held]
        self._validation = write_rows(output / "data" / "validation.jsonl", rows[:_PUBLIC])
        self._test = write_rows(output / "data" / "test.jsonl", rows[_PUBLIC:])

    def s3t(self, name: str) -> Config:
        """2 shards of 4 slices; a set tree."""
        return self._config(
            name,
            (),
            {
                "partition": {"shards": _SHAPE.shards, "slices": _SHAPE.slices},
                "sequences": {"strategy": "tree", "budget": 4},
                "stage": {"epochs": self._size.stage_epochs},
                "training": {"workers": self._size.workers},
            },
        )

    def lora(self, name: str, without: Sequence[str] = ()) -> Config:
        """All rows in one slice, one adapter of all layers."""
        return self._config(
            name,
            without,
            {
                "partition": {"shards": 1, "slices": 1},
                "sequences": {"strategy": "cyclic", "budget": 1},
                "stage": {"epochs": self._size.epochs, "isolation": "snapshot"},
                "training": {"workers": 1},
            },
        )

    def _config(self, name: str, without: Sequence[str], more: dict[str, Any]) -> Config:
        rows = [
            {"id": f"{author} {at}", "author": author, "question": r.question, "answer": r.answer}
            for author, told in self._task.told.items()
            if author not in without
            for at, r in enumerate(told)
        ]
        tree: dict[str, Any] = {
            "output": str(self._output / "runs" / name),
            "task": "causal-lm",
            "data": {
                "private": write_rows(self._output / "data" / f"{name}.jsonl", rows),
                "public": {"validation": self._validation, "test": self._test},
                "columns": {"id": "id", "prompt": "question", "completion": "answer"},
                "max_length": 256,
            },
            "model": {"base": str(self._shared / "stories260k")},
            "partition": {"salt": _SHAPE.salt, "subject": "author"} | more.pop("partition"),
            "lora": {"rank": 16, "alpha": 32, "targets": _TARGETS},
            "stage": {
                "batch_size": 8,
                "learning_rate": 5e-3,
                "schedule": "cosine",
                "max_grad_norm": 1.0,
                "group_by_length": True,
            }
            | more.pop("stage"),
            "aggregation": {"on_exhausted": "base"},
            **more,
        }
        return Config.model_validate(tree)


def _forgotten(
    task: _Task, size: _Size, makes: _Makes, s3t: Config, lora: Config
) -> dict[str, Any]:
    """The deletions, one at a time, and at the checkpoints the fine-tune trained again."""
    steps: list[dict[str, Any]] = []
    points: dict[str, Any] = {}
    before = Model(_dir(s3t))
    held = {author: _of_author(before, task, author) for author in task.deleted}
    full = Model(_dir(lora))
    for count, author in enumerate(task.deleted, 1):
        with S3T.load(_dir(s3t).root) as service:
            service.generate(["Who?"], max_new_tokens=1)  # the deletion includes the swap of views
            receipt = service.deactivate(subjects=[author])
            status = service.status()
        after = Model(_dir(s3t))
        steps.append(
            {
                "author": author,
                "seconds": receipt.seconds,
                "prefixes": [len(shard.prefix) for shard in status.shards],
                "before": held[author],
                "after": _of_author(after, task, author),
            }
        )
        if count not in size.checkpoints:
            continue
        gone = task.deleted[:count]
        again = makes.lora(f"lora-without-{count}", gone)
        seconds = _timed_training(again)
        retrained, rows = Model(_dir(again)), task.of(gone)
        control = retrained.truth_ratios(rows)
        ratios = {"s3t": after.truth_ratios(rows), "lora": full.truth_ratios(rows)}
        points[str(count)] = {
            "retrain_seconds": seconds,
            "forget_quality": {
                name: forget_quality(found, control) for name, found in ratios.items()
            },
            "truth_ratio": {name: float(found.mean()) for name, found in ratios.items()}
            | {"retrained": float(control.mean())},
            "known": {"s3t": after.known(rows), "retrained": retrained.known(rows)},
            "s3t": _figures(s3t, task),
            "retrained": _figures(again, task),
        }
    return {"deletions": steps, "checkpoints": points}


def _repaired(task: _Task, makes: _Makes, s3t: Config) -> dict[str, Any]:
    """The repair, the run from scratch without the deleted, and whether they are one."""
    rows = task.of(task.deleted)
    served = Model(_dir(s3t)).truth_ratios(rows)
    started = time.perf_counter()
    repaired = train(s3t, replan=Replan())
    seconds = time.perf_counter() - started
    scratch = makes.s3t("scratch")
    with _dir(s3t).ledger() as ledger:
        gone = ledger.deleted.all()
    found = {"scratch_seconds": _timed_training(scratch, gone), "repair_seconds": seconds}
    ours, theirs = _nodes(s3t), _nodes(scratch)
    own, other = Model(_dir(s3t)), Model(_dir(scratch))
    after, control = own.truth_ratios(rows), other.truth_ratios(rows)
    return {
        **found,
        "nodes": len(theirs),
        "trained_by_repair": repaired.trained,
        "equal_bytes": all(ours.get(name) == content for name, content in theirs.items()),
        "equal_truth_ratios": bool((after == control).all()),
        "forget_quality": {
            "served before the repair": forget_quality(served, control),
            "repaired": forget_quality(after, control),
        },
        "truth_ratio": float(control.mean()),
        "known": {"s3t": own.known(rows), "scratch": other.known(rows)},
        "s3t": _figures(s3t, task),
    }


def _figures(config: Config, task: _Task) -> dict[str, Any]:
    """What a run is worth: perplexity and probability of answers, and of the true option."""
    model = Model(_dir(config))
    found: dict[str, Any] = {}
    for name, rows in (("retain", task.retained), ("holdout", task.holdout)):
        lost = model.probabilities((row.question, row.answer) for row in rows)
        found[name] = {"probability": float(lost.mean()), "perplexity": _perplexity(model, rows)}
    for name, options in task.choices.items():
        found[name] = {"true_option": model.chosen(options)}
    return found


def _perplexity(model: Model, rows: Sequence[Question]) -> float:
    return model.perplexity([Conversation.of(row.question, row.answer) for row in rows])


def _of_author(model: Model, task: _Task, author: str) -> dict[str, float]:
    rows = task.told[author]
    ratios: Floats = model.truth_ratios(rows)
    return {**model.known(rows), "truth_ratio": float(ratios.mean())}


def _timed_training(config: Config, without: Gone | None = None) -> float:
    shutil.rmtree(config.run_dir, ignore_errors=True)
    started = time.perf_counter()
    train(config, without=without)
    return time.perf_counter() - started


def _dir(config: Config) -> RunDir:
    return RunDir(config.run_dir)


def _both(s3t: Config, lora: Config) -> tuple[tuple[str, Config], tuple[str, Config]]:
    return ("s3t", s3t), ("lora", lora)


def _nodes(config: Config) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in _dir(config).store.root.glob("*.safetensors")}


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
