"""The main job: a config's nodes are trained, from the preparation of the run to its report.

    rank 0          lock ─► prepare ─► publish ─┐                  ┌─► take effect ─► score ─► purge
    other ranks     wait ───────────────────────┴─► Scheduler.train ┴─► report

There are no stages to wait for and no process that leads: all read the store, take what is ready
and train it, until nothing is left. Processes may be on other machines, and may die. Where several
train a node together, the first of each group schedules, and the others follow it (``group.py``).

A repair is the same over a plan of the samples left (``replan.py``): what survives is there.

Invariants: a node is trained when its key is missing from the store, so a training that was killed
goes on where it was; a node whose lineage holds a deleted sample is never trained; neither the
number of machines, processes or workers changes a byte. The ledger learns of every node by its
weights.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from s3t.config import Config, anchored
from s3t.errors import InputError, S3TError
from s3t.ledger import Gone
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.store.nodes import STALE
from s3t.system.pinned import call_pinned
from s3t.system.progress import Progress
from s3t.training.node.process_group import DistributedGroup
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.prepare import prepare
from s3t.training.prepare.replan import Replan, replan_run, take_effect
from s3t.training.rank import Rank, by_itself
from s3t.training.work.agent_store import main_ended, tell_ended
from s3t.training.work.group import GroupLeader, follow, with_one_voice
from s3t.training.work.node_leases import Alone, DepotLeases
from s3t.training.work.remote_run import finished, join, joined, publish, refuse_other_store
from s3t.training.work.scheduler import Scheduler
from s3t.training.work.worker_state import WorkerState
from s3t.training.work.workers import Inline, SingleProcess, Subprocesses, Workers, worker_count
from s3t.types import NodeKey

__all__ = ["Report", "train"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a training did.

    Attributes:
        run: the run directory.
        nodes: nodes of the plan.
        trained: nodes trained now: by all processes in the report of the main one, by the
            process itself in those of the others.
        found: nodes that were there already.
        skipped: nodes left out because a deletion has hit them.
        added: samples taken in.
        seconds: wall time.
        processes, workers: how the work was spread; processes that train a node together are the
            workers of one.
    """

    run: str
    nodes: int
    trained: int
    found: int
    skipped: int
    added: int
    seconds: float
    processes: int
    workers: int

    def sentence(self) -> str:
        """The report in one line."""
        return (
            f"{self.run}: {self.trained} nodes trained, {self.found} found, {self.skipped} left "
            f"out for deletions, {self.seconds:.1f} s, {self.processes} × {self.workers} workers"
        )


def train(
    config: Config,
    *,
    replan: Replan | None = None,
    without: Gone | None = None,
    in_turn: bool = False,
    public_of: RunDir | None = None,
) -> Report:
    """Train every node of a config's plan that is missing; the main job.

    Under ``accelerate launch`` all processes call it. Killed at any moment and called again, it
    goes on without training a finished node twice, and ends with the same bytes.

    Args:
        config: of a new run, or that of one to go on with.
        replan: plan the run again first, on what is left of its samples.
        without: samples that a new run must never see, though the data hold them.
        in_turn: whether one process does in turn what ``stage.processes`` would do together:
            slower, and the same bytes.
        public_of: a run whose base, public head and prototypes are taken, since they were made in
            another environment.

    Raises:
        S3TError: see ``prepare`` and ``replan_run``; or a stage diverged, or workers died.
    """
    arguments = config, replan, without, in_turn, public_of
    return call_pinned(config.training.arithmetic, _train, *arguments)


def _train(
    config: Config,
    replan: Replan | None,
    without: Gone | None,
    in_turn: bool,
    public_of: RunDir | None,
) -> Report:
    started, added, inputs = time.monotonic(), 0, None
    process, size = Rank.found(), 1 if in_turn else config.stage.processes
    rank = _group_rank(process, size)
    accelerator, device = _accelerator(config, process)
    with ExitStack() as stack:
        stack.enter_context(one_thread(device))
        group = DistributedGroup(process, size, device) if size > 1 else None
        if group is not None:
            stack.enter_context(with_one_voice(group))
            if not group.leads:
                follow(group, device)
                return Report(str(config.run_dir), 0, 0, 0, 0, 0, 0.0, rank.processes, size)
        leases, workers = _open(stack, config, device, rank, group)
        if rank.main:
            added, inputs = _prepare(config, device, leases, replan, without, public_of)
        else:
            assert leases is not None
            _await_prepared(config, rank, leases, replan is not None)
        run = RunDir.existing(config.run_dir)
        stack.enter_context(run.ledger_open())
        inputs = inputs or RunInputs.of(run)
        scheduler = Scheduler(config, accelerator, run, rank, leases or Alone(), workers)
        counts = scheduler.train(inputs)
        if rank.main:
            take_effect(run)
            _score_again(run, device, inputs)
        if rank.main and replan is not None:
            purge(run, locked=True)
        if rank.main and rank.here > 1:
            tell_ended()
    return Report(
        run=str(run.root),
        added=added,
        seconds=round(time.monotonic() - started, 3),
        processes=rank.processes,
        workers=workers.size if group is None else size,
        **counts,
    )


def _open(
    stack: ExitStack,
    config: Config,
    device: torch.device,
    rank: Rank,
    group: DistributedGroup | None,
) -> tuple[DepotLeases | None, Workers]:
    """Lock the run, and start the workers; ``stack`` gives all of it up.

    Returns:
        what keeps other processes from the same nodes, None if there can be none; and the workers.
    """
    if rank.main:
        stack.enter_context(RunDir(config.run_dir).training_lock())
    stack.callback(_remove_shared_cache, config, rank)
    leases = _leases(config, rank)
    workers = _workers(config, device, rank, group)
    stack.callback(workers.close)
    if leases is not None:
        stack.callback(leases.close)
    return leases, workers


def _group_rank(process: Rank, size: int) -> Rank:
    try:
        return process.in_groups_of(size)
    except InputError as error:
        if process.speaks:
            raise
        raise SystemExit(error.exit_code) from None


def _accelerator(config: Config, rank: Rank) -> tuple[Accelerator, torch.device]:
    """accelerate's trackers, and the device of this process; connected to no other process."""
    trackers = list(config.training.trackers) if rank.main else []
    try:
        with by_itself():
            accelerator = Accelerator(
                log_with=trackers or None,
                project_dir=str(config.run_dir / "tracking") if trackers else None,
            )
    except (ValueError, ImportError) as error:
        raise S3TError(f"accelerate cannot start ({error}): see training.trackers") from None
    device = accelerator.device
    if device.type == "cuda":
        device = torch.device("cuda", rank.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if device.type != "cpu" and config.training.arithmetic == "portable":
        raise InputError(
            f"training.arithmetic=portable is of processors, and this trains on {device.type}: "
            "use native, or accelerate launch --cpu"
        )
    return accelerator, device


def _leases(config: Config, rank: Rank) -> DepotLeases | None:
    """What keeps other processes from the same nodes; None if no other process can see the run."""
    if rank.processes == 1 and config.store.url is None:
        return None
    run = RunDir(config.run_dir, anchored(config).store)
    return DepotLeases(run.work(), rank, config.store.lease)


def _workers(
    config: Config, device: torch.device, rank: Rank, group: DistributedGroup | None
) -> Workers:
    if group is not None:
        return Inline(GroupLeader(group, device))
    size = worker_count(config.training.workers, device, rank.here)
    shared = size > 1 or rank.here > 1
    if size == 1:
        return Inline(SingleProcess(device, shared))
    return Subprocesses(size, shared, config.training.arithmetic)


def _prepare(
    config: Config,
    device: torch.device,
    leases: DepotLeases | None,
    replan: Replan | None,
    without: Gone | None,
    public_of: RunDir | None,
) -> tuple[int, RunInputs]:
    """Prepare the run, or plan it again, as the main process.

    Returns:
        samples taken in, and what was read.
    """
    added = 0
    refuse_other_store(config)
    if leases is not None:
        leases.open()
    if replan is None:
        with Progress("adapting the base", None, config.model.adapt is not None) as bar:
            inputs = prepare(config, device, _Done(bar).so_far, without, public_of)
    else:
        added, inputs = replan_run(RunDir(config.run_dir), device, replan)
    run = RunDir(config.run_dir)
    run.store.sweep(0 if leases is None else STALE)
    publish(run)
    if leases is not None:
        leases.ready()
    return added, inputs


def _await_prepared(config: Config, rank: Rank, leases: DepotLeases, replanned: bool) -> None:
    """Wait for the run that the main process prepares, here or on another machine."""
    run = RunDir(config.run_dir)

    def needless() -> bool:
        """The run lies here with its ledger, or all of it is trained."""
        if replanned:
            return rank.beside_main and main_ended()
        if run.prepared and not run.joined:
            return run.store.keys().issuperset(_wanted(run))  # else it may be planned again
        return config.store.url is not None and not rank.beside_main and finished(config)

    if not leases.wait_for_main(needless) and not replanned:
        if rank.beside_main:
            raise SystemExit(2)  # it has said why
        raise S3TError(
            "the main process, of machine rank 0, ended before the run was prepared: its message "
            "says why"
        )
    if config.store.url is not None and (run.joined or not run.prepared):
        if rank.speaks:
            join(config)
        while not joined(RunDir(config.run_dir)):  # the first process of this machine is at it
            time.sleep(leases.pause)
    leases.open()


def _wanted(run: RunDir) -> list[NodeKey]:
    """Nodes of the plan to train that no deletion has hit."""
    hits = run.hits()
    return [node.key for node in run.trained_plan().forest if not node.is_hit(hits)]


def _score_again(run: RunDir, device: torch.device, inputs: RunInputs) -> None:
    """Score nodes whose scores are of other public rows than there are now, or whose evidence is
    not there; trains nothing."""
    there, rows = run.store.keys() & {*_wanted(run)}, inputs.scored_rows
    with run.ledger() as ledger:
        known, said = ledger.plans.nodes(), run.store.evidence_keys()
        stale = [
            key
            for key in sorted(there & known.keys())
            if known[key].rows != rows or key not in said or known[key].evidence is None
        ]
        if stale:
            state = WorkerState(load_prepared(run, device, inputs))
            ledger.plans.rescore(state.score_again(stale))


def _remove_shared_cache(config: Config, rank: Rank) -> None:
    """Hidden states of private rows stay no longer than they are needed."""
    run = RunDir(config.run_dir)
    if rank.main or (rank.speaks and run.joined):
        shutil.rmtree(run.trunk_path, ignore_errors=True)


class _Done:
    """Steps that are told as a sum, for a bar that counts them."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._done = bar, 0

    def so_far(self, done: int, total: int) -> None:
        """So many of so many steps are done."""
        self._bar.of(total)
        self._bar.update(done - self._done)
        self._done = done
