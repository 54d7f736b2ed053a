"""Plan a run again, on the samples that are left and on those that came.

    deletions: samples left ─► new slice digests ─► plan: surviving nodes keep their keys
    additions: data ─► new samples ─► ledger ─────────┘

A repair's plan holds every node that is alive, so it is put in force at once: serving loses
nothing, and gains each node as it is trained. A plan with new samples lacks nodes that are alive,
those whose slices have grown; it is put in force when its nodes are trained.

Invariant: a plan follows from config, base and the samples left, as that of a new run would (E3).
So what is trained for it is, byte for byte, what a run from scratch without the deleted samples
trains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from s3t.config import Config, anchored, dump_config
from s3t.errors import DataError, InputError
from s3t.ledger import Gone, Ledger
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.store import write_durably
from s3t.training.environment import environment_of
from s3t.training.prepare.checks import CheckedRun, sequences_of, unencodable
from s3t.training.prepare.clusters import find_clusters, known_clusters, prototypes_of
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import check_recipe, placed
from s3t.training.prepare.prepare import put_in_force
from s3t.training.prepare.public_head import head_digest, public_head_of, starting_head
from s3t.types import NodeKey, SampleId

__all__ = ["Replan", "add_files", "replan_run", "take_effect"]


@dataclass(frozen=True, slots=True)
class Replan:
    """How to plan a run again.

    Attributes:
        add: take in samples that are new in the data; else they are refused.
        files: data files to read in addition from now on, with ``add``.
    """

    add: bool = False
    files: tuple[str, ...] = ()


def replan_run(run: RunDir, device: torch.device, replan: Replan) -> tuple[int, RunInputs]:
    """Make the plan of the samples left, and put it in force if that loses no living node.

    Needs the training lock. Doing it again changes nothing.

    Args:
        run: a prepared run.
        device: what its nodes are trained on.
        replan: what to take in.

    Returns:
        number of samples taken in; and what was read, for the training in this process.

    Raises:
        InputError: data or base changed in another way; or nothing is left of the data.
        S3TError: the run was planned by another version of the engine.
    """
    config = add_files(run.config(), replan.files)
    inputs = RunInputs.of(run, config)
    _ = inputs.data  # its problems come before those of the ledger
    with run.ledger() as ledger:
        gone = ledger.deleted.all()
        checked = _checked(run, inputs, gone, known_clusters(config, ledger), device)
        if replan.files:
            write_durably(run.config_path, dump_config(config).encode())
        added = 0
        if replan.add:
            added = ledger.add(checked.partition.slots())
        else:
            ledger.register(checked.partition.slots())  # proves that nothing else has changed
        now = run.plans.find(lambda: ledger.plans.in_force().plan)
        run.plans.settle(now, ledger.plans.newest().plan)
        base = inputs.base.to(device)
        here = environment_of(config, base, checked.classes, device)
        head = head_digest(starting_head(run, config, base))
        newest, there = run.plans.find(lambda: ledger.plans.newest().plan), run.store.keys()
        plan = checked.plan(base, head, here, before=newest, there=there)
        check_recipe(run, plan.recipe, now)
        if plan.digest != ledger.plans.newest().plan:
            run.plans.write(plan)
            kept = head_digest(public_head_of(run, base))
            ledger.plans.propose(plan.digest, gone.view, kept)
        if _holds(plan, now, there, ledger):
            put_in_force(run, ledger, plan)
    return added, inputs


def take_effect(run: RunDir) -> None:
    """Put the newest plan in force, once its nodes are trained. Needs the training lock."""
    with run.ledger() as ledger:
        put_in_force(run, ledger, run.plans.find(lambda: ledger.plans.newest().plan))


def add_files(config: Config, files: Sequence[str]) -> Config:
    """The config with more private data files.

    Raises:
        InputError: a source that has no files, or files that are not there.
    """
    if not files:
        return config
    source = config.data.private
    if source.files is None:
        raise InputError(
            f"data.private of format {source.format!r} has no files to add to: give its rows in "
            "files of one format"
        )
    absent = [name for name in files if not Path(name).exists()]
    if absent:
        raise InputError(f"there is no file {absent[0]}: nothing was added")
    before = (source.files,) if isinstance(source.files, str) else source.files
    named = [str(Path(name).absolute()) for name in files]
    together = (*before, *(name for name in named if name not in before))
    changes: dict[str, object] = {"private": source.model_copy(update={"files": together})}
    if config.data.cut_from == "private":  # what is public stays as it was
        changes["cut_files"] = config.data.cut_files or source.files
    data = config.data.model_copy(update=changes)
    return anchored(config.model_copy(update={"data": data}))


def _checked(
    run: RunDir,
    inputs: RunInputs,
    gone: Gone,
    known: Mapping[SampleId, int],
    device: torch.device,
) -> CheckedRun:
    """The run as it would be planned now, over the base that it has."""
    inputs.leave_out(gone)
    if not inputs.data.private.samples:
        raise InputError(f"no private sample is left: there is nothing to train in {run.root}")
    config, now = inputs.config, run.plan()
    inputs.prove_base(now.base, run)
    if problems := unencodable(inputs):
        raise DataError(problems, "data")
    base = inputs.base
    prototypes = prototypes_of(run, config, base)
    base = base if prototypes is None else base.to(device)
    find_clusters(inputs, prototypes, known)
    return CheckedRun(
        inputs=inputs,
        partition=placed(config, inputs.data.private.samples, now.shards),
        sequences=sequences_of(config, base, len(inputs.data.labels), now.shards),
        prototypes=prototypes,
    )


def _holds(plan: Plan, now: Plan, there: Collection[NodeKey], ledger: Ledger) -> bool:
    """Whether a plan has every node of the one in force that is there and not hit."""
    hits = set(ledger.plans.in_force().hits)
    living = (node.key for node in now.forest if not node.is_hit(hits))
    return all(key in plan.forest for key in living if key in there)
