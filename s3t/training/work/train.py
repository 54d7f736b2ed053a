"""The walk over the tree: every missing node that is alive, handed out as soon as it can be.

    process of rank 0       prepares ─► publishes ─┐
    other processes         wait ──────────────────┴─► claim ready nodes ─► pool ─► store
                                                           ▲                          │
                                                           └── what is there, hit, taken

There are no stages to wait for and no process that leads: all read the store, claim what is ready
and train it, until nothing is left. Processes may be on other machines, and may die. Where several
train a node together, the first of each group walks, and the others follow it (``together.py``).

A repair is the same walk over a plan of the samples left (``renewal.py``): what survives is there.

Invariants: a node is trained when its key is missing from the store, so a killed walk goes on
where it was; a node whose lineage holds a deleted sample is never trained; neither the number of
machines, processes or workers changes a byte. The ledger learns of every node by its weights.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from s3t.config import Config, anchored
from s3t.data import label_names, load_public
from s3t.errors import InputError, S3TError
from s3t.ledger import Gone
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.store.nodes import STALE
from s3t.system.pinned import call_elsewhere, pin
from s3t.training.node.process_group import Group
from s3t.training.prepare.prepare import open_material, prepare
from s3t.training.prepare.replan import Renewal, renew, take_effect
from s3t.training.rank import Place, by_itself
from s3t.training.work.claims import Alone, Leases
from s3t.training.work.group import Together, follow, with_one_voice
from s3t.training.work.remote_run import finished, join, joined, publish, refuse_other_store
from s3t.training.work.scheduler import Walker, silent
from s3t.training.work.worker_state import Workshop
from s3t.training.work.workers import Inline, Pool, Workers, worker_count
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
    renewal: Renewal | None = None,
    without: Gone | None = None,
    in_turn: bool = False,
    public_of: RunDir | None = None,
) -> Report:
    """Train every node of a config's plan that is missing; the main job.

    Under ``accelerate launch`` all processes call it. Killed at any moment and called again, it
    goes on without training a finished node twice, and ends with the same bytes.

    Args:
        config: of a new run, or that of one to go on with.
        renewal: plan the run anew first, on what is left of its samples.
        without: samples that a new run must never see, though the data hold them.
        in_turn: whether one process does in turn what ``stage.processes`` would do together:
            slower, and the same bytes.
        public_of: a run whose base, public head and prototypes are taken, since they were made in
            another environment.

    Raises:
        S3TError: see ``prepare`` and ``renew``; or a stage diverged, or workers died.
    """
    if pin(config.training.arithmetic):
        return _train(config, renewal, without, in_turn, public_of)
    found = call_elsewhere(
        config.training.arithmetic,
        train_words,
        config=config.model_dump(mode="json"),
        renewal=None if renewal is None else asdict(renewal),
        without=None if without is None else without.to_dict(),
        in_turn=in_turn,
        public_of=None if public_of is None else str(public_of.root),
    )
    return Report(**found)


def train_words(
    config: Any, renewal: Any, without: Any, in_turn: bool, public_of: str | None
) -> dict[str, Any]:
    """``train`` of JSON values, in a process whose arithmetic is pinned."""
    report = _train(
        Config.model_validate(config),
        None if renewal is None else Renewal(renewal["add"], tuple(renewal["files"])),
        None if without is None else Gone.of(without),
        in_turn,
        None if public_of is None else RunDir(public_of),
    )
    return asdict(report)


def _train(
    config: Config,
    renewal: Renewal | None,
    without: Gone | None,
    in_turn: bool,
    public_of: RunDir | None,
) -> Report:
    started, added = time.monotonic(), 0
    process, together = Place.found(), 1 if in_turn else config.stage.processes
    place = _groups(process, together)
    accelerator, device = _accelerator(config, process)
    with ExitStack() as stack:
        stack.enter_context(one_thread(device))
        group = Group(process, together, device) if together > 1 else None
        if group is not None:
            stack.enter_context(with_one_voice(group))
            if not group.leads:
                follow(group, device)
                return Report(str(config.run_dir), 0, 0, 0, 0, 0, 0.0, place.processes, together)
        if place.main:
            stack.enter_context(RunDir(config.run_dir).training_lock())
        stack.callback(_forget_trunk, config, place)
        claims = _claims(config, place)
        pool = _pool(config, device, place) if group is None else Together(group, device)
        stack.callback(pool.close)
        if claims is not None:
            stack.callback(claims.close)
        if place.main:
            added = _prepared(config, device, claims, renewal, without, public_of)
        else:
            assert claims is not None
            _meet(config, place, claims, renewal is not None)
        run = RunDir.existing(config.run_dir)
        stack.enter_context(run.ledger_open())
        counts = Walker(config, accelerator, run, place, claims or Alone(), pool).go()
        if place.main:
            take_effect(run)
            _score_again(run, device)
            if renewal is not None:
                purge(run, locked=True)
    return Report(
        run=str(run.root),
        added=added,
        seconds=round(time.monotonic() - started, 3),
        processes=place.processes,
        workers=together if group is not None else pool.size,
        **counts,
    )


def _groups(process: Place, together: int) -> Place:
    try:
        return process.in_groups_of(together)
    except InputError as error:
        if process.speaks:
            raise
        raise SystemExit(error.exit_code) from None


def _accelerator(config: Config, place: Place) -> tuple[Accelerator, torch.device]:
    """accelerate's trackers, and the device of this process; connected to no other process."""
    trackers = list(config.training.trackers) if place.main else []
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
        device = torch.device("cuda", place.local % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if device.type != "cpu" and config.training.arithmetic == "portable":
        raise InputError(
            f"training.arithmetic=portable is of processors, and this trains on {device.type}: "
            "use native, or accelerate launch --cpu"
        )
    return accelerator, device


def _claims(config: Config, place: Place) -> Leases | None:
    """Nobody but this process trains the run, unless there are more or a store that others see."""
    if place.processes == 1 and config.store.url is None:
        return None
    run = RunDir(config.run_dir, anchored(config).store)
    return Leases(run.work(), place, config.store.lease)


def _pool(config: Config, device: torch.device, place: Place) -> Pool:
    size = worker_count(config.training.workers, device, place.here)
    shared = size > 1 or place.here > 1
    if size == 1:
        return Inline(device, shared)
    return Workers(size, shared, config.training.arithmetic)


def _prepared(
    config: Config,
    device: torch.device,
    claims: Leases | None,
    renewal: Renewal | None,
    without: Gone | None,
    public_of: RunDir | None,
) -> int:
    """Prepare the run, or plan it anew, as the main process; returns the samples taken in."""
    added = 0
    refuse_other_store(config)
    if claims is not None:
        claims.open()
    quiet = silent() or config.model.adapt is None
    run = RunDir(config.run_dir)
    if renewal is None:
        with tqdm(desc="adapting the base", unit="step", disable=quiet) as bar:
            on_step = partial(_advance, bar)
            prepare(config, device, on_step, without, public_of)
    else:
        added = renew(run, device, renewal)
    run = RunDir(config.run_dir)
    run.store.sweep(0 if claims is None else STALE)
    publish(run)
    if claims is not None:
        claims.ready()
    return added


def _meet(config: Config, place: Place, claims: Leases, renewed: bool) -> None:
    """Wait for the run that the main process prepares, here or on another machine."""
    run = RunDir(config.run_dir)

    def needless() -> bool:
        """The run lies here with its ledger, or all of it is trained."""
        if renewed:
            return False
        if run.prepared and not run.joined:
            return run.store.keys().issuperset(_wanted(run))  # else it may be planned again
        return config.store.url is not None and not place.beside_main and finished(config)

    if not claims.wait_for_main(needless) and not renewed:  # a repair may be through already
        if place.beside_main:
            raise SystemExit(2)  # it has said why
        raise S3TError(
            "the main process, of machine rank 0, ended before the run was prepared: its message "
            "says why"
        )
    if config.store.url is not None and (run.joined or not run.prepared):
        if place.speaks:
            join(config)
        while not joined(RunDir(config.run_dir)):  # the first process of this machine is at it
            time.sleep(claims.pause)
    claims.open()


def _wanted(run: RunDir) -> list[NodeKey]:
    """Nodes of the plan to train that no deletion has hit."""
    hits = run.hits()
    return [node.key for node in run.trained_plan().forest if not node.is_hit(hits)]


def _score_again(run: RunDir, device: torch.device) -> None:
    """Score nodes whose scores are of other public rows than there are now; trains nothing."""
    config, there = run.config(), run.store.keys()
    rows = load_public(config, "validation", label_names(config)).digest()
    with run.ledger() as ledger:
        known, wanted = ledger.plans.nodes(), _wanted(run)
        stale = [key for key in wanted if key in there and key in known and known[key].rows != rows]
        if stale:
            workshop = Workshop(open_material(run, device))
            ledger.plans.rescore(workshop.scores(stale), rows)


def _forget_trunk(config: Config, place: Place) -> None:
    """Hidden states of private rows stay no longer than they are needed."""
    run = RunDir(config.run_dir)
    if place.main or (place.speaks and run.joined):
        shutil.rmtree(run.trunk_path, ignore_errors=True)


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
