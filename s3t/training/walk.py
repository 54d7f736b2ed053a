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
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from s3t.config import Config, anchored
from s3t.errors import InputError, S3TError
from s3t.ledger import Gone
from s3t.plan.trie import Node
from s3t.purging import purge
from s3t.run import RunDir
from s3t.training.board import Board
from s3t.training.claims import Alone, Claims, Leases
from s3t.training.peers import Group
from s3t.training.place import Place, by_itself
from s3t.training.pool import Inline, Pool, Workers, worker_count
from s3t.training.preparation import prepare
from s3t.training.renewal import Renewal, renew, take_effect
from s3t.training.sharing import finished, join, joined, publish
from s3t.training.together import Together, follow, with_one_voice
from s3t.training.witness import Witness
from s3t.training.workshop import one_thread, steps_of
from s3t.types import NodeKey, Slot

__all__ = ["Report", "train"]

_TRIES = 3
"""Times that a node is trained without being there afterwards, before that is an error."""

_STALE = 3600.0
"""Seconds after which a half-written file belongs to nobody, on whatever machine it was begun."""


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

    Raises:
        S3TError: see ``prepare`` and ``renew``; or a stage diverged, or workers died.
    """
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
            added = _prepared(config, device, claims, renewal, without)
        else:
            assert claims is not None
            _meet(config, place, claims, renewal is not None)
        run = RunDir.existing(config.run_dir)
        counts = _Walk(config, accelerator, run, place, claims or Alone(), pool).go()
        if place.main:
            take_effect(run)
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


class _Walk:
    """One process's way through the nodes; the source of its pool."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        run: RunDir,
        place: Place,
        claims: Claims,
        pool: Pool,
    ) -> None:
        self.config, self.accelerator, self.run = config, accelerator, run
        self.place, self.claims, self.pool = place, claims, pool
        self.pause = claims.pause
        self.plan = run.trained_plan()
        self.forest = self.plan.forest
        self.witness = Witness(run) if place.main else None
        self._board = Board(self.forest, self._cost, 1)
        self._there: set[NodeKey] = set()
        self._hits: set[Slot] = set()
        self._told: set[Slot] | None = None
        self._looked = float("-inf")
        self._away: set[NodeKey] = set()
        self._stages: dict[int, int] = {}
        self._tries: Counter[NodeKey] = Counter()
        self._own: set[NodeKey] = set()
        self._logged = 0
        self._bar: Any = None

    def go(self) -> dict[str, int]:
        """All of it; returns the counts of the report."""
        self._look()
        todo, nodes = [*self._board.left], len(self.forest)
        skipped = self._dead()
        found = nodes - len(todo) - skipped
        if todo:
            if self.place.main:
                self.accelerator.init_trackers(self.config.name)
            self._board.group = self.pool.open(self.run)
            total = sum(self._steps(self.forest[key]) for key in todo)
            silent = _silent() or not self.place.speaks
            with tqdm(total=total, unit="step", disable=silent, dynamic_ncols=True) as self._bar:
                self.pool.train(self, self._bar.update)
            if self.place.main:
                for tracker in self.accelerator.trackers:  # end_training would part the group too
                    tracker.finish()
        if self.witness is not None:
            self.witness.close(self._there)
        if self.place.main and isinstance(self.claims, Leases):
            self.claims.clear()
        came = sum(key in self._there for key in todo)
        trained = came if self.place.main else len(self._own)
        skipped += len(todo) - came
        return {"nodes": nodes, "trained": trained, "found": found, "skipped": skipped}

    def take(self, worker: int, idle: int) -> list[NodeKey] | None:
        """A unit for a worker, see ``pool.Source``."""
        if time.monotonic() - self._looked >= self.pause:
            self._look()
        idle += self.claims.idle() * self.pool.size
        while self._board.left:
            stage = self._stages.get(worker)
            workers = self.place.processes * self.pool.size
            unit = self._board.unit(stage, self._away, idle, workers)
            if not unit:
                return []
            mine = self.claims.take(unit)
            self._away |= {*unit} - {*mine}
            if self.claims.shared:  # another may have finished it since the last look
                ready = [key for key in mine if not self.run.store.has(key)]
                self._came([key for key in mine if key not in ready])
                mine = ready
            if mine:
                self._board.hold(mine)
                self._stages[worker] = self.forest[mine[0]].stage
                return mine
        return None

    def done(self, keys: Sequence[NodeKey]) -> None:
        """A unit is trained, and what lives of it published, see ``pool.Source``."""
        there = [key for key in keys if self.run.store.has(key)]
        self._own.update(there)
        self._board.free(keys)
        self._came(there)
        if len(there) < len(keys):
            self._look()  # a deletion has hit the others
        for key in keys:
            self._tries[key] += 1
            if key in self._board.left and self._tries[key] >= _TRIES:
                raise S3TError(
                    f"node {key} was trained {_TRIES} times and is not in the store: see whether "
                    f"something removes files from {self.run.store.root}"
                )

    def lost(self, keys: Sequence[NodeKey]) -> None:
        """Whoever had the unit has died, see ``pool.Source``."""
        self.claims.release(keys)
        self._board.free(keys)

    def _came(self, keys: Sequence[NodeKey]) -> None:
        """Nodes of which we had the claim are there."""
        self.claims.release(keys)
        self._note(self._there | {*keys})

    def _look(self) -> None:
        """See what is there, what is hit, and what others have in hand."""
        self._away = {*self.claims.away()}
        self._hits = self.run.hits()
        if self.place.main and self.run.store.depot is not None and self._hits != self._told:
            self.run.notices().tell(self.plan.digest, self._hits)
            self._told = self._hits
        fresh = self.claims.shared or not self._there
        # what goes away meanwhile is met by who builds upon it, as damage
        self._note(self._there | (self.run.store.keys() if fresh else frozenset()))
        self._looked = time.monotonic()

    def _note(self, there: set[NodeKey]) -> None:
        self._there = there
        if self.witness is not None:
            self.witness.see(there)
        for key in self._board.mark(there, self._hits):
            if self._bar is not None:
                self._log(key)
                if key not in self._own:  # what our workers do they tell step by step
                    self._bar.update(self._steps(self.forest[key]))

    def _dead(self) -> int:
        return sum(node.is_hit(self._hits) for node in self.forest)

    def _steps(self, node: Node) -> int:
        return steps_of(node, self.config.stage.step_rows, self.config.stage.epochs)

    def _cost(self, node: Node) -> int:
        """Time of a node in steps of one block: a stage passes through all blocks from its own.

        Prompts pass through all layers at each stage, as snapshots do.
        """
        stage = self.config.stage
        layers = stage.isolation == "layers" and stage.adapter == "lora"
        return self._steps(node) * (node.stage if layers else 1)

    def _log(self, key: NodeKey) -> None:
        """Public validation scores to the trackers: nothing of a private sample is in them."""
        if self.place.main and self.config.training.trackers:
            meta = self.run.store.meta(key)
            values = {"validation": meta.score, "shard": meta.shard, "stage": len(meta.prefix)}
            self.accelerator.log(values, step=self._logged)
            self._logged += 1


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
    return Inline(device, shared) if size == 1 else Workers(size, shared)


def _prepared(
    config: Config,
    device: torch.device,
    claims: Leases | None,
    renewal: Renewal | None,
    without: Gone | None,
) -> int:
    """Prepare the run, or plan it anew, as the main process; returns the samples taken in."""
    added = 0
    if claims is not None:
        claims.open()
    silent = _silent() or config.model.adapt is None
    run = RunDir(config.run_dir)
    if renewal is None:
        with tqdm(desc="adapting the base", unit="step", disable=silent) as bar:
            prepare(config, device, lambda done, total: _advance(bar, done, total), without)
    else:
        added = renew(run, device, renewal)
    run = RunDir(config.run_dir)
    run.store.sweep(0 if claims is None else _STALE)
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
            return True
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


def _forget_trunk(config: Config, place: Place) -> None:
    """Hidden states of private rows stay no longer than they are needed."""
    run = RunDir(config.run_dir)
    if place.main or (place.speaks and run.joined):
        shutil.rmtree(run.trunk_path, ignore_errors=True)


def _silent() -> bool:
    """A bar on a terminal, nothing in a log file (accelerate's tqdm takes None for False)."""
    return not sys.stderr.isatty()


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
