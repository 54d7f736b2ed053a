"""Which setting of an approximate method is taken, by what an operator can see.

    distance   |loss(deleted) − loss(unseen rows like them)|     they look like rows never seen,
             + share of either that comes out verbatim           none is given away,
             + what loss(validation) has risen                   and the model is of use still

Stop after stop of every setting of the grid is weighed, and the nearest is taken. Neither the
control nor the rows of the final measures are used, so this is a choice that an operator could
make.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.forgetting.learner import Learner, row_losses
from benchmarks.forgetting.measures import extracted
from benchmarks.forgetting.methods import Method
from benchmarks.forgetting.methods.request import Request
from benchmarks.forgetting.rows import Rows, Task

__all__ = ["Chosen", "tuned"]

_SEED = 11

_PATIENCE = 3
"""Stops in a row that lead no nearer, after which a setting is left."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """The setting taken.

    Attributes:
        setting: of the grid, and ``stop``, after how many yields.
        state: the adapter then.
        seconds: of the method until then.
        search_seconds: of the whole grid, its weighing included.
        distance: as above.
    """

    setting: Mapping[str, Any]
    state: Mapping[str, Tensor]
    seconds: float
    search_seconds: float
    distance: float


def tuned(
    method: Method,
    learner: Learner,
    before: Mapping[str, Tensor],
    task: Task,
    settings: Sequence[Mapping[str, Any]],
) -> Chosen:
    """The nearest stop of some settings.

    Args:
        method: to apply.
        learner: whose adapter is changed.
        before: the adapter that was trained on all rows.
        task: the rows.
        settings: of the method.
    """
    started = time.perf_counter()
    learner.load(before)
    clean = _mean(learner, task.validation)
    best: Chosen | None = None
    for setting in settings:
        learner.load(before)
        generator = torch.Generator().manual_seed(_SEED)
        request = Request(learner, task.forget, task.rest, task.recipe.batch, generator)
        spent, nearest, worse = 0.0, math.inf, 0
        since = time.perf_counter()
        for stop, _ in enumerate(method.run(request, **setting), 1):
            spent += time.perf_counter() - since
            distance = _distance(learner, task, clean)
            if best is None or distance < best.distance:
                best = Chosen({**setting, "stop": stop}, learner.state(), spent, 0.0, distance)
            worse = 0 if distance < nearest else worse + 1
            nearest = min(nearest, distance)
            if worse == _PATIENCE:
                break
            since = time.perf_counter()
    if best is None:
        raise ValueError(f"{method.label}: no setting to choose from")
    search = time.perf_counter() - started
    return Chosen(best.setting, best.state, best.seconds, search, best.distance)


def _distance(learner: Learner, task: Task, clean: float) -> float:
    apart = abs(_mean(learner, task.forget) - _mean(learner, task.unseen))
    risen = max(0.0, _mean(learner, task.validation) - clean)
    if not math.isfinite(apart + risen):
        return math.inf  # a model that broke is as far as can be, and has nothing to extract
    sides = (task.forget, task.unseen)
    return apart + risen + sum(extracted(learner.logits, task, rows).share for rows in sides)


def _mean(learner: Learner, rows: Rows) -> float:
    return float(row_losses(learner.logits, rows).mean())
