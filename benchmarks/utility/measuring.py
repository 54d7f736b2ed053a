"""One side at one seed: trained once, then deleted from on a copy; each figure is kept at once.

    SEED/TRAINING/       the run as it was trained, and training.json: seconds, bytes
    SEED/SIDE.json       metric at each number of deletions, and after the repair

A point is measured as a user would: the run is opened with ``S3T.load``, ``deactivate`` deletes,
``evaluate`` asks the public test rows.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.adoption import on_base_of
from benchmarks.environment import load_average, write_json
from benchmarks.prepared_data import ROOT
from benchmarks.utility.sides import LORA, Side, sides
from benchmarks.utility.tasks import Prepared, Task
from s3t import S3T, load_config
from s3t.config import Config, dump_config
from s3t.errors import ConfigError
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.training.prepare.prepare import prepare
from s3t.training.prepare.recipe import ENGINE
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
from s3t.types import digest

__all__ = ["REPAIRED", "measure"]

REPAIRED = "repaired"
"""Stands for a number of deletions: after the last one and a repair."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Seed:
    """A task at one seed.

    Attributes:
        folder: of the runs and figures.
        words: overrides that all sides share.
        points: numbers of deletions at which is measured.
    """

    task: Task
    prepared: Prepared
    folder: Path
    words: tuple[str, ...]
    points: tuple[int, ...]

    def config(self, words: Sequence[str], run: Path) -> Config:
        """The config of a run of this seed.

        Raises:
            ConfigError: an override that the config does not know, or refuses.
        """
        path = ROOT / "configs" / f"{self.task.config}.yaml"
        return load_config(path, (*self.words, *words, f"output={run}"))

    def path(self, name: str, words: Sequence[str]) -> Path:
        """Where runs or figures that follow from these overrides are kept."""
        slug = re.sub(r"\W+", "-", name.replace("'", ""))
        return self.folder / f"{slug}-{digest([ENGINE, *self.words, *words])[:8]}"


def measure(
    task: Task,
    seed: int,
    output: Path,
    *,
    quick: bool,
    words: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All sides of a task at one seed.

    Args:
        task, seed: what is measured.
        output: where runs and figures are kept, and found again.
        quick: fewer points, and less data where the task says so.
        words: overrides for all sides.
        say: told of each step that takes time.

    Returns:
        ``sides`` by name, each with ``refused``, the reason, or with ``training`` and ``points``;
        ``base``, the figure of the base alone by test rows; and ``deleted``, in this order.
    """
    given = task.prepared(output / task.name / "data", seed, quick)
    fixed = (f"seed={seed}", f"partition.salt={task.name}-{seed}", "aggregation.on_exhausted=base")
    shared = (*task.words, *given.words, *fixed, "training.workers=1", *words)
    points = task.few if quick else task.points
    at = _Seed(task, given, output / task.name / f"seed-{seed}", shared, points)
    first, *others = sides(task)
    say(f"seed {seed}, {first.name}")
    lora = RunDir(at.path(LORA, first.training))
    _trained(at.config(first.training, lora.root), None)
    deleted = given.deleted or task.drawn(lora, seed, max(points))
    found = {first.name: _side(at, first, None, deleted)}
    for side in others:
        say(f"seed {seed}, {side.name}")
        found[side.name] = _side(at, side, lora, deleted)
    return {"base": _base(at, lora), "deleted": list(deleted), "sides": found}


def _side(at: _Seed, side: Side, first: RunDir | None, deleted: Sequence[str]) -> dict[str, Any]:
    """One side, trained and deleted from; or why it is refused. Base and head are the first's."""
    words = (*side.training, *(() if first is None else on_base_of(first)))
    name = {"trained_as": side.trained_as, "weights": side.weights}
    path = at.path(side.trained_as, side.training)
    try:
        config = at.config(words, path)
        at.config((*words, *side.serving), path)
        training = _trained(config, first)
    except ConfigError as error:
        return {**name, "refused": "; ".join(error.problems)}
    kept = _Kept(at.path(side.name, (*side.training, *side.serving)).with_suffix(".json"))
    _delete(at, side, words, path, deleted, kept)
    return {**name, "training": training, "points": kept.points}


# ── training ─────────────────────────────────────────────────────────────────────────────────


def _trained(config: Config, public_of: RunDir | None) -> dict[str, Any]:
    """Train what is missing of a run; returns what it took, and what it weighs.

    The base and the public head are made before the clock starts. Seconds are None if a training
    was killed and went on later.

    Args:
        config: says where.
        public_of: a run on the same base whose public head is taken; None to make it.
    """
    run = RunDir(config.run_dir)
    report = run.root / "training.json"
    if report.is_file():
        return dict(json.loads(report.read_text(encoding="utf-8")))
    with one_thread(_CPU):
        prepare(config, _CPU, public_of=public_of)
    begun = bool(run.store.keys())
    load, started, cpu = load_average(), time.perf_counter(), time.process_time()
    train(config)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    summary = run.plan().summary()
    found = {
        "seconds": None if begun else round(seconds, 2),
        "cpu_seconds": None if begun else round(cpu, 2),
        "load_average": load,
        **{name: summary[name] for name in ("nodes", "bytes", "sample_passes")},
    }
    write_json(report, found)
    return found


# ── deleting ─────────────────────────────────────────────────────────────────────────────────


class _Kept:
    """Figures of one side at one seed, by number of deletions and name of the test rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.points: dict[str, dict[str, Any]] = {}
        if path.is_file():
            self.points = json.loads(path.read_text(encoding="utf-8"))

    def keep(self, point: str, found: dict[str, Any]) -> None:
        """Write a point down."""
        self.points[point] = found
        write_json(self._path, self.points)


def _delete(
    at: _Seed, side: Side, words: Sequence[str], run: Path, deleted: Sequence[str], kept: _Kept
) -> None:
    """Delete one after another from a copy of the run, and measure at the points.

    Of one LoRA nothing is left after a deletion, so only its start and its repair are measured.
    """
    points = (0,) if side.name == LORA else (0, *at.points)
    wanted = [*map(str, points), *([REPAIRED] if at.task.repairs else [])]
    if all(point in kept.points for point in wanted):
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        (copy / "training.json").unlink()
        config = at.config((*words, *side.serving), copy)
        train(config)  # trains nothing: the copy goes on under the side's own weights
        gone = 0
        for point in points:
            gone = _deactivate(at.task, copy, deleted, gone, point)
            if str(point) not in kept.points:
                kept.keep(str(point), _evaluated(copy, at.prepared))
        if REPAIRED in wanted and REPAIRED not in kept.points:
            _deactivate(at.task, copy, deleted, gone, max(at.points))
            started = time.perf_counter()
            train(config, replan=Replan())
            seconds = round(time.perf_counter() - started, 2)
            kept.keep(REPAIRED, {**_evaluated(copy, at.prepared), "seconds": seconds})


def _deactivate(task: Task, run: Path, deleted: Sequence[str], gone: int, count: int) -> int:
    """Delete until ``count`` are deleted, of whom ``gone`` already are; returns ``count``."""
    with S3T.load(run) as service:
        for name in deleted[gone:count]:
            service.deactivate(*(((), [name]) if task.by_subject else ([name], ())))
    return max(gone, count)


def _evaluated(run: Path, prepared: Prepared) -> dict[str, Any]:
    """The metric on each of the test sets, of what the run serves now."""
    if not prepared.tests:
        return {"test": _evaluation(run)}
    path, found = RunDir(run).config_path, {}
    before = path.read_bytes()
    for name, rows in prepared.tests.items():
        words = (f"data.public.test.files={rows.resolve()}",)
        path.write_text(dump_config(load_config(path, words)), encoding="utf-8")
        found[name] = _evaluation(run)
    path.write_bytes(before)
    return found


def _evaluation(run: Path) -> dict[str, Any]:
    with S3T.load(run) as service:
        evaluation, status = service.evaluate(), service.status()
    return {
        "value": evaluation.value,
        "rows": evaluation.samples,
        "prefixes": [len(shard.prefix) for shard in status.shards],
    }


def _base(at: _Seed, lora: RunDir) -> dict[str, Any]:
    """What the base alone answers: one LoRA's run after a deletion, since nothing of it is left."""
    kept = _Kept(at.path("base", ()).with_suffix(".json"))
    if "0" not in kept.points:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "run"
            shutil.copytree(lora.root, copy)
            with lora.ledger() as ledger:
                one = next(iter(ledger.samples())).sample_id
            with S3T.load(copy) as service:
                service.deactivate([one])
            kept.keep("0", _evaluated(copy, at.prepared))
    return kept.points["0"]
