"""Claim ``ledger``: the log is whole, and the tables are what it tells.

    genesis ◄── entry 1 ◄── entry 2 ◄── … ◄── entry n      numbers, digests, signatures
                                        ▲
                    receipts that the caller kept

A chain alone cannot show that its last entries were cut off, or that all of it was written again
together with the tables. A later receipt, or the public key of the signer, shows it.

Invariant: the digest of each entry is computed from its text in the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from s3t.audit.audited_run import AuditedRun, short
from s3t.audit.findings import RESTORE, Findings
from s3t.audit.ledger_facts import LedgerFacts, LogRow
from s3t.ledger import GENESIS, Verifier, link
from s3t.ledger.log.chain import canonical

__all__ = ["judge_ledger"]

_FINISH = "a training was not finished; run s3t train CONFIG or s3t repair RUN again"

_ADDED = {
    "number",
    "accepted_at",
    "effective_at",
    "purged_at",
    "previous",
    "digest",
    "signer",
    "signature",
}
"""What ``Ledger.receipt`` adds to the body of an entry."""


def judge_ledger(
    audited: AuditedRun,
    found: Findings,
    verifiers: Sequence[Verifier],
    receipts: Mapping[str, Any],
) -> None:
    """Judge the claim ``ledger``.

    Args:
        audited: the run.
        found: where to report.
        verifiers: public keys that entries must be signed with, the oldest first.
        receipts: receipts that the caller kept, by the path of each.
    """
    ledger = audited.ledger
    with found.part():
        _chain(ledger.log, found)
    with found.part():
        _acknowledged(ledger, found)
    with found.part():
        _signatures(ledger.log, verifiers, found)
    for name, receipt in receipts.items():
        with found.part():
            _kept(ledger.log, name, receipt, found)
    for judge in (_database, _commitments, _samples, _nodes, _view):
        with found.part():
            judge(ledger, found)
    with found.part():
        found.checked(f"{len(ledger.plans)} plans")
        if ledger.plan is None:
            found.pending("no plan is in force: run s3t train CONFIG again")


def _chain(log: Sequence[LogRow], found: Findings) -> None:
    previous, number = str(GENESIS), 0
    for entry in log:
        name = f"entry {entry.number} of the log ({entry.kind})"
        if entry.number != number + 1:
            gap = f"{number + 1} to {entry.number - 1}" if entry.number > number + 2 else number + 1
            found.broken(f"entry {gap} of the log is missing: {RESTORE}")
        elif entry.previous != previous:
            found.broken(f"{name} does not follow from the one before it: {RESTORE}")
        computed = link(entry.number, entry.kind, entry.at, entry.text, entry.previous)
        if computed != entry.digest:
            found.broken(f"{name} was changed after it was written: {RESTORE}")
        previous, number = entry.digest, entry.number
    if not log:
        found.broken(f"the log is empty: {RESTORE}")
    head = f", the last {short(log[-1].digest)}" if log else ""
    found.checked(f"{len(log)} entries, each with the digest of the one before{head}")


def _acknowledged(ledger: LedgerFacts, found: Findings) -> None:
    """Judge that the log holds the last acknowledged entry: the database may have lost it."""
    if ledger.acknowledged is None:
        return
    number, digest = ledger.acknowledged
    if not any((entry.number, entry.digest) == (number, digest) for entry in ledger.log):
        found.broken(
            f"entry {number} of the log was acknowledged and is not there, so deletions were lost: "
            f"{RESTORE}"
        )


def _signatures(log: Sequence[LogRow], verifiers: Sequence[Verifier], found: Findings) -> None:
    """Signing keys may follow each other, but none may sign again: an old one may be stolen."""
    signed = [entry for entry in log if entry.signature is not None]
    if not verifiers:
        if signed:
            found.checked(f"{len(signed)} signatures not checked, which takes --public-key")
        return
    if not signed:
        found.broken(
            "no entry of the log is signed: it was written again, or receipts.signing_key was "
            "never set; compare it with a receipt that was kept (--receipt)"
        )
        return
    places = {verifier.fingerprint: place for place, verifier in enumerate(verifiers)}
    wrong, latest = [], 0
    for entry in log[log.index(signed[0]) :]:
        name = f"entry {entry.number} of the log ({entry.kind})"
        place = places.get(entry.signer or "")
        if entry.signature is None:
            wrong.append(f"{name} is not signed, though earlier ones are: {RESTORE}")
        elif place is None:
            wrong.append(f"{name} is signed by another key, {short(entry.signer or '')}")
        elif place < latest:
            wrong.append(f"{name} is signed by a key that had been replaced by then: {RESTORE}")
        elif not verifiers[place].holds(entry.digest, entry.signature):
            wrong.append(f"{name} has a signature that is not of its digest: {RESTORE}")
        else:
            latest = place
    found.each(wrong, "entries")
    named = ", then ".join(short(verifier.fingerprint) for verifier in verifiers)
    found.checked(f"{len(signed)} signatures by {named}")


def _kept(log: Sequence[LogRow], name: str, receipt: Any, found: Findings) -> None:
    """Judge whether the log holds a receipt that the caller kept, unchanged."""
    body = {key: value for key, value in receipt.items() if key not in _ADDED}
    number, previous, digest = receipt["number"], receipt["previous"], receipt["digest"]
    own = link(number, "deletion", receipt["accepted_at"], canonical(body), previous)
    if own != digest:
        found.broken(f"receipt {name} is not what was given out, its digest differs: give another")
        return
    there = next((entry for entry in log if entry.number == number), None)
    if there is None:
        found.broken(
            f"receipt {name} is entry {number}, which the log no longer has: it was cut off; "
            f"{RESTORE}"
        )
    elif there.digest != digest:
        found.broken(
            f"receipt {name} is entry {number}, in whose place the log has another: it was "
            f"written again; {RESTORE}"
        )
    else:
        wrong = _later(log, receipt, there)
        found.each([f"receipt {name} {problem}: give another" for problem in wrong], "problems")
        found.checked(f"receipt {name} is in it")


def _later(log: Sequence[LogRow], receipt: Any, there: LogRow) -> list[str]:
    """What a kept receipt says of its signature and of later entries that the log contradicts."""
    view, number = there.body["view"], there.number
    effective = (one.at for one in log if one.kind == "effective" and
                 one.body["deletion"] == number)  # fmt: skip
    purged = (one.at for one in log if one.kind == "purge" and one.number > number and
              one.body["view"] >= view)  # fmt: skip
    true = {
        "effective_at": next(effective, None),
        "purged_at": next(purged, None),
        "signer": there.signer,
        "signature": there.signature,
    }
    return [
        f"says {key} {receipt[key]}, and the log {'has no such entry' if own is None else own}"
        for key, own in true.items()
        # a receipt says nothing of what happened after it was printed
        if receipt.get(key) is not None and receipt[key] != own
    ]


def _database(ledger: LedgerFacts, found: Findings) -> None:
    """Judge what the database finds wrong with its own pages and indexes."""
    found.each([f"{ledger.database} finds: {one}: {RESTORE}" for one in ledger.faults], "faults")
    found.checked(ledger.database)


def _commitments(ledger: LedgerFacts, found: Findings) -> None:
    """Judge whether the log commits to the secrets, and to the hashes of purged samples."""
    first = next(ledger.of_kind("samples"), None)
    told = {} if first is None else first.body.get("secrets", {})
    wrong = sorted(name for name, one in ledger.commitments.items() if told.get(name) != one)
    if first is not None and wrong:
        found.broken(
            f"the key of the hashes of {' and '.join(wrong)} is not the one that entry "
            f"{first.number} of the log commits to, so a deleted sample may be taken for a new "
            f"one: {RESTORE}"
        )
    tells = [entry for entry in ledger.log if "forgotten" in entry.body]
    empty = sha256().hexdigest()
    if tells and (ledger.purged_digest or empty) != tells[-1].body["forgotten"]:
        found.broken(
            f"the hashes of purged samples are not those that entry {tells[-1].number} of the log "
            f"commits to: {RESTORE}"
        )
    found.checked("secrets and purged hashes as the log commits to them")


def _samples(ledger: LedgerFacts, found: Findings) -> None:
    """Judge whether the ledger holds the samples that were registered, by number and digest."""
    told = sum(int(entry.body["registered"]) for entry in ledger.of_kind("samples"))
    there = sum(slot.samples for slot in ledger.recounted.values())
    if told != there:
        found.broken(
            f"the log tells of {told} samples, and the ledger has {there} with those purged: rows "
            f"were removed or put in; {RESTORE}"
        )
    last = next((entry for entry in reversed(ledger.log) if "all" in entry.body), None)
    if last is not None and ledger.samples_digest != last.body["all"]:
        found.broken(
            f"the rows of samples are not those that entry {last.number} of the log commits to: "
            f"{RESTORE}"
        )
    found.checked(f"{there} samples as registered, {ledger.purged} of them purged")


def _nodes(ledger: LedgerFacts, found: Findings) -> None:
    """The digests of nodes that trainers told, and the one digest over them in the log."""
    count, sealed = len(ledger.nodes), ledger.sealed
    if ledger.nodes_sealed or not (count or sealed):
        found.checked(f"{count} nodes as announced")
    elif sealed is None:
        found.pending(f"{count} nodes were announced, and none entered into the log: {_FINISH}")
    else:
        told = f"entry {sealed.number} of the log tells of {sealed.body['nodes']} nodes"
        if ledger.nodes_growing:
            found.pending(f"{told}, and by now {count} were announced: {_FINISH}")
        else:
            found.broken(
                f"{told}, and the table nodes has {count} that are not those: rows were removed or "
                f"changed; {RESTORE}"
            )


def _view(ledger: LedgerFacts, found: Findings) -> None:
    """The view is the last one that anything made, and views only grow."""
    made = [
        (int(entry.body["view"]), entry)
        for entry in ledger.log
        if (entry.kind == "force" and entry.body["generation"])  # the first one makes no view
        or (entry.kind == "deletion" and entry.body["deleted"])
        or entry.kind == "announced"
    ]
    highest = 0
    for view, entry in made:
        if view <= highest:
            found.broken(
                f"entry {entry.number} of the log ({entry.kind}) made view {view} after view "
                f"{highest}: {RESTORE}"
            )
        highest = max(highest, view)
    rows = (slot.last_hit for slot in ledger.recounted.values())
    last = max([highest, *rows])
    if ledger.view != last:
        found.broken(
            f"the view counter says {ledger.view}, and the last view that anything made is {last}: "
            f"processes that have the run open may miss deletions; {RESTORE}"
        )
