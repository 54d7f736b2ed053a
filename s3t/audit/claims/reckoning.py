"""The books are made: one pass over all samples, those there and those purged.

    samples ───┐                   ┌─► slots: who is left, digest, counts, first and last hit
    forgotten ─┼──one pass, by id──┼─► places that do not follow from the sample itself
    log ───────┘                   └─► marks that no receipt speaks of, receipts without a mark

Invariant: memory grows with persons and deletions, not with samples; the digest of a slice is built
up row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import s3t.data.partition as places
from s3t.audit.ledger_facts import Books, LogEntry
from s3t.config import PartitionConfig
from s3t.ledger import Evidence, Ledger, Witnessed
from s3t.types import Digest, NodeKey, Sample, SampleId, Slot, Subject

__all__ = ["read_books"]

# Made once: a pass encodes every sample.
_ITEM = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
"""Items of a slice's digest, see ``types.digest``."""
_LINE = json.JSONEncoder()
"""Rows of the digests of all samples and of purged ones, see ``ledger.registry``, ``purging``."""


def read_books(ledger: Ledger, shape: PartitionConfig | None) -> Books:
    """Read a ledger whole, its tables at one moment.

    Args:
        ledger: opened.
        shape: of the run's config, to look at places; None leaves that out.
    """
    faults = ledger.faults()
    with ledger.evidence() as evidence:
        books = _read(ledger, faults, evidence)
        _Pass(books, evidence, shape).go()
    return books


def _read(ledger: Ledger, faults: list[str], evidence: Evidence) -> Books:
    return Books(
        database=ledger.database,
        faults=faults,
        acknowledged=evidence.acknowledged,
        commitments=evidence.secrets.commitments(),
        values=evidence.values(),
        log=[_entry(row) for row in evidence.log()],
        requests={row.request_id: row for row in evidence.requests()},
        slots={(row.shard, row.slice): _counters(row) for row in evidence.slots()},
        nodes={
            NodeKey(row.key): Witnessed(Digest(row.weights), row.score, Digest(row.rows))
            for row in evidence.nodes()
        },
        jobs=evidence.jobs(),
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
    """The one pass over all samples, those there and those purged."""

    def __init__(self, books: Books, evidence: Evidence, shape: PartitionConfig | None) -> None:
        self.books, self.evidence, self.shape = books, evidence, shape
        self._plan_view = books.plan_view
        self._left: dict[Slot, _Lines] = defaultdict(_Lines)
        self._planned: dict[Slot, _Lines] = defaultdict(_Lines)
        self._people: dict[Slot, set[str]] = defaultdict(set)
        self._people_left: dict[Slot, set[str]] = defaultdict(set)
        self._receipts = {
            name: int(entry.body["view"])
            for entry in books.of_kind("deletion")
            for name in entry.body.get("deleted", ())
        }
        self._copies = {row.content: int(row.samples_left) for row in evidence.copies()}
        self._counted: Counter[str] = Counter()
        self._all = hashlib.sha256()
        self._tiers = () if shape is None else places.tier_slices(shape)

    def go(self) -> None:
        gone_since = {(row.shard, row.slice) for row in self._purged()}
        for row in self.evidence.samples():
            self._sample(row)
        books = self.books
        for slot, book in books.reckoned.items():
            book.digest = self._left[slot].digest()
            book.planned_digest = None if slot in gone_since else self._planned[slot].digest()
            book.persons += len(self._people[slot])
            book.persons_left += len(self._people_left[slot])
        books.samples_digest = Digest(self._all.hexdigest())
        several = dict(self.evidence.repeated())
        for content in sorted({*several, *self._copies}):
            left = several.get(content, self._counted[content])
            if self._copies.get(content) != left:
                books.wrong_copies.append(content)

    def _purged(self) -> Iterator[Any]:
        """Count purged samples; yields those that were deleted after the plan."""
        books, total = self.books, hashlib.sha256()
        for row in self.evidence.forgotten():
            total.update((_LINE.encode(list(row)) + "\n").encode())
            books.left_behind = Digest(total.hexdigest())
            if row.shard < 0:  # kept out from the start, never registered here
                continue
            book = books.reckoned[row.shard, row.slice]
            book.samples += 1
            books.purged += 1
            books.told[row.view] += 1
            self._struck(row.shard, row.slice, row.view)
            self._person((row.shard, row.slice), row.subject, left=False)
            if row.view > self._plan_view:
                yield row

    def _sample(self, row: Any) -> None:
        slot, view = (row.shard, row.slice), row.deleted_view
        book, text = self.books.reckoned[slot], _ITEM.encode([row.sample_id, row.content])
        book.samples += 1
        self._all.update(f"{_LINE.encode(list(row)[:5])}, ".encode())
        subject = row.subject
        if subject is not None and self.books.purged:  # of whom persons are known by hashes
            subject = self.evidence.hashed(subject)
        self._person(slot, subject, left=view is None)
        if view is None:
            book.left += 1
            self._left[slot].add(text)
            if row.content in self._copies:
                self._counted[row.content] += 1
        if view is None or view > self._plan_view:
            book.planned += 1
            self._planned[slot].add(text)
        self._place(row, slot)
        self._mark(row, slot, view)

    def _person(self, slot: Slot, subject: str | None, left: bool) -> None:
        book = self.books.reckoned[slot]
        if subject is None:
            book.persons += 1
            book.persons_left += left
        else:
            self._people[slot].add(subject)
            if left:
                self._people_left[slot].add(subject)

    def _place(self, row: Any, slot: Slot) -> None:
        """Whether a place follows from subject or content, and the tier that owns the slice.

        Of a cluster the rows of the ledger say nothing (``likeness``): then the slice does.
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
        found = places.place(sample, shape.shards, shape.slices, shape.salt, self._tiers)
        if (found.shard, found.slice) != slot:
            self.books.misplaced.append(sample.id)

    def _mark(self, row: Any, slot: Slot, view: int | None) -> None:
        """Whether mark and receipts agree about a sample."""
        books = self.books
        if view is not None:
            books.reckoned[slot].marked[view] += 1
            self._struck(*slot, view)
        if not self._receipts and view is None:
            return
        name = self.evidence.keyed(row.sample_id)
        if view is None and name in self._receipts:
            books.restored.append((name, slot))
            self._struck(*slot, self._receipts[name])  # it is deleted, whatever its mark says
        elif view is not None and self._receipts.get(name) != view:
            books.unreceipted.append((slot, view))
        elif view is not None:
            books.told[view] += 1

    def _struck(self, shard: int, part: int, view: int) -> None:
        self.books.struck[view].add((shard, part))
        self.books.reckoned[shard, part].hit(view, self._plan_view)


def _counters(row: Any) -> tuple[int, int, int, int]:
    return row.samples, row.samples_left, row.persons, row.persons_left


def _entry(row: Any) -> LogEntry:
    try:
        body = json.loads(row.body)
    except ValueError:
        body = None
    return LogEntry(
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
