"""The forecast of a run: its ledger, plan and nodes as they are now, given to ``plan.forecast``.

Invariant: reads only. Persons are counted before the schedule catches up with the ledger, so no
slot is taken to be untouched that a deletion in between has emptied.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np

from s3t.data.partition import tier_slices
from s3t.errors import IntegrityError
from s3t.ledger import SlotPersons
from s3t.plan.forecast import Forecast, RunningSystem, forecast, observed_rate, person_weights
from s3t.plan.survival.persons import Counts
from s3t.run.opened import OpenRun

__all__ = ["run_forecast"]


def run_forecast(
    opened: OpenRun, *, now: datetime, trials: int | None = None, seed: int = 0
) -> Forecast:
    """Requests, and days, until the run's first shard dies and until it is exhausted.

    With ``partition.risk.rates`` the persons of a tier whose slices are hit more often are likelier
    to ask next; without, all persons are alike. Where shards are clusters the rows of a person may
    lie in several, and the person counts in each (``Forecast.in_each_shard``).

    Args:
        opened: of the run.
        now: with its time zone; the observed rate is counted until then.
        trials, seed: of the simulation that rates need (``plan.forecast.forecast``).

    Raises:
        InputError: no trials, or a negative seed.
        IntegrityError: the ledger is damaged, or another plan's.
    """
    observed = observed_rate(opened.ledger.counts.history(), now)
    found = forecast(_state(opened), observed=observed, trials=trials, seed=seed)
    shape = opened.config.partition
    spread = shape.clusters is not None and shape.subject is not None
    return replace(found, in_each_shard=spread)


def _state(opened: OpenRun) -> RunningSystem:
    plan, shape = opened.plan, opened.config.partition
    registered, left = _tables(opened.ledger.counts.persons(), plan.shards, plan.slices)
    view, first, missing = opened.first_slices()
    living = np.zeros(left.shape, dtype=np.bool_)
    for slot in first:
        living[slot] = True
    rates = None if shape.risk is None else shape.risk.rates
    weights = None if rates is None else person_weights(registered, tier_slices(shape), rates)
    return RunningSystem(view, left, living, len(missing), weights)


def _tables(persons: list[SlotPersons], shards: int, slices: int) -> tuple[Counts, Counts]:
    """Persons registered, and persons left: [m, L] each."""
    registered = np.zeros((shards, slices), dtype=np.int64)
    left = np.zeros_like(registered)
    for slot in persons:
        if not (0 <= slot.shard < shards and 0 <= slot.slice < slices):
            raise IntegrityError(
                f"a sample lies in shard {slot.shard} slice {slot.slice}, there are {shards} × "
                f"{slices}: ledger and plan do not belong together"
            )
        registered[slot.shard, slot.slice] = slot.registered
        left[slot.shard, slot.slice] = slot.left
    return registered, left
