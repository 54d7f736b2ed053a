"""Reads a ledger into ``LedgerFacts``: one pass over all samples, purged ones included.

    samples ───┐                   ┌─► each slot: samples left, digest, counts, first and last hit
    purged ────┼──one pass, by id──┼─► samples whose slot does not follow from themselves
    log ───────┘                   └─► deleted rows without a receipt, receipts without a row

Invariant: memory grows with persons and deletions, not with samples. The digest of a slice is
computed row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from s3t.audit.ledger_facts import LedgerFacts, LogRow
from s3t.config import PartitionConfig
from s3t.data.partition import slot_of, tier_slices
from s3t.ledger import Ledger, LedgerTables, Witnessed
from s3t.types import Digest, NodeKey, Sample, SampleId, Slot, Subject

__all__ = ["read_facts"]

# Made once: a pass encodes every sample.
_ITEM = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
"""Items of a slice's digest, see ``types.digest``."""
_LINE = json.JSONEncoder()
"""Rows of the digests of all samples and of purged ones, see ``ledger.registry``, ``purging``."""


def read_facts(ledger: Ledger, shape: PartitionConfig | None) -> LedgerFacts:
    """Read all tables of a ledger in one transaction.

    Args:
        ledger: the ledger, open.
        shape: ``partition`` of the run's config, by which the slot of each sample is computed;
            None leaves that out.
    """
    faults = ledger.faults()
    with ledger.tables() as tables:
        facts = _read(ledger, faults, tables)
        _Pass(facts, tables, shape).go()
    return facts


def _read(ledger: Ledger, faults: list[str], tables: LedgerTables) -> LedgerFacts:
    return LedgerFacts(
        database=ledger.database,
        faults=faults,
        acknowledged=tables.acknowledged,
        commitments=tables.secrets.commitments(),
        values=tables.values(),
        log=[_entry(row) for row in tables.log()],
        requests={row.request_id: row for row in tables.requests()},
        slots={(row.shard, row.slice): _counters(row) for row in tables.slots()},
        nodes={
            NodeKey(row.key): Witnessed(
                Digest(row.weights), row.score, Digest(row.rows), row.evidence
            )
            for row in tables.nodes()
        },
        jobs=tables.jobs(),
    )


class _Lines:
    """SHA-256 of the canonical JSON of a list whose items come one by one."""

    def __init__(self) -> None:
        self._state, self._first = hashlib.sha256(b"["), True

    def add(self, text: str) -> None:
        self._state.update((text if self._first else f",{text}").encode())
        self._first = False

    def digest(self) -> Digest:
        state = self._state.copy()
        state.update(b"]")
        return Digest(state.hexdigest())


class _Pass:
    """The pass over all samples: first the hashes of purged ones, then the rows by id."""

    def __init__(
        self, facts: LedgerFacts, tables: LedgerTables, shape: PartitionConfig | None
    ) -> None:
        self.facts, self.tables, self.shape = facts, tables, shape
        self._plan_view = facts.plan_view
        self._left: dict[Slot, _Lines] = defaultdict(_Lines)
        self._planned: dict[Slot, _Lines] = defaultdict(_Lines)
        self._people: dict[Slot, set[str]] = defaultdict(set)
        self._people_left: dict[Slot, set[str]] = defaultdict(set)
        self._receipts = {
            name: int(entry.body["view"])
            for entry in facts.of_kind("deletion")
            for name in entry.body.get("deleted", ())
        }
        self._copies = {row.content: int(row.samples_left) for row in tables.copies()}
        self._counted: Counter[str] = Counter()
        self._all = hashlib.sha256()
        self._tiers = () if shape is None else tier_slices(shape)

    def go(self) -> None:
        gone_since = {(row.shard, row.slice) for row in self._purged()}
        for row in self.tables.samples():
            self._sample(row)
        facts = self.facts
        for slot, counts in facts.recounted.items():
            counts.digest = self._left[slot].digest()
            counts.planned_digest = None if slot in gone_since else self._planned[slot].digest()
            counts.persons += len(self._people[slot])
            counts.persons_left += len(self._people_left[slot])
        facts.samples_digest = Digest(self._all.hexdigest())
        several = dict(self.tables.repeated())
        for content in sorted({*several, *self._copies}):
            left = several.get(content, self._counted[content])
            if self._copies.get(content) != left:
                facts.wrong_copies.append(content)

    def _purged(self) -> Iterator[Any]:
        """Count purged samples; yields those that were deleted after the plan."""
        facts, total = self.facts, hashlib.sha256()
        for row in self.tables.forgotten():
            total.update((_LINE.encode(list(row)) + "\n").encode())
            facts.purged_digest = Digest(total.hexdigest())
            if row.shard < 0:  # kept out from the start, never registered here
                continue
            counts = facts.recounted[row.shard, row.slice]
            counts.samples += 1
            facts.purged += 1
            facts.confirmed[row.view] += 1
            self._hit(row.shard, row.slice, row.view)
            self._person((row.shard, row.slice), row.subject, left=False)
            if row.view > self._plan_view:
                yield row

    def _sample(self, row: Any) -> None:
        slot, view = (row.shard, row.slice), row.deleted_view
        counts, text = self.facts.recounted[slot], _ITEM.encode([row.sample_id, row.content])
        counts.samples += 1
        self._all.update(f"{_LINE.encode(list(row)[:5])}, ".encode())
        subject = row.subject
        if subject is not None and self.facts.purged:  # of whom persons are known by hashes
            subject = self.tables.hashed(subject)
        self._person(slot, subject, left=view is None)
        if view is None:
            counts.left += 1
            self._left[slot].add(text)
            if row.content in self._copies:
                self._counted[row.content] += 1
        if view is None or view > self._plan_view:
            counts.planned += 1
            self._planned[slot].add(text)
        self._compare_slot(row, slot)
        self._mark(row, slot, view)

    def _person(self, slot: Slot, subject: str | None, left: bool) -> None:
        counts = self.facts.recounted[slot]
        if subject is None:
            counts.persons += 1
            counts.persons_left += left
        else:
            self._people[slot].add(subject)
            if left:
                self._people_left[slot].add(subject)

    def _compare_slot(self, row: Any, slot: Slot) -> None:
        """Note a sample whose slot is not the one that its subject or content gives.

        The tier is the one that owns the slice. With clusters only the slice is compared: the rows
        of the ledger do not say which shard a sample is nearest to (``claims/clusters.py``).
        """
        shape = self.shape
        if shape is None:
            return
        tier, end = 0, 0
        for number, count in enumerate(self._tiers):
            tier, end = number, end + count
            if row.slice < end:
                break
        subject = None if row.subject is None else Subject(row.subject)
        cluster = None if shape.clusters is None else int(row.shard)
        sample = Sample(SampleId(row.sample_id), subject, Digest(row.content), tier, cluster)
        if slot_of(sample, shape.shards, shape.slices, shape.salt, self._tiers) != slot:
            self.facts.misplaced.append(sample.id)

    def _mark(self, row: Any, slot: Slot, view: int | None) -> None:
        """Compare the deletion mark of a row with the receipts."""
        facts = self.facts
        if view is not None:
            facts.recounted[slot].marked[view] += 1
            self._hit(*slot, view)
        if not self._receipts and view is None:
            return
        name = self.tables.keyed(row.sample_id)
        if view is None and name in self._receipts:
            facts.restored.append((name, slot))
            self._hit(*slot, self._receipts[name])  # it is deleted, whatever its mark says
        elif view is not None and self._receipts.get(name) != view:
            facts.unreceipted.append((slot, view))
        elif view is not None:
            facts.confirmed[view] += 1

    def _hit(self, shard: int, part: int, view: int) -> None:
        self.facts.slots_hit[view].add((shard, part))
        self.facts.recounted[shard, part].hit(view, self._plan_view)


def _counters(row: Any) -> tuple[int, int, int, int]:
    return row.samples, row.samples_left, row.persons, row.persons_left


def _entry(row: Any) -> LogRow:
    try:
        body = json.loads(row.body)
    except ValueError:
        body = None
    return LogRow(
        row.number,
        row.kind,
        row.at,
        row.body,
        body if isinstance(body, dict) else {},
        row.previous,
        row.digest,
        row.signer,
        row.signature,
    )
