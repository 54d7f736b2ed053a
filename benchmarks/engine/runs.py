"""The engine's side of the training benchmarks: one prepared run, trained again and again.

    imports │ prepare: data, base, plan │ open: load the run, in every worker │ nodes
            └──────────── set-up, once ─┴─────────────────────────────────────┴─ what is compared

Training is what ``s3t train`` does. The moment at which its workers are ready is noted on the way,
so that set-up and nodes can be told apart.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from s3t.config import Config
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.training.prepare.prepare import prepare
from s3t.training.prepare.prepared import Prepared
from s3t.training.work.train import train
from s3t.training.work.workers import Inline, Subprocesses

__all__ = [
    "CORES",
    "Timed",
    "fresh_base",
    "import_seconds",
    "prepared",
    "scores_by_stage",
    "trained_anew",
]

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Timed:
    """Wall time of one training of all nodes.

    Attributes:
        setup: until the workers are ready: workers started, the run loaded, the base taken apart.
        nodes: from then on, to the last node published.
        nodes_cpu: CPU seconds of this very process in that time: what an undisturbed core would
            have taken, if it trains by itself.
        workers: processes that trained.
    """

    setup: float
    nodes: float
    nodes_cpu: float
    workers: int


def prepared(config: Config) -> tuple[RunDir, float]:
    """Prepare the config's run: data, base, plan; the run, and the seconds that it took."""
    started = time.perf_counter()
    device = torch.device("cpu")
    with one_thread(device):
        prepare(config, device)
    return RunDir(config.run_dir), time.perf_counter() - started


def trained_anew(config: Config, workers: int | str) -> Timed:
    """Train all nodes of a prepared run again, those of before thrown away.

    Args:
        config: of a prepared run.
        workers: ``training.workers``.
    """
    shutil.rmtree(RunDir(config.run_dir).root / "nodes", ignore_errors=True)
    training = config.training.model_copy(update={"workers": workers})
    with _noting_when_open() as moments:
        started = time.perf_counter()
        report = train(config.model_copy(update={"training": training}))
        ended, ended_cpu = time.perf_counter(), time.process_time()
    assert report.trained == report.nodes
    ready, ready_cpu = moments[0]
    return Timed(ready - started, ended - ready, ended_cpu - ready_cpu, report.workers)


def scores_by_stage(run: RunDir) -> dict[int, float]:
    """Mean validation score of the nodes of each stage."""
    scores: dict[int, list[float]] = {}
    for node in run.plan().forest:
        scores.setdefault(node.stage, []).append(run.store.meta(node.key).score)
    return {stage: sum(found) / len(found) for stage, found in sorted(scores.items())}


def import_seconds(statement: str) -> float:
    """Wall time of an import in a fresh interpreter."""
    code = f"import time; started = time.perf_counter(); {statement}; "
    code += "print(time.perf_counter() - started)"
    words = [sys.executable, "-c", code]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def fresh_base(material: Prepared) -> tuple[Any, str]:
    """A run's base as transformers gives it, and the path of its list of layers."""
    config, kept = material.config, material.run.base_path
    auto: Any = AutoModelForCausalLM if config.task == "causal-lm" else AutoModel
    model = auto.from_pretrained(kept if kept.is_dir() else config.model.base)
    return model, next(
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    )


@contextmanager
def _noting_when_open() -> Iterator[list[tuple[float, float]]]:
    """The moments, and CPU seconds, at which workers of this process have become ready to train."""
    moments: list[tuple[float, float]] = []

    def noting(opened: Callable[..., int]) -> Callable[..., int]:
        def wrapper(*arguments: Any) -> int:
            size = opened(*arguments)
            moments.append((time.perf_counter(), time.process_time()))
            return size

        return wrapper

    kinds: tuple[Any, ...] = (Inline, Subprocesses)
    plain = [kind.open for kind in kinds]
    for kind, opened in zip(kinds, plain, strict=True):
        kind.open = noting(opened)
    try:
        yield moments
    finally:
        for kind, opened in zip(kinds, plain, strict=True):
            kind.open = opened
