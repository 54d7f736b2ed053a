"""An open run: its ledger, its plan and its schedule, kept in step. No torch here.

    ledger ──hits, new nodes, another plan──► follow ──► schedule ──► what each shard serves

Invariant: the schedule is never ahead of the ledger, and it is brought up to the ledger before it
decides anything. So processes that open the same run agree on what is alive. A plan that a repair
puts in force holds every node that was alive, so nothing that serves is lost by following it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from s3t.config import Config
from s3t.errors import DamagedNodeError, IntegrityError
from s3t.ledger import LedgerState, Receipt
from s3t.plan import Plan, expected_deletions
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.run.directory import RunDir
from s3t.run.notifier import StoreNotifier
from s3t.store import folder_stamp
from s3t.types import NodeKey, Slot

__all__ = ["OpenRun"]


class OpenRun:
    """The ledger and the schedule of a run, kept in step. Safe to share between threads.

    Attributes:
        plan: the plan in force.
        schedule: what lives and what each shard serves, at the view of ``known``.
        known: the ledger's state that the schedule was last brought up to.
        scores: of the plan's nodes that are in the store, by key.
        damaged: nodes whose files cannot be used, and why.
        folder: device and inode of the run directory, from before anything was read.
        notifier: tells the store at ``store.url`` of deletions.
    """

    plan: Plan
    schedule: Schedule
    known: LedgerState

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.scores: dict[NodeKey, float] = {}
        self.damaged: dict[NodeKey, DamagedNodeError] = {}
        self._lost: set[NodeKey] = set()
        self._proved = False
        self.folder = folder_stamp(run.root)
        self.config: Config = run.config()
        self.ledger = run.ledger()
        self.notifier = StoreNotifier(run, self.ledger)
        self._lock = threading.RLock()
        try:
            self._plan_of(self.ledger.plans.in_force())
        except BaseException:
            self.ledger.close()
            raise

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the schedule still: no deletion of this process, no catching up."""
        with self._lock:
            yield

    def catch_up(self) -> tuple[int, tuple[Node | None, ...], Plan]:
        """The ledger's view, what each shard serves at it, and the plan that those are of."""
        with self._lock:
            if self.ledger.view() != self.known.view:
                self.follow(self.ledger.plans.in_force(self.known))
            return self.known.view, self.schedule.prefixes, self.plan

    def first_slices(self) -> tuple[int, list[Slot], list[Slot]]:
        """The ledger's view; the first slices that live at it; those neither hit nor able to."""
        with self._lock:
            view = self.catch_up()[0]
            roots = [node for node in self.plan.forest.nodes if node.parent is None]
            living = [(node.shard, node.last) for node in roots if self.is_alive(node.key)]
            rest = {(node.shard, node.last) for node in roots}.difference(living)
            return view, living, sorted(rest - self.schedule.hits)

    def is_alive(self, key: NodeKey) -> bool:
        """Whether a node can serve, as of the last ``catch_up``."""
        return self.schedule.is_alive(key)

    def lose(self, key: NodeKey) -> None:
        """Count a node, and what grew on it, as unusable: its file is damaged."""
        with self._lock:
            self._lost.add(key)
            self.schedule.apply(self.schedule.without([key]))

    def forget_copies(self) -> list[str]:
        """Remove this machine's copies of nodes that are not alive, where the nodes lie at a URL.

        Returns:
            paths of copies that cannot be removed.
        """
        store = self.run.store
        with self._lock:
            return store.forget_copies([key for key in store.copies() if not self.is_alive(key)])

    def prove_ledger(self) -> None:
        """Hold the ledger's tables against its log, once in the life of this process's ledger.

        Raises:
            IntegrityError: see ``Ledger.prove``.
        """
        with self._lock:
            if not self._proved:
                self.ledger.prove()
                self._proved = True

    def prove(self) -> None:
        """Refuse to serve in silence less than was trained.

        Raises:
            DamagedNodeError: a node that would serve, or carry what would, were it not damaged.
        """
        with self._lock:
            for key, error in self.damaged.items():
                shard = self.plan.forest[key].shard
                serving, dead = self.schedule.prefixes[shard], self.schedule.dead(shard)
                grown = [n.stage for n in self.plan.forest.subtree(key) if n.key not in dead]
                if max(grown, default=0) >= (1 if serving is None else serving.stage):
                    raise error

    def prove_exhausted(self) -> None:
        """Tell a run whose budget is spent from one whose nodes are not there.

        Raises:
            DamagedNodeError: a first node that no deletion has hit cannot serve all the same.
        """
        with self._lock:
            for shard in range(self.plan.shards):
                dead = self.schedule.dead(shard)
                for node in self.plan.forest.roots(shard):
                    if node.key not in dead:
                        known = self.damaged.get(node.key)
                        what, path = "is not trained", str(self.run.store.path(node.key))
                        raise known or DamagedNodeError(node.key, what, path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; empty for a language model."""
        return tuple(self.plan.recipe["labels"])

    def expected(self, first_slices: int) -> float:
        """Random deletions until exhaustion, expected, with so many first slices left."""
        return expected_deletions(self.plan.shards * self.plan.slices, first_slices)

    def made(self, receipt: Receipt) -> None:
        """Count a deletion in that this process has just made. Needs ``held``."""
        self.schedule.apply(self.schedule.outcome(receipt.slots))
        self.known = replace(self.known, view=receipt.view, hits=())

    def reload(self) -> None:
        """Read again what lies in the store. Nothing that was proved before counts as proved."""
        with self._lock:
            self._plan_of(self.ledger.plans.in_force())

    def follow(self, state: LedgerState) -> None:
        """Bring the schedule up to the ledger's state, from the one known."""
        if state.view < self.known.view:
            raise IntegrityError(
                f"the ledger of {self.run.root} has gone back from view {self.known.view} to "
                f"{state.view}: an older copy knows nothing of later deletions. Restore the newest "
                "one, or repeat the deletions since, then start again"
            )
        if state.generation != self.known.generation or state.plan != self.known.plan:
            self._plan_of(state)
        elif state.nodes_view != self.known.nodes_view:
            self.schedule = self._scheduled({*self.schedule.hits, *state.hits})
            self.known = state
        else:
            self.schedule.apply(self.schedule.outcome(state.hits))
            self.known = state

    def _plan_of(self, state: LedgerState) -> None:
        """Begin again with the plan in force; ``state`` holds all of its hits."""
        plan = self.run.plans.find(lambda: self.ledger.plans.in_force().plan)
        while state.plan is not None and plan.digest != state.plan:  # replaced a moment ago
            state = self.ledger.plans.in_force()
            plan = self.run.plans.find(lambda: self.ledger.plans.in_force().plan)
        self.plan = plan
        self.scores, self.damaged, self._lost = {}, {}, set()
        self.schedule = self._scheduled(state.hits)
        self.known = state

    def _scheduled(self, hits: Iterable[Slot]) -> Schedule:
        """A schedule of what lies in the store now."""
        available = self._inventory() - self._lost
        return Schedule(self.plan.forest, self.plan.shards, available, self.scores, hits)

    def _inventory(self) -> set[NodeKey]:
        """Nodes of the plan that are there with a lineage that proves their key."""
        there, told = self.run.store.keys(), self.ledger.plans.nodes()
        keys = [node.key for node in self.plan.forest.nodes if node.key in there]
        for key in keys:
            if key not in self.scores:  # else it was proved before
                try:
                    self.scores[key] = self.run.store.meta(key).score
                    self.damaged.pop(key, None)
                except DamagedNodeError as error:
                    self.damaged[key] = error
                    continue
            if key in told:  # a file may be edited; and public rows may be others by now
                self.scores[key] = told[key].score
        return self.scores.keys() & keys
