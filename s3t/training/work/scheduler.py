"""The loop that trains the nodes of a plan: it pushes ready units to idle workers.

    store ─── nodes that are there ─┐
    ledger ── slots that are hit ───┼─► ready nodes ─► unit ─► idle worker ─► store
    leases ── what others have ─────┘                              │
                    └──────────────── finished, or lost ◄──────────┘

Invariant: a node is handed out only if its key is missing, its parent is there and no deletion has
hit it. A node counts as trained when it is in the store, whatever a worker says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from accelerate import Accelerator

from s3t.config import Config
from s3t.errors import S3TError
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.system.progress import Progress
from s3t.training.prepare.inputs import RunInputs
from s3t.training.rank import Rank
from s3t.training.work.node_leases import DepotLeases, NodeLeases
from s3t.training.work.node_log import NodeLog
from s3t.training.work.ready_nodes import ReadyNodes
from s3t.training.work.worker_state import steps_of
from s3t.training.work.workers import Workers
from s3t.types import NodeKey, Slot

__all__ = ["Scheduler"]

_TRIES = 3
"""Times that a node is trained without being there afterwards, before that is an error."""


class Scheduler:
    """Trains the nodes of a run's plan with the workers of one process.

    Args:
        config: with the trackers, and where ``training`` may differ from the run's.
        accelerator: whose trackers are told of scores.
        run: a prepared run.
        rank: which process this is.
        leases: keep other processes from the nodes that this one trains.
        workers: what nodes are handed to.
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        run: RunDir,
        rank: Rank,
        leases: NodeLeases,
        workers: Workers,
    ) -> None:
        self.config, self.accelerator, self.run = config, accelerator, run
        self.rank, self.leases, self.workers = rank, leases, workers
        self.plan = run.trained_plan()
        self.forest = self.plan.forest
        self.node_log = NodeLog(run) if rank.main else None
        self._ready = ReadyNodes(self.forest, self._cost, 1)
        self._there: set[NodeKey] = set()
        self._hits: set[Slot] = set()
        self._told: set[Slot] = set()
        self._looked = float("-inf")
        self._away: set[NodeKey] = set()
        self._stages: dict[int, int] = {}
        self._tries: Counter[NodeKey] = Counter()
        self._own: set[NodeKey] = set()
        self._logged = 0
        self._bar: Progress | None = None

    def train(self, inputs: RunInputs) -> dict[str, int]:
        """Train every node that is missing and alive; returns the counts of the report.

        Args:
            inputs: what this process has read of the run already.
        """
        self._look()
        todo, nodes = [*self._ready.left], len(self.forest)
        skipped = sum(node.is_hit(self._hits) for node in self.forest)
        found = nodes - len(todo) - skipped
        if todo:
            self._train(todo, inputs)
        if self.node_log is not None:
            self.node_log.close(self._there)
        if self.rank.main and isinstance(self.leases, DepotLeases):
            self.leases.clear()
        came = sum(key in self._there for key in todo)
        trained = came if self.rank.main else len(self._own)
        skipped += len(todo) - came
        return {"nodes": nodes, "trained": trained, "found": found, "skipped": skipped}

    def _train(self, todo: Sequence[NodeKey], inputs: RunInputs) -> None:
        if self.rank.main:
            self.accelerator.init_trackers(self.config.name)
        self._ready.most = self.workers.open(self.run, inputs, self._stepped)
        total = sum(self._steps(self.forest[key]) for key in todo)
        with Progress("training", total, self.rank.speaks) as self._bar:
            while self._hand_out():
                for finished in self.workers.finished(self.leases.pause):
                    if finished.lost:
                        self._give_back(finished.unit)
                    else:
                        self._trained(finished.unit)
        if self.rank.main:
            for tracker in self.accelerator.trackers:  # end_training would part the group too
                tracker.finish()

    def _hand_out(self) -> bool:
        """Give every idle worker a unit while nodes are ready; False once no node is left."""
        if time.monotonic() - self._looked >= self.leases.pause:
            self._look()
        idle = self.workers.idle()
        while idle and (unit := self._unit(idle[0], len(idle))):
            self.workers.start(idle.pop(0), unit)
        return bool(self._ready.left)

    def _unit(self, worker: int, idle: int) -> list[NodeKey]:
        """A unit for a worker, kept from other processes; empty if no node is ready.

        Args:
            worker: its number.
            idle: how many workers of this process have no unit, this one included.
        """
        idle += self.leases.idle() * self.workers.size
        workers = self.rank.processes * self.workers.size
        while unit := self._ready.unit(self._stages.get(worker), self._away, idle, workers):
            mine = self.leases.take(unit)
            self._away |= {*unit} - {*mine}
            if self.leases.shared:  # another may have finished it since the last look
                missing = [key for key in mine if not self.run.store.has(key)]
                self._came([key for key in mine if key not in missing])
                mine = missing
            if mine:
                self._ready.hold(mine)
                self._stages[worker] = self.forest[mine[0]].stage
                return mine
        return []

    def _stepped(self, steps: int) -> None:
        assert self._bar is not None  # it is told while training alone
        self._bar.update(steps)

    def _trained(self, unit: Sequence[NodeKey]) -> None:
        """Take note of a unit that is trained, and what lives of it published."""
        there = [key for key in unit if self.run.store.has(key)]
        self._own.update(there)
        self._ready.free(unit)
        self._came(there)
        if len(there) < len(unit):
            self._look()  # a deletion has hit the others
        for key in unit:
            self._tries[key] += 1
            if key in self._ready.left and self._tries[key] >= _TRIES:
                raise S3TError(
                    f"node {key} was trained {_TRIES} times and is not in the store: see whether "
                    f"something removes files from {self.run.store.root}"
                )

    def _give_back(self, unit: Sequence[NodeKey]) -> None:
        """Make the nodes of a dead worker ready again."""
        self.leases.release(unit)
        self._ready.free(unit)

    def _came(self, keys: Sequence[NodeKey]) -> None:
        """Nodes that this process had taken are there."""
        self.leases.release(keys)
        self._note(self._there | {*keys})

    def _look(self) -> None:
        """See which nodes are there, which are hit, and which other processes train."""
        self._away = {*self.leases.away()}
        self._hits = self.run.hits()
        if self.rank.main and self._hits != self._told:  # in case who deleted could not tell it
            self.run.tell_store()
            self._told = self._hits
        fresh = self.leases.shared or not self._there
        # a node that goes away meanwhile is met as damage where its child is trained
        self._note(self._there | (self.run.store.keys() if fresh else frozenset()))
        self._looked = time.monotonic()

    def _note(self, there: set[NodeKey]) -> None:
        self._there = there
        if self.node_log is not None:
            self.node_log.see(there)
        for key in self._ready.mark(there, self._hits):
            if self._bar is not None:
                self._log(key)
                if key not in self._own:  # what our workers do they tell step by step
                    self._bar.update(self._steps(self.forest[key]))
                self._bar.note(nodes=f"{len(there)}/{len(self.forest)}", **self._score(key))

    def _steps(self, node: Node) -> int:
        return steps_of(node, self.config.stage)

    def _cost(self, node: Node) -> int:
        """Time of a node in steps of one layer: a stage passes through all from its lowest."""
        blocks = self.plan.recipe["blocks"]  # of prompts none: they pass through all layers
        return self._steps(node) * max(1, int(blocks[0][1] - blocks[node.stage - 1][0]))

    def _score(self, key: NodeKey) -> dict[str, str]:
        """The public validation score of a node that was just trained here."""
        if key not in self._own:
            return {}
        try:
            return {"score": f"{self.run.store.meta(key).score:.4g}"}
        except S3TError:  # a damaged node is told of where it is used
            return {}

    def _log(self, key: NodeKey) -> None:
        """Public validation scores to the trackers: nothing of a private sample is in them."""
        if self.rank.main and self.config.training.trackers:
            meta = self.run.store.meta(key)
            values = {"validation": meta.score, "shard": meta.shard, "stage": len(meta.prefix)}
            self.accelerator.log(values, step=self._logged)
            self._logged += 1
