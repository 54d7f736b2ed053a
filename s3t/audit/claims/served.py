"""Claims E6 and E8: what would be served now, what was deleted, and that all of it can be proved.

    rows of deleted samples ──► slots hit ──► Schedule ──► prefix of each shard ──► its files
                                    ▲
                     the table of hits, by which serving processes go

Invariant: rows are believed, and the tables that deletions keep up to date are what is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from s3t.audit.claim import Findings
from s3t.audit.evidence import Case
from s3t.audit.ledger_facts import Books
from s3t.errors import DamagedNodeError
from s3t.plan.schedule import Schedule
from s3t.plan.trie import Node
from s3t.types import NodeKey, Slot

__all__ = ["judge_deleted", "judge_served"]

_RESTORE = "restore the ledger from a copy"


def judge_deleted(case: Case, found: Findings) -> None:
    """Judge E6."""
    books = case.books
    with found.part():
        _hits(books, found)
    with found.part():
        _counters(books, found)
    with found.part():
        _served(case, found)


def judge_served(case: Case, found: Findings) -> None:
    """Judge E8."""
    files, told = case.files, case.books.nodes
    living, missing, damaged = case.living, [], {}
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
    for last in _prefixes(case, keys, case.dead_slots):
        for node in () if last is None else case.plan.forest.lineage(last.key):
            if last is not None and node.key in damaged:
                found.broken(
                    f"shard {last.shard} should serve {_arrows(last)}, and cannot: node {node.key} "
                    "of it is damaged"
                )
    found.checked(f"{len(living) - len(missing) - len(damaged)} of {len(living)} living nodes read")


def _hits(books: Books, found: Findings) -> None:
    reckoned = {slot: book.last_hit for slot, book in books.reckoned.items() if book.last_hit}
    for slot in sorted({*reckoned, *books.hits}):
        there, stated = reckoned.get(slot), books.hits.get(slot)
        name = f"slice {slot[1]} of shard {slot[0]}"
        if stated is None:
            found.broken(
                f"{name} holds a sample that view {there} deleted, and no receipt names the slice, "
                f"so what has learnt it would be served: {_RESTORE}"
            )
        elif there is None:
            found.broken(f"a receipt names {name}, which holds no deleted sample: {_RESTORE}")
        elif there != stated:
            found.broken(
                f"{name} was hit last by view {there}, and the receipts say {stated}: {_RESTORE}"
            )
    found.checked(f"{len(reckoned)} slices hit, as the rows of deleted samples say")


def _counters(books: Books, found: Findings) -> None:
    once = len([*books.of_kind("samples")]) <= 1
    for slot in sorted({*books.slots, *books.reckoned}):
        book = books.slot(*slot)
        counted = [book.samples, book.left, book.persons, book.persons_left]
        stated = list(books.slots.get(slot, (0, 0, 0, 0)))
        if not once:  # who was purged and came again counts as two persons
            counted[2] = stated[2] = 0
        if counted != stated:
            found.broken(
                f"slice {slot[1]} of shard {slot[0]} counts {counted} samples and persons, "
                f"registered and left, and the table slots says {stated}: rows were removed "
                f"or changed; {_RESTORE}"
            )
    if books.wrong_copies:
        found.broken(
            f"{len(books.wrong_copies)} contents have other copies left than the table copies "
            f"says: {_RESTORE}"
        )
    left = sum(book.left for book in books.reckoned.values())
    found.checked(f"counters of {len(books.slots)} slices, {left} samples left")


def _served(case: Case, found: Findings) -> None:
    """What processes serve, which go by the log, against the rows."""
    books, files = case.books, case.files
    hits = [slot for slot, view in books.hits.items() if view > books.plan_view]
    shown, dead = [], case.dead_slots
    for shard, node in enumerate(_prefixes(case, files.there, hits)):
        if node is None:
            continue
        shown.append(f"{shard}: {_arrows(node)}")
        for part in node.prefix:
            if (shard, part) in dead:
                found.broken(
                    f"shard {shard} serves {_arrows(node)}, and view {dead[shard, part]} deleted a "
                    f"sample of slice {part}: stop what serves the run; {_RESTORE}"
                )
    found.checked(f"shards serve {', '.join(shown) or 'nothing'}")


def _prefixes(
    case: Case, there: Collection[NodeKey], hits: Iterable[Slot]
) -> tuple[Node | None, ...]:
    """What each shard serves, of nodes that are there, with some slots hit."""
    files, plan = case.files, case.plan
    facts = {node.key: files.sound(node.key) for node in plan.forest if node.key in there}
    told = case.books.nodes
    scores = {
        key: told[key].score if key in told else one.meta.score
        for key, one in facts.items()
        if one is not None
    }
    return Schedule(plan.forest, plan.shards, there, scores, hits).prefixes


def _arrows(node: Node) -> str:
    return " → ".join(map(str, node.prefix))
