"""A deletion as it is asked for, and its receipt: the two values that go through every layer.

    command, HTTP body, Python ──► Deletion ──► Ledger.delete ──► Receipt ──► log entry, answers

Invariant: what is logged, printed or sent names samples by keyed hashes alone. Ids of samples stand
in a receipt only in the memory of the process that deleted them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from s3t.errors import InputError
from s3t.ledger.log.chain import LogEntry
from s3t.types import NodeKey, SampleId, Slot

__all__ = ["Deletion", "PrefixChange", "Receipt"]


@dataclass(frozen=True, slots=True, init=False)
class Deletion:
    """What is to be deleted.

    Attributes:
        sample_ids: ids of samples, sorted, each once.
        subjects: persons, each standing for all their samples; sorted, each once.
        request_id: makes the deletion idempotent; None for a new one.
        dry_run: compute everything, commit nothing.
    """

    sample_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    request_id: str | None
    dry_run: bool

    def __init__(
        self,
        sample_ids: Iterable[str] = (),
        subjects: Iterable[str] = (),
        request_id: str | None = None,
        dry_run: bool = False,
    ) -> None:
        """Sort and check the names.

        Raises:
            InputError: a name is not a string, or not text that a run can hold.
        """
        if request_id is not None:
            (request_id,) = _distinct([request_id], "request_id")
        put = object.__setattr__
        put(self, "sample_ids", _distinct(sample_ids, "sample_ids"))
        put(self, "subjects", _distinct(subjects, "subjects"))
        put(self, "request_id", request_id)
        put(self, "dry_run", dry_run)

    @property
    def count(self) -> int:
        """How many ids and subjects it names."""
        return len(self.sample_ids) + len(self.subjects)

    @property
    def text(self) -> str:
        """The names as one text: equal for deletions that name the same."""
        return json.dumps([self.sample_ids, self.subjects])

    def told(self) -> dict[str, Any]:
        """What its receipt takes over from it; a request id of None gets a new one."""
        return {"request_id": self.request_id or uuid.uuid4().hex, "dry_run": self.dry_run}

    def to_row(self) -> dict[str, Any]:
        """The columns of the table ``jobs`` that keep it while it waits to be done."""
        return {
            "request_id": self.request_id,
            "sample_ids": json.dumps(self.sample_ids),
            "subjects": json.dumps(self.subjects),
        }

    @classmethod
    def of_row(cls, row: Any) -> Deletion:
        """From a row with the columns of ``to_row``.

        Raises:
            InputError, TypeError, ValueError: a column is damaged.
        """
        names = json.loads(row.sample_ids), json.loads(row.subjects)
        if not all(isinstance(listed, list) for listed in names):
            raise ValueError("a column of names holds no list")
        return cls(*names, row.request_id)


@dataclass(frozen=True, slots=True)
class PrefixChange:
    """A shard's prefix (slice numbers in order) before and after a deletion."""

    shard: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a deletion did, or with ``dry_run`` would do.

    Attributes:
        request_id: name of the request; the same one again is the same deletion.
        view: version of the view from which on no answer has seen the samples.
        generation: number of the plan that was in force.
        hashes, hashes_before: keyed hashes of the ids that it deleted, and of those that were
            deleted before, as the log names them; sorted.
        copies_elsewhere: samples left, of other subjects, with the content of a deleted one.
        look_alikes: samples left whose id, or person, looks like one that was named: the same but
            for case, blanks, or how letters are written in Unicode. They are not deleted.
        slots: (shard, slice) that it deleted a sample of, sorted.
        nodes_dead: keys of the nodes that it switched off, sorted.
        prefixes: every shard's prefix before and after.
        expected_deletions_left: random requests until exhaustion, expected.
        deleted: ids that it deleted, sorted. Empty if the receipt was read from the log, which has
            the hashes alone, and for samples of a subject that were purged since.
        already_deleted: ids asked for that were deleted before; as ``deleted``.
        dry_run: whether nothing was committed.
        replayed: the request id was known, so nothing was done again.
        seconds: time it took, the wait for running predictions included.
        accepted_at: when it was durable, ISO 8601 in UTC; None for a dry run.
        effective_at: since when no answer of any process can come from what it switched off; None
            if that was not seen in time. Then replicas, or on a file the next process that looks,
            write it down, and the stored receipt tells.
        untold: why the store at ``store.url`` was not told yet, so that the deletion counts as
            effective only later; None if it was, or if there is none.
        entry: the entry of the log that holds the receipt, if it was read from there.
        purged_at: when the samples were purged, ISO 8601 in UTC; told by the log alone.
    """

    request_id: str
    view: int
    generation: int
    hashes: tuple[str, ...]
    hashes_before: tuple[str, ...]
    copies_elsewhere: int
    look_alikes: int
    slots: tuple[Slot, ...]
    nodes_dead: tuple[NodeKey, ...] = ()
    prefixes: tuple[PrefixChange, ...] = ()
    expected_deletions_left: float = 0.0
    deleted: tuple[SampleId, ...] = ()
    already_deleted: tuple[SampleId, ...] = ()
    dry_run: bool = False
    replayed: bool = False
    seconds: float = 0.0
    accepted_at: str | None = None
    effective_at: str | None = None
    untold: str | None = None
    entry: LogEntry | None = None
    purged_at: str | None = None

    def __repr__(self) -> str:
        """In short, without ids; the attributes have the rest."""
        state = "a dry run" if self.dry_run else "replayed" if self.replayed else "new"
        return (
            f"Receipt({self.request_id!r}, {state}: {len(self.hashes)} samples deleted, "
            f"{len(self.nodes_dead)} nodes switched off, view {self.view}, effective "
            f"{self.effective_at or 'not yet'})"
        )

    def to_row(self) -> dict[str, Any]:
        """The columns of the table ``requests`` that tell of it."""
        return {"request_id": self.request_id, "view": self.view}

    def to_log(self, at: str) -> dict[str, Any]:
        """What the log holds of it, as JSON values.

        Args:
            at: the moment of the entry, ISO 8601 in UTC.
        """
        return {
            "request_id": self.request_id,
            "view": self.view,
            "generation": self.generation,
            "created_at": at,
            "deleted": list(self.hashes),
            "already_deleted": list(self.hashes_before),
            "copies_elsewhere": self.copies_elsewhere,
            "look_alikes": self.look_alikes,
            "slots": [list(slot) for slot in self.slots],
            "schedule": {
                "nodes_dead": list(self.nodes_dead),
                "prefixes": [
                    [one.shard, list(one.before), list(one.after)] for one in self.prefixes
                ],
                "expected_deletions_left": self.expected_deletions_left,
            },
        }

    @classmethod
    def of_entry(cls, entry: LogEntry, effective_at: str | None = None) -> Receipt:
        """The receipt that an entry of the log holds.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: the entry is not one of a deletion.
        """
        body: Mapping[str, Any] = entry.body
        schedule = body["schedule"]
        return cls(
            request_id=body["request_id"],
            view=body["view"],
            generation=body["generation"],
            hashes=tuple(body["deleted"]),
            hashes_before=tuple(body["already_deleted"]),
            copies_elsewhere=body["copies_elsewhere"],
            look_alikes=body["look_alikes"],
            slots=tuple((shard, part) for shard, part in body["slots"]),
            nodes_dead=tuple(map(NodeKey, schedule["nodes_dead"])),
            prefixes=tuple(
                PrefixChange(shard, tuple(old), tuple(new))
                for shard, old, new in schedule["prefixes"]
            ),
            expected_deletions_left=schedule["expected_deletions_left"],
            accepted_at=entry.at,
            effective_at=effective_at,
            entry=entry,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values. One read from the log is told as it stands there, with what chains and
        signs the entry; one just made, by what its caller has waited for."""
        if self.entry is not None:
            return {
                **self.entry.body,
                "number": self.entry.number,
                "accepted_at": self.accepted_at,
                "effective_at": self.effective_at,
                "purged_at": self.purged_at,
                "previous": self.entry.previous,
                "digest": self.entry.digest,
                "signer": self.entry.signer,
                "signature": self.entry.signature,
            }
        values = asdict(self)
        for name in ("generation", "slots", "replayed", "entry", "purged_at"):
            del values[name]
        values["deleted"] = values.pop("hashes")
        values["already_deleted"] = values.pop("hashes_before")
        return values


def _distinct(values: Iterable[str], name: str) -> tuple[str, ...]:
    # A lone string is iterable too: its letters must not be taken for ids.
    listed = None if isinstance(values, str | bytes) else list(values)
    if listed is None or not all(isinstance(value, str) for value in listed):
        raise InputError(f"{name} {values!r:.80}: expected a list of strings")
    for value in listed:
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(f"{name}: {value!r} is not text in UTF-8 without NUL: no run holds it")
    return tuple(sorted(set(listed)))
