"""One process on its way through the nodes of a plan: what is there, what is hit, what to do next.

    store ─── nodes that are there ─┐
    ledger ── slots that are hit ───┼─► board ─► units of ready nodes ─► pool ─► store
    claims ── what others have ─────┘

Invariant: a node is handed out only if its key is missing, its parent is there and no deletion has
hit it; and what the pool says is trained counts when it is in the store.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import tqdm

from s3t.config import Config
from s3t.errors import S3TError
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.training.rank import Place
from s3t.training.work.claims import Claims, Leases
from s3t.training.work.node_log import Witness
from s3t.training.work.ready_nodes import Board
from s3t.training.work.worker_state import steps_of
from s3t.training.work.workers import Pool
from s3t.types import NodeKey, Slot

__all__ = ["Walker", "silent"]

_TRIES = 3
"""Times that a node is trained without being there afterwards, before that is an error."""


class Walker:
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
        self._told: set[Slot] = set()
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
            quiet = silent() or not self.place.speaks
            with tqdm(total=total, unit="step", disable=quiet, dynamic_ncols=True) as self._bar:
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
        if self.place.main and self._hits != self._told:  # in case who deleted could not tell it
            self.run.tell_store()
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


def silent() -> bool:
    """A bar on a terminal, nothing in a log file (accelerate's tqdm takes None for False)."""
    return not sys.stderr.isatty()
