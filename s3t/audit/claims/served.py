"""Claims E6 and E8: nothing deleted is served, and all that would be served is proved.

    rows of deleted samples ──► slots hit ──► Schedule ──► prefix of each shard ──► its files
                                    ▲
                     the hits in the log, by which serving processes decide

Invariant: the rows of samples are believed; the hits and counters that deletions keep up to date
are judged by them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import RESTORE, Findings
from s3t.audit.ledger_facts import LedgerFacts
from s3t.errors import DamagedNodeError
from s3t.ledger.served import HISTORY, RECORDS, history_of, record_of
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.types import NodeKey, Slot

__all__ = ["judge_deleted", "judge_served"]


def judge_deleted(audited: AuditedRun, found: Findings) -> None:
    """Judge E6: no shard serves a node that has seen a deleted sample."""
    found.parts(_hits, _counters, of=audited.ledger)
    found.parts(_served, _recorded, of=audited)


def judge_served(audited: AuditedRun, found: Findings) -> None:
    """Judge E8: every living node exists and proves its key."""
    files, told = audited.files, audited.ledger.nodes
    living, missing, damaged = audited.living, [], {}
    for node in living:
        try:
            files.facts(node.key)
        except DamagedNodeError as error:
            if node.key in files.there:
                damaged[node.key] = str(error)
            elif node.key in told:
                missing.append(
                    f"node {node.key} was trained and is missing ({files.where(node.key)}): "
                    "restore it, or run s3t train CONFIG again"
                )
            else:
                found.pending(
                    f"node {node.key} is not trained yet: run s3t train CONFIG again, to its end"
                )
    found.each(missing, "missing nodes")
    found.each(list(damaged.values()), "damaged nodes")
    keys = {node.key for node in living}
    for last in _prefixes(audited, keys, audited.dead_slots):
        for node in () if last is None else audited.plan.forest.lineage(last.key):
            if last is not None and node.key in damaged:
                found.broken(
                    f"shard {last.shard} should serve {_arrows(last)}, and cannot: node {node.key} "
                    "of it is damaged"
                )
    found.checked(f"{len(living) - len(missing) - len(damaged)} of {len(living)} living nodes read")


def _hits(ledger: LedgerFacts, found: Findings) -> None:
    recounted = {
        slot: counts.last_hit for slot, counts in ledger.recounted.items() if counts.last_hit
    }
    for slot in sorted({*recounted, *ledger.hits}):
        there, stated = recounted.get(slot), ledger.hits.get(slot)
        name = f"slice {slot[1]} of shard {slot[0]}"
        if stated is None:
            found.broken(
                f"{name} holds a sample that view {there} deleted, and no receipt names the slice, "
                f"so what has learnt it would be served: {RESTORE}"
            )
        elif there is None:
            found.broken(f"a receipt names {name}, which holds no deleted sample: {RESTORE}")
        elif there != stated:
            found.broken(
                f"{name} was hit last by view {there}, and the receipts say {stated}: {RESTORE}"
            )
    found.checked(f"{len(recounted)} slices hit, as the rows of deleted samples say")


def _counters(ledger: LedgerFacts, found: Findings) -> None:
    once = len([*ledger.of_kind("samples")]) <= 1
    for slot in sorted({*ledger.slots, *ledger.recounted}):
        counts = ledger.slot(*slot)
        counted = [counts.samples, counts.left, counts.persons, counts.persons_left]
        stated = list(ledger.slots.get(slot, (0, 0, 0, 0)))
        if not once:  # a person who was purged and added again counts as two
            counted[2] = stated[2] = 0
        if counted != stated:
            found.broken(
                f"slice {slot[1]} of shard {slot[0]} counts {counted} samples and persons, "
                f"registered and left, and the table slots says {stated}: rows were removed "
                f"or changed; {RESTORE}"
            )
    if ledger.wrong_copies:
        found.broken(
            f"{len(ledger.wrong_copies)} contents have other copies left than the table copies "
            f"says: {RESTORE}"
        )
    left = sum(counts.left for counts in ledger.recounted.values())
    found.checked(f"counters of {len(ledger.slots)} slices, {left} samples left")


def _served(audited: AuditedRun, found: Findings) -> None:
    """Compare what processes serve, by the hits in the log, with the rows of deleted samples."""
    ledger, files = audited.ledger, audited.files
    hits = [slot for slot, view in ledger.hits.items() if view > ledger.plan_view]
    shown, dead = [], audited.dead_slots
    for shard, node in enumerate(_prefixes(audited, files.there, hits)):
        if node is None:
            continue
        shown.append(f"{shard}: {_arrows(node)}")
        for part in node.prefix:
            if (shard, part) in dead:
                found.broken(
                    f"shard {shard} serves {_arrows(node)}, and view {dead[shard, part]} deleted a "
                    f"sample of slice {part}: stop what serves the run; {RESTORE}"
                )
    found.checked(f"shards serve {', '.join(shown) or 'nothing'}")


def _recorded(audited: AuditedRun, found: Findings) -> None:
    """Judge that what is recorded of what serves came of living nodes alone."""
    living, count = {node.key for node in audited.living}, 0
    for key in RECORDS:
        text = audited.ledger.values.get(key)
        if text is None:
            continue
        record, count = record_of(text), count + 1
        nodes = None if record is None else record["of"].get("nodes")
        if not isinstance(nodes, list) or not living.issuperset(map(str, nodes)):
            found.broken(
                f"the {key} that the ledger holds came of nodes that are dead, or of which it "
                "does not tell: a deletion takes them away, so the table run was changed"
            )
    last = max((int(one.body["view"]) for one in audited.ledger.of_kind("purge")), default=0)
    if any(one["view"] < last for one in history_of(audited.ledger.values.get(HISTORY))):
        found.broken(
            f"the ledger holds an evaluation of a view before {last}, taken away by a purge: "
            "the table run was changed"
        )
    if count:
        found.checked(f"{count} records of what serves came of living nodes")


def _prefixes(
    audited: AuditedRun, there: Collection[NodeKey], hits: Iterable[Slot]
) -> tuple[Node | None, ...]:
    """The node that each shard serves, [m], of the nodes that exist, with these slots hit."""
    files, plan = audited.files, audited.plan
    facts = {node.key: files.sound(node.key) for node in plan.forest if node.key in there}
    told = audited.ledger.nodes
    scores = {
        key: told[key].score if key in told else one.meta.score
        for key, one in facts.items()
        if one is not None
    }
    return Schedule(plan.forest, plan.shards, there, scores, hits).prefixes


def _arrows(node: Node) -> str:
    return " → ".join(map(str, node.prefix))
