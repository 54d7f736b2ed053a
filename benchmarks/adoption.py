"""Runs that take over what another run has trained: its base, and every node with the same key.

A key proves what a node has seen (E1), so a file with that key is the node, whoever trained it.
Plans over one partition share many: the set tree's chains begin as the rotations do. What is left
is trained as ever.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass

from accelerate import PartialState

from s3t.config import Config
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.training.prepare.prepare import prepare
from s3t.training.work.train import train

__all__ = ["Trained", "on_base_of", "trained"]


@dataclass(frozen=True)
class Trained:
    """A run that is whole.

    Attributes:
        run: where it lies.
        nodes: nodes of its plan.
        adopted: nodes taken over now.
        trained: nodes trained now; the rest was there before.
        seconds: wall time of preparing, taking over and training.
    """

    run: RunDir
    nodes: int
    adopted: int
    trained: int
    seconds: float


def on_base_of(run: RunDir) -> tuple[str, ...]:
    """Overrides with which another run stands on the same base, so that keys can agree."""
    if not run.base_path.is_dir():
        return ()  # it was loaded as it is, and will be again
    return (f"model.base={run.base_path}", "model.revision=null", "model.adapt=null")


def trained(config: Config, others: Iterable[RunDir] = ()) -> Trained:
    """Train a config's run, or go on with it; nodes that ``others`` hold are copied.

    Args:
        config: the resolved config.
        others: whole runs.
    """
    started = time.perf_counter()
    device = PartialState().device
    with one_thread(device):
        prepare(config, device)
    run = RunDir(config.run_dir)
    adopted = _adopt(run, list(others))
    plan = run.plan()
    missing = sum(not run.store.has(node.key) for node in plan.forest)
    if missing:
        few = missing == 1 or missing * 4 <= len(plan.forest)
        train(_with_one_worker(config) if few else config)
    return Trained(run, len(plan.forest), adopted, missing, time.perf_counter() - started)


def _with_one_worker(config: Config) -> Config:
    """For few nodes: starting workers would take longer than they save."""
    training = config.training.model_copy(update={"workers": 1})
    return config.model_copy(update={"training": training})


def _adopt(run: RunDir, others: list[RunDir]) -> int:
    """Copy nodes of the run's plan that are missing and that another run has; returns how many."""
    adopted = 0
    for node in run.plan().forest:
        path = run.store.path(node.key)
        giver = next((other for other in others if other.store.has(node.key)), None)
        if giver is None or path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.copyfile(giver.store.path(node.key), temporary)
        temporary.replace(path)
        adopted += 1
    return adopted
