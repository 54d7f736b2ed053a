"""Claim ``receipts``: each receipt states a deletion that is in force, and its true effect.

    receipt n ◄──► row of requests            names, number, view, time
        │     ◄──► rows of deleted samples    as many, with these keyed hashes; in these slots
        └─────◄──► replay over the plan       what died, what serves before and after

Only receipts of the plan in force are replayed, since older plans are not kept. A receipt names the
nodes that existed and died. Before the first training of the plan has ended, a node that a receipt
leaves out may not have existed yet, so leaving nodes out is judged only afterwards.

Invariant: a replay starts from rows and plan, and takes nothing from the hits in the log.
"""

from __future__ import annotations

from collections.abc import Iterator

from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import RESTORE, Findings
from s3t.audit.ledger_facts import LedgerFacts, LogRow
from s3t.plan import Plan, expected_deletions
from s3t.plan.schedule import Schedule
from s3t.types import Slot

__all__ = ["judge_receipts"]


def judge_receipts(audited: AuditedRun, found: Findings) -> None:
    """Judge the claim ``receipts``."""
    ledger = audited.ledger
    entries = list(ledger.of_kind("deletion"))
    with found.part():
        _requests(ledger, entries, found)
    with found.part():
        _samples(ledger, entries, found)
    found.checked(
        f"{len(entries)} receipts of {sum(len(e.body['deleted']) for e in entries)} samples"
    )
    with found.part():
        plan, row = audited.plan, ledger.plan
        if row is not None:
            replayed = _Replay(ledger, plan, row.view, row.generation).judge(found)
            older = len(entries) - replayed
            found.checked(
                f"{replayed} replayed"
                + (f", {older} of older plans, which are not kept" if older else "")
            )


def _requests(ledger: LedgerFacts, entries: list[LogRow], found: Findings) -> None:
    by_number = {row.number: row for row in ledger.requests.values()}
    effective = {one.body["deletion"]: one.number for one in ledger.of_kind("effective")}
    wrong = []
    for entry in entries:
        body, row = entry.body, by_number.pop(entry.number, None)
        name = f"request {body['request_id']!r} (entry {entry.number} of the log)"
        if row is None:
            wrong.append(f"{name} is not in the table requests: {RESTORE}")
        elif (row.request_id, row.view, row.created_at) != (
            body["request_id"],
            body["view"],
            entry.at,
        ):
            wrong.append(f"{name} is another one in the table requests: {RESTORE}")
        elif row.effective != effective.get(entry.number):
            wrong.append(
                f"{name} took effect as entry {row.effective} of the log tells by the table "
                f"requests, and the log tells it in entry {effective.get(entry.number)}: {RESTORE}"
            )
        elif body["created_at"] != entry.at:
            wrong.append(f"{name} says another moment than the log: {RESTORE}")
        elif bool(row.persons) != bool(body["deleted"]):
            wrong.append(f"{name} deleted {len(body['deleted'])} samples of {row.persons} persons")
    for number, row in sorted(by_number.items()):
        wrong.append(
            f"request {row.request_id!r} has no receipt, entry {number} of the log is none: "
            f"{RESTORE}"
        )
    found.each(wrong, "requests")


def _samples(ledger: LedgerFacts, entries: list[LogRow], found: Findings) -> None:
    """Compare receipts with the rows of deleted samples."""
    number_of = {name: e.number for e in entries for name in e.body["deleted"]}
    found.each(
        [
            f"a sample of shard {shard} slice {part} stands as not deleted, and entry "
            f"{number_of[name]} of the log deletes it (keyed hash {name}): {RESTORE}, and serve "
            "nothing of it until then"
            for name, (shard, part) in ledger.restored
        ],
        "samples",
    )
    found.each(
        [
            f"a sample of shard {shard} slice {part} is marked as deleted at view {view}, and no "
            f"receipt of that view names it: {RESTORE}"
            for (shard, part), view in ledger.unreceipted
        ],
        "samples",
    )
    wrong = []
    for entry in entries:
        told, names = ledger.confirmed[entry.body["view"]], entry.body["deleted"]
        back = sum(name in names for name, _ in ledger.restored)
        if names and told + back != len(names):
            wrong.append(
                f"entry {entry.number} of the log deleted {len(names)} samples, and the ledger "
                f"has {told} deleted at view {entry.body['view']}: rows were removed or put in; "
                f"{RESTORE}"
            )
    views = {entry.body["view"] for entry in entries if entry.body["deleted"]}
    wrong += [
        f"{count} samples are deleted at view {view}, of which the log has no receipt: {RESTORE}"
        for view, count in sorted(ledger.confirmed.items())
        if view not in views
    ]
    found.each(wrong, "receipts")


class _Replay:
    """Repeats the deletions since a plan was put in force, over that plan."""

    def __init__(self, ledger: LedgerFacts, plan: Plan, view: int, generation: int) -> None:
        self.ledger, self.plan, self._generation = ledger, plan, generation
        keys = {node.key for node in plan.forest}
        self._schedule = Schedule(plan.forest, plan.shards, keys, {})
        self._complete = False
        """Whether a training of this plan has ended, so all living nodes existed."""
        self._applied = view

    def judge(self, found: Findings) -> int:
        """Judge the receipts that were made while the plan was in force; returns their number."""
        wrong: list[str] = []
        count, before, newest = 0, "", 0
        for entry in self.ledger.log:
            if entry.kind == "plan":
                newest = entry.body["generation"]
            elif entry.kind == "nodes":  # of a training, or of the purge just before it
                self._complete |= newest == self._generation and before != "purge"
            elif entry.kind == "deletion" and entry.body.get("generation") == self._generation:
                count += 1
                name = f"receipt {entry.body['request_id']!r} (entry {entry.number} of the log)"
                wrong += [f"{name} {problem}: {RESTORE}" for problem in self._receipt(entry)]
            before = entry.kind
        found.each(wrong, "problems of receipts")
        return count

    def _receipt(self, entry: LogRow) -> Iterator[str]:
        body, schedule = entry.body, self._schedule
        self._catch_up(body["view"] - bool(body["deleted"]))
        hit = self.ledger.slots_hit.get(body["view"], set()) if body["deleted"] else set()
        slots = [list(slot) for slot in sorted(hit)]
        if slots != body["slots"]:
            yield f"names slots {body['slots']}, and its samples lie in {slots}"
        outcome = schedule.outcome(hit)
        died, told = set(outcome.died), set(body["schedule"]["nodes_dead"])
        for key in sorted(told - died):
            yield f"says that node {key} died, which holds nothing that it deleted"
        if self._complete:
            for key in sorted(died - told):
                yield f"leaves out node {key}, which holds a sample that it deleted"
        before = {shard: schedule.alive(shard) for shard in range(self.plan.shards)}
        schedule.apply(outcome)
        self._applied = body["view"]
        left = expected_deletions(self.plan.shards * self.plan.slices, schedule.first_slices_left)
        if self._complete and body["schedule"]["expected_deletions_left"] != left:
            yield f"says that {body['schedule']['expected_deletions_left']} deletions are left"
        listed = [shard for shard, _, _ in body["schedule"]["prefixes"]]
        if listed != list(range(self.plan.shards)):
            yield f"tells prefixes of shards {listed}"
            return
        for shard, old, new in body["schedule"]["prefixes"]:
            for word, prefix, alive in (
                ("before", old, before[shard]),
                ("after", new, schedule.alive(shard)),
            ):
                yield from self._prefix(shard, word, tuple(prefix), alive)

    def _prefix(
        self, shard: int, word: str, prefix: tuple[int, ...], alive: frozenset[str]
    ) -> Iterator[str]:
        """Problems of a prefix that a receipt states: it could serve and, once training has ended,
        no longer prefix could."""
        nodes = [node for node in self.plan.forest.of_shard(shard) if node.key in alive]
        longest = max((node.stage for node in nodes), default=0)
        there = not prefix or any(node.prefix == prefix for node in nodes)
        if not there:
            yield f"says that shard {shard} served {list(prefix)} {word}, which could not serve"
        elif self._complete and len(prefix) < longest:
            yield (
                f"says that shard {shard} served {list(prefix)} {word}, where {longest} slices "
                "could serve"
            )

    def _catch_up(self, view: int) -> None:
        """Apply the hits of all views up to this one, also of receipts of an older plan."""
        slots: set[Slot] = set()
        for at in range(self._applied + 1, view + 1):
            slots |= self.ledger.slots_hit.get(at, set())
        self._schedule.apply(self._schedule.outcome(slots))
        self._applied = max(self._applied, view)
