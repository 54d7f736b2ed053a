"""Deletions of one run: the ledger's truth and the schedule that follows from it. No torch here.

    ids, subjects ─► one transaction (who, where, what dies, what serves instead) ─► receipt
                     ledger ──hits, new nodes, another plan──► schedule

Invariant: the schedule is never ahead of the ledger, and it is brought up to the ledger before it
decides anything; so processes that open the same run agree on what is alive. A plan that a repair
puts in force holds every node that was alive, so nothing that serves is lost by following it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from s3t.config import Config
from s3t.errors import DamagedNodeError, IntegrityError, S3TError, UnavailableError
from s3t.ledger import Deletion, State
from s3t.plan import Plan, environment_name, expected_deletions
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.store import Stamp, folder_stamp, tensors_digest
from s3t.types import Digest, NodeKey, SampleId, Slot

__all__ = ["EnvironmentStatus", "Forgetting", "PrefixChange", "Receipt", "ShardStatus", "Status"]

_log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds after which a store that could not be told is tried again."""


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """A shard's prefix (slice numbers in order) before and after a deletion."""

    shard: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a deletion did.

    Attributes:
        request_id: name of the request; the same one again is the same deletion.
        deleted: ids that it deleted, sorted.
        already_deleted: ids asked for that were deleted before.
        copies_elsewhere: samples left, of other subjects, with the content of a deleted one.
        look_alikes: samples left whose id, or person, looks like one that was named: the same but
            for case, blanks, or how letters are written in Unicode. They are not deleted.
        nodes_dead: keys of the nodes that it switched off, sorted.
        prefixes: every shard's prefix before and after.
        view: version of the view from which on no answer has seen the samples.
        expected_deletions_left: random requests until exhaustion, expected.
        seconds: time it took, the wait for running predictions included.
        dry_run: whether nothing was committed.
        accepted_at: when it was durable, ISO 8601 in UTC; None for a dry run.
        effective_at: since when no answer of any process can come from what it switched off; None
            if that was not seen in time: it is written down by replicas, or on a file by who
            looks next, and the stored receipt tells.
        untold: why the store at ``store.url`` was not told yet, so that the deletion counts as
            effective only later; None if it was, or if there is none.
        hashes, hashes_before: keyed hashes of the ids that it deleted and that were deleted
            before, as the log names them; sorted.
    """

    request_id: str
    deleted: tuple[SampleId, ...]
    already_deleted: tuple[SampleId, ...]
    copies_elsewhere: int
    look_alikes: int
    nodes_dead: tuple[NodeKey, ...]
    prefixes: tuple[PrefixChange, ...]
    view: int
    expected_deletions_left: float
    seconds: float
    dry_run: bool
    hashes: tuple[str, ...]
    hashes_before: tuple[str, ...]
    accepted_at: str | None = None
    effective_at: str | None = None
    untold: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, to be kept or logged: samples by their keyed hashes alone."""
        values = asdict(self)
        values["deleted"] = values.pop("hashes")
        values["already_deleted"] = values.pop("hashes_before")
        return values


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard: what it serves, and what of it is left.

    Attributes:
        prefix: slice numbers of the prefix that serves, empty if none does.
        node: key of the prefix's last node.
        nodes_alive, nodes_dead, nodes_missing: nodes that can serve, that a deletion has hit, and
            that are neither (not trained yet, or damaged).
        slices_hit: slices that hold a deleted sample.
        score: the prefix's score on the public validation data.
    """

    shard: int
    prefix: tuple[int, ...]
    node: NodeKey | None
    nodes_alive: int
    nodes_dead: int
    nodes_missing: int
    slices_hit: tuple[int, ...]
    score: float | None


@dataclass(frozen=True, slots=True)
class EnvironmentStatus:
    """An environment, and how many of the nodes that can serve were trained in it."""

    environment: Digest
    name: str
    nodes: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a run at one view.

    Attributes:
        database: what its ledger is kept in.
        jobs, callbacks: that wait there: large deletions that were accepted and are not done, and
            URLs that are still to be told of a deletion.
        untold: why the store at ``store.url`` could not be told of every deletion when that was
            last tried; None if it was, or if there is none.
        (the others: as in the run's plan and ledger)
    """

    view: int
    samples: int
    deleted: int
    exhausted: bool
    expected_deletions_left: float
    slices: int
    shards: tuple[ShardStatus, ...]
    environments: tuple[EnvironmentStatus, ...]
    database: str
    jobs: int
    callbacks: int
    untold: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Forgetting:
    """The ledger and the schedule of a run, kept in step. Safe to share between threads.

    Args:
        run: a prepared run.
    """

    plan: Plan
    """The plan in force."""

    _schedule: Schedule
    _known: State

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.scores: dict[NodeKey, float] = {}
        self.damaged: dict[NodeKey, DamagedNodeError] = {}
        self._lost: set[NodeKey] = set()
        self._proved = False
        self._folder = folder_stamp(run.root)
        self.config: Config = run.config()
        self.ledger = run.ledger()
        self._lock = threading.RLock()
        self._telling = threading.Lock()
        self._reason: str | None = None
        self._next_try = 0.0
        try:
            self._plan_of(self.ledger.state())
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
            if self.ledger.view() != self._known.view:
                self._follow(self.ledger.state(self._known))
            return self._known.view, self._schedule.prefixes, self.plan

    def first_slices(self) -> tuple[int, list[Slot], list[Slot]]:
        """The ledger's view; the first slices that live at it; those neither hit nor able to."""
        with self._lock:
            view = self.catch_up()[0]
            roots = [node for node in self.plan.forest.nodes if node.parent is None]
            living = [(node.shard, node.last) for node in roots if self.is_alive(node.key)]
            rest = {(node.shard, node.last) for node in roots}.difference(living)
            return view, living, sorted(rest - self._schedule.hits)

    def untold(self) -> str | None:
        """Tell the store at ``store.url`` every deletion; why it was not told, if that fails.

        For some seconds after it has failed it is not tried again, so that nobody waits each time.
        """
        if self.run.store.depot is None:
            return None
        with self._telling:
            if time.monotonic() < self._next_try:
                return self._reason
            before = self._reason
            try:
                self.run.notices().tell(self.ledger)
                self._reason = None
            except S3TError as error:
                self._reason, self._next_try = str(error), time.monotonic() + _PATIENCE
                if before is None:
                    _log.error("store not told yet of deletions, which are durable: %s", error)
            else:
                if before is not None:
                    _log.warning("the store is told of every deletion again")
            return self._reason

    def is_alive(self, key: NodeKey) -> bool:
        """Whether a node can serve, as of the last ``catch_up``."""
        return self._schedule.is_alive(key)

    def lose(self, key: NodeKey) -> None:
        """Count a node, and what grew on it, as unusable: its file is damaged."""
        with self._lock:
            self._lost.add(key)
            self._schedule.apply(self._schedule.without([key]))

    def forget_copies(self) -> list[str]:
        """Remove this machine's copies of nodes that are not alive, where the nodes lie at a URL.

        Returns:
            paths of copies that cannot be removed.
        """
        store = self.run.store
        with self._lock:
            return store.forget_copies([key for key in store.copies() if not self.is_alive(key)])

    def check_files(self, known: dict[NodeKey, Stamp | None], view: int) -> bool:
        """Whether the files behind what is served are those that were read; takes microseconds.

        A node's file that was replaced is read again: where it holds the same, ``known`` is told
        its new stamp.

        Args:
            known: stamps of the nodes' files from before they were read.
            view: at which they serve.

        Returns:
            False if the ledger has come to another view since, so that they may be gone.

        Raises:
            UnavailableError: the run directory or the ledger's file was replaced or removed.
            IntegrityError: a node's file is gone or holds something else.
        """
        self.ledger.check()
        if (found := folder_stamp(self.run.root)) != self._folder:
            what = "is gone" if found is None else "was replaced by another directory"
            raise UnavailableError(
                f"{self.run.root} {what} under this process: put back the one that was there, or "
                "start the process again on the new one",
                "run_gone",
            )
        stamps = self.run.store.stamps(known)
        changed = sorted(key for key, stamp in stamps.items() if stamp != known[key])
        if changed and self.ledger.view() != view:
            return False
        told = self.ledger.plans.nodes() if changed else {}
        for key in changed:
            _, tensors = self.run.store.read(key)
            if key not in told or tensors_digest(tensors) != told[key].weights:
                raise DamagedNodeError(
                    key, "was replaced by another while it is served", str(self.run.store.path(key))
                )
            known[key] = stamps[key]
        return True

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
                serving, dead = self._schedule.prefixes[shard], self._schedule.dead(shard)
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
                dead = self._schedule.dead(shard)
                for node in self.plan.forest.roots(shard):
                    if node.key not in dead:
                        known = self.damaged.get(node.key)
                        what, path = "is not trained", str(self.run.store.path(node.key))
                        raise known or DamagedNodeError(node.key, what, path)

    def delete(
        self,
        sample_ids: Iterable[str],
        subjects: Iterable[str],
        request_id: str | None,
        dry_run: bool,
    ) -> Receipt:
        """One deletion, durable when this returns, unless ``dry_run``.

        Raises:
            InputError: nothing to delete, an unknown id or subject, or a request id in use; or one
                whose deletion was made before samples that it names were taken in.
            IntegrityError: the ledger contradicts itself.
        """
        started = time.perf_counter()
        with self._lock:
            self.prove_ledger()
            before: tuple[Node | None, ...] = ()

            def decide(deletion: Deletion) -> dict[str, Any]:
                nonlocal before
                self._follow(deletion.state)
                before = self._schedule.prefixes
                return self._judge(deletion.slots)

            done = self.ledger.delete(
                sample_ids,
                subjects,
                decide=decide,
                request_id=request_id,
                dry_run=dry_run,
                known=self._known,
            )
            if not dry_run and not done.replayed:
                self._schedule.apply(self._schedule.outcome(done.slots))
                self._known = replace(self._known, view=done.view, hits=())
        part = done.receipt["schedule"]
        return Receipt(
            request_id=done.request_id,
            deleted=done.deleted,
            already_deleted=done.already_deleted,
            copies_elsewhere=done.copies_elsewhere,
            look_alikes=done.look_alikes,
            nodes_dead=tuple(NodeKey(key) for key in part["nodes_dead"]),
            prefixes=tuple(
                PrefixChange(shard, tuple(old), tuple(new)) for shard, old, new in part["prefixes"]
            ),
            view=done.view,
            expected_deletions_left=part["expected_deletions_left"],
            seconds=round(time.perf_counter() - started, 6),
            dry_run=dry_run,
            hashes=tuple(done.receipt["deleted"]),
            hashes_before=tuple(done.receipt["already_deleted"]),
            accepted_at=None if dry_run else done.receipt["created_at"],
        )

    def reload(self) -> None:
        """Look anew at what lies in the store, and believe nothing of it that was proved before."""
        with self._lock:
            self._plan_of(self.ledger.state())

    def survey(self) -> tuple[Status, int, list[tuple[Node, str]]]:
        """The state now, the number of the plan in force, and what became of each of its nodes:
        ``serving``, ``alive``, ``dead`` or ``missing``."""
        with self._lock:
            status, found = self.status(), []
            forest = self.plan.forest
            ends = [one.node for one in status.shards if one.node is not None]
            serving = {node.key for end in ends for node in forest.lineage(end)}
            for shard in range(self.plan.shards):
                alive, dead = self._schedule.alive(shard), self._schedule.dead(shard)
                for node in forest.of_shard(shard):
                    if node.key in dead:
                        state = "dead"
                    elif node.key in serving:
                        state = "serving"
                    else:
                        state = "alive" if node.key in alive else "missing"
                    found.append((node, state))
            return status, self._known.generation, found

    def status(self) -> Status:
        """The state at the ledger's present view."""
        with self._lock:
            view, prefixes, _ = self.catch_up()
            counts = self.ledger.counts()
            return Status(
                view=view,
                samples=counts["samples"],
                deleted=counts["deleted"],
                exhausted=self._schedule.exhausted,
                expected_deletions_left=self._expected(self._schedule.first_slices_left),
                slices=self.plan.slices,
                shards=tuple(
                    self._shard_status(shard, node) for shard, node in enumerate(prefixes)
                ),
                environments=self._environments(),
                database=self.ledger.database,
                **self.ledger.outbox.counts(),
                untold=self._reason,
            )

    def _environments(self) -> tuple[EnvironmentStatus, ...]:
        alive = (key for shard in range(self.plan.shards) for key in self._schedule.alive(shard))
        there = Counter(self.plan.forest[key].environment for key in alive)
        return tuple(
            EnvironmentStatus(one, environment_name(values), there[one])
            for one, values in self.plan.environments.items()
            if there[one]
        )

    def _judge(self, slots: Sequence[Slot]) -> dict[str, Any]:
        """The schedule's part of a receipt, before anything is committed."""
        outcome = self._schedule.outcome(slots)
        now = list(self._schedule.prefixes)
        then = list(now)
        for change in outcome.changes:
            then[change.shard] = change.after
        lost = sum(self.plan.forest[key].parent is None for key in outcome.died)
        return {
            "nodes_dead": list(outcome.died),
            "prefixes": [
                [shard, list(_slices(old)), list(_slices(new))]
                for shard, (old, new) in enumerate(zip(now, then, strict=True))
            ],
            "expected_deletions_left": self._expected(self._schedule.first_slices_left - lost),
        }

    def _expected(self, first_slices: int) -> float:
        return expected_deletions(self.plan.shards * self.plan.slices, first_slices)

    def _shard_status(self, shard: int, node: Node | None) -> ShardStatus:
        alive, dead = len(self._schedule.alive(shard)), len(self._schedule.dead(shard))
        total = len(self.plan.forest.of_shard(shard))
        return ShardStatus(
            shard=shard,
            prefix=_slices(node),
            node=None if node is None else node.key,
            nodes_alive=alive,
            nodes_dead=dead,
            nodes_missing=total - alive - dead,
            slices_hit=tuple(sorted(c for of, c in self._schedule.hits if of == shard)),
            score=None if node is None else self.scores.get(node.key),
        )

    def _follow(self, state: State) -> None:
        """Bring the schedule up to the ledger's state, from the one known."""
        if state.view < self._known.view:
            raise IntegrityError(
                f"the ledger of {self.run.root} has gone back from view {self._known.view} to "
                f"{state.view}: an older copy knows nothing of later deletions. Restore the newest "
                "one, or repeat the deletions since, then start again"
            )
        if state.generation != self._known.generation or state.plan != self._known.plan:
            self._plan_of(state)
        elif state.nodes_view != self._known.nodes_view:
            self._schedule = self._scheduled({*self._schedule.hits, *state.hits})
            self._known = state
        else:
            self._schedule.apply(self._schedule.outcome(state.hits))
            self._known = state

    def _plan_of(self, state: State) -> None:
        """Begin anew with the plan in force; ``state`` holds all of its hits."""
        plan = self.run.plans.find(lambda: self.ledger.state().plan)
        while state.plan is not None and plan.digest != state.plan:  # replaced a moment ago
            state = self.ledger.state()
            plan = self.run.plans.find(lambda: self.ledger.state().plan)
        self.plan = plan
        self.scores, self.damaged, self._lost = {}, {}, set()
        self._schedule = self._scheduled(state.hits)
        self._known = state

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


def _slices(node: Node | None) -> tuple[int, ...]:
    return () if node is None else node.prefix
