"""The books of a run: its ledger at one moment, as it says and as its rows say.

    tables as they lie there        values, log, requests, slots, nodes, jobs
    told by the log                 plans, and the slots that deletions hit
    reckoned from rows and log      who is left, digests, what was hit when, who is out of place

Invariant: nothing that is reckoned is taken from what deletions keep up to date (counters, view);
those are only carried along, for the claims to compare.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from s3t.data.partition import slice_digest
from s3t.ledger import Witnessed, nodes_digest
from s3t.types import Digest, NodeKey, SampleId, Slot

__all__ = ["Books", "LogEntry", "PlanRow", "SlotBook"]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log: its body as text and, if that is JSON, as values."""

    number: int
    kind: str
    at: str
    text: str
    body: Mapping[str, Any]
    previous: str
    digest: str
    signer: str | None
    signature: str | None


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A plan that the ledger names: ``in_force`` is the view since which it is served, if it is."""

    generation: int
    digest: Digest
    view: int
    in_force: int | None


@dataclass
class SlotBook:
    """One slot by its rows.

    Attributes:
        samples: registered, purged ones included.
        left: not deleted.
        digest: of the samples left (``slice_digest``).
        planned: left at the view of the plan in force.
        planned_digest: of those; None if rows of some were purged since.
        persons: distinct subjects, purged ones included, and samples of nobody.
        persons_left: the same of the samples left.
        marked: rows of deleted samples that are still there, by view.
        first_hit: first view after that of the plan that deleted a sample here; None if none did.
        last_hit: last view that deleted a sample here, 0 if none did.
    """

    samples: int = 0
    left: int = 0
    digest: Digest = Digest("")
    planned: int = 0
    planned_digest: Digest | None = None
    persons: int = 0
    persons_left: int = 0
    marked: Counter[int] = field(default_factory=Counter)
    first_hit: int | None = None
    last_hit: int = 0

    def hit(self, view: int, plan_view: int) -> None:
        """Note that a view deleted a sample here."""
        self.last_hit = max(self.last_hit, view)
        if view > plan_view:
            self.first_hit = view if self.first_hit is None else min(self.first_hit, view)


@dataclass
class Books:
    """A ledger at one moment.

    Attributes:
        database: which one it is, and its version.
        faults: what it finds wrong with its own pages and indexes.
        values: the table ``run`` but for secrets.
        commitments: of the secrets that lie there.
        left_behind: digest of what lies there of purged samples.
        log: by number.
        acknowledged: number and digest of its last entry, as told beside the database, if it is.
        requests: rows by request id.
        slots, nodes: tables, by slot and by key.
        jobs: rows of large deletions that were accepted.
        wrong_copies: contents whose counter is not what a count gives.
        reckoned: the slots by their rows.
        misplaced: ids whose place does not follow from themselves; none without a config.
        restored: (keyed hash, slot) of samples that a receipt deletes, not marked as deleted.
        unreceipted: (slot, view) of deleted samples that no receipt of that view names.
        told: number of samples that rows mark as deleted, and a receipt names, or that were purged,
            by view.
        struck: slots in which each view deleted a sample.
        purged: number of purged samples.
        samples_digest: over the rows of all samples that are there.
    """

    database: str
    faults: list[str]
    values: Mapping[str, str]
    commitments: Mapping[str, str]
    log: list[LogEntry]
    requests: Mapping[str, Any]
    slots: Mapping[Slot, tuple[int, int, int, int]]
    nodes: Mapping[NodeKey, Witnessed]
    jobs: list[Any]
    wrong_copies: list[str] = field(default_factory=list)
    reckoned: dict[Slot, SlotBook] = field(default_factory=lambda: defaultdict(SlotBook))
    misplaced: list[SampleId] = field(default_factory=list)
    restored: list[tuple[str, Slot]] = field(default_factory=list)
    unreceipted: list[tuple[Slot, int]] = field(default_factory=list)
    told: Counter[int] = field(default_factory=Counter)
    struck: dict[int, set[Slot]] = field(default_factory=lambda: defaultdict(set))
    purged: int = 0
    left_behind: Digest | None = None
    acknowledged: tuple[int, str] | None = None
    samples_digest: Digest = Digest("")

    @property
    def view(self) -> int:
        """Number of the view, as the ledger counts it."""
        return int(self.values["view"])

    @cached_property
    def plans(self) -> list[PlanRow]:
        """The plans that the log tells, by generation."""
        forced = {one.body["generation"]: one.body["view"] for one in self.of_kind("force")}
        rows = (one.body for one in self.of_kind("plan"))
        return [
            PlanRow(
                row["generation"], Digest(row["digest"]), row["view"], forced.get(row["generation"])
            )
            for row in rows
        ]

    @cached_property
    def hits(self) -> dict[Slot, int]:
        """The slots that receipts name, and the view that hit each last: what processes go by."""
        return {
            (int(shard), int(part)): int(entry.body["view"])
            for entry in self.of_kind("deletion")
            for shard, part in entry.body["slots"]
        }

    @cached_property
    def plan(self) -> PlanRow | None:
        """The plan in force."""
        return next((one for one in reversed(self.plans) if one.in_force is not None), None)

    @property
    def plan_view(self) -> int:
        """View of the samples that the plan in force is of."""
        return 0 if self.plan is None else self.plan.view

    @property
    def pending(self) -> PlanRow | None:
        """The plan that is to be trained before it is served, if there is one."""
        last = self.plans[-1] if self.plans else None
        return last if last is not None and last.in_force is None else None

    @property
    def sealed(self) -> LogEntry | None:
        """The last entry of the log with a digest over all nodes."""
        return next((one for one in reversed(self.log) if one.kind == "nodes"), None)

    @property
    def nodes_sealed(self) -> bool:
        """Whether the table nodes is what the log says."""
        return self.sealed is not None and nodes_digest(self.nodes) == self.sealed.body["digest"]

    @property
    def nodes_growing(self) -> bool:
        """Whether it may hold more than that by now, since a training was not finished."""
        if self.sealed is None or len(self.nodes) > int(self.sealed.body["nodes"]):
            return True
        plans = [*self.of_kind("plan"), *self.of_kind("force")]
        return any(entry.number > self.sealed.number for entry in plans)

    @property
    def dead_slots(self) -> dict[Slot, int]:
        """Slots with a sample deleted since the plan, and the view that was the first to."""
        found = ((slot, book.first_hit) for slot, book in self.reckoned.items())
        return {slot: hit for slot, hit in found if hit is not None}

    def of_kind(self, kind: str) -> Iterator[LogEntry]:
        """Entries of a kind by number."""
        return (entry for entry in self.log if entry.kind == kind)

    def slot(self, shard: int, part: int) -> SlotBook:
        """A slot by its rows; an empty one if there are none."""
        empty = SlotBook(digest=slice_digest(()), planned_digest=slice_digest(()))
        return self.reckoned.get((shard, part), empty)
