"""Kinds of damage to the ledger: its tables, its log, and receipts."""

from __future__ import annotations

import shutil
from typing import Any

from tests.harness.damage.kind import Kind, kinds_of
from tests.harness.damage.victim import HIT, Victim

__all__ = ["KINDS"]

KINDS: list[Kind] = []
kind = kinds_of(KINDS)

_SLOT = f"slice {HIT[1]} of shard {HIT[0]}"


def _last_receipt(victim: Victim) -> int:
    return int(victim.sql("SELECT MAX(number) FROM log WHERE kind = 'deletion'")[0][0])


@kind("the row of a sample removed", "E1", "ledger", "E6")
def _(victim: Victim) -> str:
    victim.removed(
        "samples WHERE sample_id = "
        "(SELECT MIN(sample_id) FROM samples WHERE shard = 1 AND slice = 0)"
    )
    return "slice 0 of shard 1"


@kind("a sample changed", "E1", "E3")
def _(victim: Victim) -> str:
    victim.sql(
        "UPDATE samples SET content = ? WHERE sample_id = "
        "(SELECT MIN(sample_id) FROM samples WHERE shard = 1 AND slice = 0)",
        "0" * 64,
    )
    return "slice 0 of shard 1"


@kind("a sample moved to another slice", "E3", "E1")
def _(victim: Victim) -> str:
    where = "shard = 1 AND slice = 0"
    name = victim.sql(f"SELECT MIN(sample_id) FROM samples WHERE {where}")[0][0]
    victim.sql("UPDATE samples SET slice = 1 WHERE sample_id = ?", name)
    return str(name)


@kind("a deleted sample marked as not deleted", "receipts", "E6")
def _(victim: Victim) -> str:
    name = victim.delete("third")
    victim.sql("UPDATE samples SET deleted_view = NULL WHERE sample_id = ?", name)
    return "stands as not deleted"


@kind("a slot struck from its receipt, the log made again", "E6", "receipts")
def _(victim: Victim) -> str:
    for number, kind_of in victim.sql("SELECT number, kind FROM log ORDER BY number"):
        if kind_of == "deletion":
            victim.rewrite(number, lambda body: body["slots"].clear())
    return _SLOT


@kind("the row of a purged sample removed", "receipts", "ledger", "E6")
def _(victim: Victim) -> str:
    victim.removed("forgotten WHERE view = 1")
    return "deleted at view 1"


@kind("the row of a request removed", "receipts")
def _(victim: Victim) -> str:
    victim.removed("requests WHERE request_id = 'first'")
    return "'first'"


@kind("the row of a node removed", "E2", "ledger")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.removed("nodes WHERE key = ?", key)
    return key


@kind("the key of the hashes changed", "ledger")
def _(victim: Victim) -> str:
    victim.sql("UPDATE run SET value = ? WHERE key = 'secret'", "0" * 64)
    return "commits to"


@kind("the hash of a purged sample changed", "ledger")
def _(victim: Victim) -> str:
    victim.sql("UPDATE forgotten SET sample = ? WHERE view = 1", "0" * 64)
    return "hashes of purged samples"


@kind("an index that lacks a row", "ledger")
def _(victim: Victim) -> str:
    victim.stale("requests_number", "requests", "view = 1")
    return "requests_number"


@kind("a counter changed", "E6")
def _(victim: Victim) -> str:
    victim.sql("UPDATE slots SET samples_left = samples_left + 1 WHERE shard = 1 AND slice = 1")
    return "slice 1 of shard 1"


@kind("the view counter turned back", "ledger")
def _(victim: Victim) -> str:
    victim.sql("UPDATE run SET value = '1' WHERE key = 'view'")
    return "view counter"


@kind("an entry in the middle of the log removed", "ledger")
def _(victim: Victim) -> str:
    number = _last_receipt(victim) - 1
    victim.removed("log WHERE number = ?", number)
    return f"entry {number}"


@kind("the last deletion removed from the end of the log", "receipts")
def _(victim: Victim) -> str:
    number = _last_receipt(victim)
    victim.sql("DELETE FROM log WHERE number >= ?", number)
    return "'second'"


@kind("a receipt edited", "ledger")
def _(victim: Victim) -> str:
    number = _last_receipt(victim)
    old = "SELECT body FROM log WHERE number = ?"
    text = victim.sql(old, number)[0][0].replace('"copies_elsewhere":0', '"copies_elsewhere":5')
    victim.sql("UPDATE log SET body = ? WHERE number = ?", text, number)
    return f"entry {number}"


@kind("a receipt edited, the chain made again: which nodes died", "receipts")
def _(victim: Victim) -> str:
    number = victim.sql("SELECT number FROM requests WHERE request_id = 'first'")[0][0]

    def change(body: dict[str, Any]) -> None:
        body["schedule"]["nodes_dead"].pop()

    victim.rewrite(number, change)
    return f"entry {number} of the log) leaves out node"


@kind("a receipt edited, the chain made again: what no table tells", "ledger",
      asks=lambda victim: {"public_key": victim.public_key})  # fmt: skip
def _(victim: Victim) -> str:
    number = _last_receipt(victim)
    victim.rewrite(number, lambda body: body.update(copies_elsewhere=5))
    return f"entry {number}"


@kind("the same, with a receipt at hand that was kept", "ledger",
      asks=lambda victim: {"receipts": [victim.receipt]})  # fmt: skip
def _(victim: Victim) -> str:
    number = _last_receipt(victim)
    victim.rewrite(number, lambda body: body.update(copies_elsewhere=5))
    return "receipt.json"


@kind("all signatures removed", "ledger",
      asks=lambda victim: {"public_key": victim.public_key})  # fmt: skip
def _(victim: Victim) -> str:
    victim.sql("UPDATE log SET signer = NULL, signature = NULL")
    return "no entry of the log is signed"


def _older_ledger(victim: Victim) -> int:
    """The ledger of a moment ago, with the nodes of its time; the entry that it lacks."""
    shutil.copy(victim.aside / "ledger.db", victim.run.ledger_path)
    for path in victim.dead:
        shutil.copy(path, victim.run.store.root)
    number = _last_receipt(victim)
    victim.sql("DELETE FROM log WHERE number >= ?", number)
    victim.sql("DELETE FROM requests WHERE request_id = 'second'")
    victim.sql("UPDATE samples SET deleted_view = NULL WHERE deleted_view = 2")
    victim.sql("UPDATE slots SET samples_left = samples_left + 1, persons_left = persons_left + 1 "
               "WHERE shard = ? AND slice = ?", *HIT)  # fmt: skip
    victim.sql("UPDATE run SET value = '1' WHERE key = 'view'")
    return number


@kind("an old ledger put back, with the nodes of its time", "ledger")
def _(victim: Victim) -> str:
    _older_ledger(victim)
    return "was acknowledged and is not there"


@kind("the same, with the last entry told beside it removed", "ledger",
      asks=lambda victim: {"receipts": [victim.receipt]})  # fmt: skip
def _(victim: Victim) -> str:
    number = _older_ledger(victim)
    (victim.root / "ledger.db-lock").unlink()
    return f"entry {number}, which the log no longer has"


@kind("the rows of deleted samples put back after the purge", "E7", "receipts")
def _(victim: Victim) -> str:
    victim.sql("INSERT INTO samples VALUES ('put-back', NULL, ?, ?, ?, 1)", "0" * 64, *HIT)
    return "after the purge of view 2"


@kind("the ledger made unreadable", "ledger", "receipts", "E1", "E6", "E8")
def _(victim: Victim) -> str:
    victim.run.ledger_path.write_bytes(b"no database" * 99)
    return "ledger.db"
