"""What the ledger says at one moment: its tables, its log, and what its rows add up to.

    tables as they are              values, log, requests, slots, nodes, jobs
    from the log                    plans, and the slots that deletions hit
    computed from rows and log      samples left, digests, hits by view, samples in a wrong slot

Invariant: nothing is computed from the counters and the view number, which deletions keep up to
date. Those are kept beside the computed values, so that claims can compare the two.
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

__all__ = ["LedgerFacts", "LogRow", "PlanRow", "SlotFacts"]


@dataclass(frozen=True, slots=True)
class LogRow:
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
    """A plan that the ledger names. ``in_force`` is the view since which it is served, or None."""

    generation: int
    digest: Digest
    view: int
    in_force: int | None


@dataclass
class SlotFacts:
    """Facts of one slot (shard, slice), computed from the rows of its samples.

    Attributes:
        samples: number of samples registered, purged ones included.
        left: number of samples that are not deleted.
        digest: digest of the samples left (``slice_digest``).
        planned: number of samples left at the view of the plan in force.
        planned_digest: digest of those; None if rows of some were purged since.
        persons: number of distinct subjects, purged ones included, plus samples without a subject.
        persons_left: the same, counting the samples left.
        marked: number of rows of deleted samples that a purge has not removed yet, by view.
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
class LedgerFacts:
    """A ledger, read in one transaction.

    Attributes:
        database: name and version of the database.
        faults: problems that the database finds in its own pages and indexes, a sentence each.
        values: the table ``run`` without its secrets.
        commitments: digests of the secrets, by name.
        purged_digest: digest of the hashes that are kept of purged samples; None without any.
        log: entries in order.
        acknowledged: number and digest of the last entry that a writer acknowledged, as the lock
            file beside the database says; None if it says nothing.
        requests: rows by request id.
        slots, nodes: tables, by slot and by key.
        jobs: rows of large deletions that were accepted.
        wrong_copies: content digests whose counter of copies is wrong.
        recounted: facts of each slot, computed from the rows.
        misplaced: ids whose slot does not follow from the sample itself; empty without a config.
        restored: (keyed hash, slot) of samples that a receipt deletes and no row marks as deleted.
        unreceipted: (slot, view) of deleted samples that no receipt of that view names.
        confirmed: by view, number of samples that were purged, or that a row marks as deleted and
            a receipt names.
        slots_hit: by view, the slots in which it deleted a sample.
        purged: number of purged samples.
        samples_digest: digest of the rows of all samples.
    """

    database: str
    faults: list[str]
    values: Mapping[str, str]
    commitments: Mapping[str, str]
    log: list[LogRow]
    requests: Mapping[str, Any]
    slots: Mapping[Slot, tuple[int, int, int, int]]
    nodes: Mapping[NodeKey, Witnessed]
    jobs: list[Any]
    wrong_copies: list[str] = field(default_factory=list)
    recounted: dict[Slot, SlotFacts] = field(default_factory=lambda: defaultdict(SlotFacts))
    misplaced: list[SampleId] = field(default_factory=list)
    restored: list[tuple[str, Slot]] = field(default_factory=list)
    unreceipted: list[tuple[Slot, int]] = field(default_factory=list)
    confirmed: Counter[int] = field(default_factory=Counter)
    slots_hit: dict[int, set[Slot]] = field(default_factory=lambda: defaultdict(set))
    purged: int = 0
    purged_digest: Digest | None = None
    acknowledged: tuple[int, str] | None = None
    samples_digest: Digest = Digest("")

    @property
    def view(self) -> int:
        """The view number that the ledger states."""
        return int(self.values["view"])

    @cached_property
    def plans(self) -> list[PlanRow]:
        """The plans that the log names, by generation."""
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
        """The slots that receipts name, with the last view that hit each.

        Serving processes decide by these which nodes are alive.
        """
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
        """The view at which the plan in force was made; 0 without a plan."""
        return 0 if self.plan is None else self.plan.view

    @property
    def pending(self) -> PlanRow | None:
        """The plan that is trained before it is put in force; None if there is none."""
        last = self.plans[-1] if self.plans else None
        return last if last is not None and last.in_force is None else None

    @property
    def sealed(self) -> LogRow | None:
        """The last entry of the log that holds a digest over all nodes."""
        return next((one for one in reversed(self.log) if one.kind == "nodes"), None)

    @property
    def nodes_sealed(self) -> bool:
        """Whether the table ``nodes`` has the digest that the log states."""
        return self.sealed is not None and nodes_digest(self.nodes) == self.sealed.body["digest"]

    @property
    def nodes_growing(self) -> bool:
        """Whether the table ``nodes`` may hold more than the log states.

        That is so while a training is not finished.
        """
        if self.sealed is None or len(self.nodes) > int(self.sealed.body["nodes"]):
            return True
        plans = [*self.of_kind("plan"), *self.of_kind("force")]
        return any(entry.number > self.sealed.number for entry in plans)

    @property
    def dead_slots(self) -> dict[Slot, int]:
        """Slots that lost a sample since the plan was made, and the first view that deleted one."""
        found = ((slot, counts.first_hit) for slot, counts in self.recounted.items())
        return {slot: hit for slot, hit in found if hit is not None}

    def of_kind(self, kind: str) -> Iterator[LogRow]:
        """The entries of one kind, in order."""
        return (entry for entry in self.log if entry.kind == kind)

    def slot(self, shard: int, part: int) -> SlotFacts:
        """The facts of a slot; those of an empty one if the ledger has no rows of it."""
        empty = SlotFacts(digest=slice_digest(()), planned_digest=slice_digest(()))
        return self.recounted.get((shard, part), empty)
