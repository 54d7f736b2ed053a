"""From a config to a prepared run.

    checks ─► base (made, adapted or as loaded) ─► plan ─► RUN: config, ledger, base, plan
                                                public head, prototypes, if it has any

Invariants: a run is prepared only from a config that was checked whole. What is missing is planned
for the environment in which it is trained, and what is there stays what it is. No row of a deleted
sample gets further than the reading of the data.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from s3t.config import Config, anchored, dump_config
from s3t.errors import InputError
from s3t.ledger import Gone, Ledger
from s3t.model.prototypes import write_prototypes
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.store import write_durably
from s3t.training.environment import environment_of
from s3t.training.prepare.checks import CheckedRun, check_run
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.public_head import (
    head_digest,
    keep_head,
    needs_head,
    public_head_of,
    starting_head,
)

__all__ = ["carry_on", "prepare", "put_in_force"]

_log = logging.getLogger(__name__)

_FREE = {
    *("training", "store", "aggregation", "output", "name"),
    *("repair", "receipts", "ledger", "serve"),
}
"""Sections that may differ when a run is gone on with: they shape no node."""


def prepare(
    config: Config,
    device: torch.device,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    without: Gone | None = None,
    public_of: RunDir | None = None,
) -> RunInputs:
    """Make the run directory ready to train, or prove that it already is.

    Args:
        config: the resolved config; ``config.run_dir`` is where.
        device: what the run will be trained on.
        on_step: told of the steps of the base's adaptation.
        without: samples of the private data that the run must never see.
        public_of: a run whose public head and prototypes are taken; by default they are made.

    Returns:
        what was read for it, for the training in this process.

    Raises:
        ConfigError, DataError, InputError: nothing was written.
        S3TError: the run was prepared by another version of the engine.
    """
    run = RunDir(config.run_dir)
    if run.prepared:
        return _go_on(run, _with_weights(run, config), device)
    # before the paths are made absolute: messages name them as they were given
    checked = check_run(config, without, device, on_step, public_of)
    config = anchored(checked.config)
    for note in checked.notes:
        _log.warning("%s", note)
    _ = RunDir(config.run_dir, config.store).store  # a URL or key ring that cannot be used
    if run.foreign:
        raise InputError(
            f"{run.root} holds files that are no run: give an empty directory with output=DIR"
        )
    write_durably(run.config_path, dump_config(config).encode())
    _freeze_base(run, config, checked, on_step)
    if not config.stage.sharded:  # which is for bases that no single device may hold
        checked.base.to(device)
    if checked.prototypes is not None:
        write_prototypes(run.prototypes_path, checked.prototypes, checked.base.fingerprint)
    if checked.classes and needs_head(config):
        keep_head(run, checked.inputs, public_of)
    _write_plan(run, config, checked, device, without)
    return checked.inputs


def _go_on(run: RunDir, config: Config, device: torch.device) -> RunInputs:
    """Prove that a prepared run is that of the config; plan what is missing for this process."""
    _check_same(run, anchored(config))
    run.prove_ledger(config.ledger)
    write_durably(run.config_path, dump_config(anchored(config)).encode())
    _settle(run)
    inputs = RunInputs.of(run)
    carry_on(run, device, inputs)
    return inputs


def _with_weights(run: RunDir, config: Config) -> Config:
    """The config, with the weights that the run has unless it names others."""
    how = config.aggregation
    if "weights" in how.model_fields_set:
        return config
    before = run.config().aggregation
    if before.method != how.method:
        return config
    how = how.model_copy(update={"weights": before.weights})
    return config.model_copy(update={"aggregation": how})


def _freeze_base(
    run: RunDir, config: Config, checked: CheckedRun, on_step: Callable[[int, int], None]
) -> None:
    """Adapt the base, unless the checks have; keep it in the run, unless it can be loaded again."""
    if config.model.adapt is not None and checked.prototypes is None:
        checked.inputs.adapt_base(on_step)
    if config.model.adapt is not None or config.model.base.startswith("make:"):
        temporary = run.root / f".base.{os.getpid()}.tmp"
        checked.inputs.save_base(temporary)
        shutil.rmtree(run.base_path, ignore_errors=True)
        temporary.rename(run.base_path)


def _write_plan(
    run: RunDir, config: Config, checked: CheckedRun, device: torch.device, without: Gone | None
) -> None:
    """Register the samples, put the plan in force, and write it: then the run is prepared."""
    base = checked.base
    head = starting_head(run, config, base)
    here = environment_of(config, base, checked.classes, device)
    plan = checked.plan(base, head_digest(head), here)
    with run.ledger(create=True) as ledger:
        _refuse_other(ledger, plan)
        ledger.register(checked.partition.slots(), without=without)
        kept = head_digest(public_head_of(run, base))
        ledger.plans.put_in_force(ledger.plans.propose(plan.digest, 0, kept))
    write_durably(run.plan_path, plan.to_json().encode())


def carry_on(run: RunDir, device: torch.device, inputs: RunInputs) -> None:
    """Plan what is missing for the environment in which it will be trained: this one.

    What is there stays what it is, so nothing is trained again, and nothing that serves is lost.
    Needs the training lock. Doing it again changes nothing.
    """
    now, there, hits = run.trained_plan(), run.store.keys(), run.hits()
    missing = [node for node in now.forest if node.key not in there and not node.is_hit(hits)]
    if not missing:
        return
    base = inputs.base
    here = environment_of(inputs.config, base, len(now.recipe["labels"]), device)
    plan = now.in_environment(here, there)
    if plan.digest == now.digest:
        return
    with run.ledger() as ledger:
        newest = ledger.plans.newest()
        run.plans.write(plan)
        ledger.plans.propose(plan.digest, newest.plan_view, head_digest(public_head_of(run, base)))
        if newest.generation == ledger.plans.in_force().generation:
            put_in_force(run, ledger, plan)


def put_in_force(run: RunDir, ledger: Ledger, plan: Plan) -> None:
    """Serve the newest plan from now on, and move its file to where it is looked for."""
    ledger.plans.put_in_force(ledger.plans.newest().generation)
    run.plans.settle(plan, plan.digest)


def _settle(run: RunDir) -> None:
    """Finish what a kill may have left undone between ledger and plan file."""
    plan = run.plan()
    with run.ledger() as ledger:
        run.plans.settle(plan, ledger.plans.newest().plan)
        if not ledger.plans.all():  # of an older s3t
            ledger.plans.put_in_force(ledger.plans.propose(plan.digest, 0))


def _refuse_other(ledger: Ledger, plan: Plan) -> None:
    """A database may hold a ledger already, begun here before a kill, or that of another run."""
    made = ledger.plans.all()
    if ledger.shared and made and made[-1].digest != plan.digest:
        raise InputError(
            f"{ledger.name} holds the ledger of another run: name an empty database with "
            "ledger=URL, or take part in that run with s3t attach"
        )


def _check_same(run: RunDir, config: Config) -> None:
    """A prepared run is gone on with only under the config that shaped its nodes."""
    before = anchored(run.config()).model_dump(mode="json", exclude=_FREE)
    now = config.model_dump(mode="json", exclude=_FREE)
    changed = _differences("", before, now)
    if not config.generates and needs_head(config) and not run.head_path.is_file():
        changed.append("it was trained without a public head, which this config needs")
    if changed:
        raise InputError(
            f"{run.root} holds a run of another config ({'; '.join(changed)}): "
            "go back to it, or give another directory with output=DIR"
        )


def _differences(at: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted({*before, *now})
            for line in _differences(f"{at}.{key}".lstrip("."), before.get(key), now.get(key))
        ]
    return [] if before == now else [f"{at} was {before!r}, is {now!r}"]
