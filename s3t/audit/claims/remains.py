"""Claim E7: nothing dead lies on disk.

    living          in the plan in force or to come, and no slice of it hit: needed
    dead            died after the last purge: pending; died before it, or came back: broken
    anything else   announced by no trainer and in no plan: broken

Invariant: the rows of deleted samples say which nodes are dead, and the purge's entry in the log
says which nodes it removed.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.dead_nodes import PURGE, DeadNodes
from s3t.audit.claims.exports import judge_exports
from s3t.audit.findings import Findings
from s3t.errors import DamagedNodeError, IntegrityError
from s3t.plan import Plan
from s3t.run.files.contents import half_written, strangers
from s3t.store import MissingKeyError, open_ring
from s3t.system.scratch import places, sweep

__all__ = ["judge_remains"]


def judge_remains(audited: AuditedRun, found: Findings) -> None:
    """Judge E7."""
    found.parts(_nodes, _store, _copies, judge_exports, _data_keys, of=audited)
    found.parts(_rows, _jobs, _leftovers, of=audited)


def _nodes(audited: AuditedRun, found: Findings) -> None:
    """Judge that each node file is needed by the plan in force or the plan to come."""
    files = audited.files
    needed = audited.needed
    dead_nodes = DeadNodes(audited)
    for key in sorted(files.traces - needed):
        what = "node"
        if key not in files.there:
            what = "the copy of node" if key in files.copies else "evidence of node"
        broken, why = dead_nodes.judge(key)
        if broken and key not in files.there | files.evidence_there and audited.elsewhere:
            found.pending(f"{what} {key} is of before another machine purged it: {PURGE}")
            continue
        (found.broken if broken else found.pending)(f"{what} {key} {why}")
    found.checked(f"{len(files.there)} node files, {len(needed)} nodes needed")


def _store(audited: AuditedRun, found: Findings) -> None:
    """Judge that the store has a notice of every deletion, and no older version of a dead node."""
    store = audited.run.store
    if store.depot is None or audited.run.joined:
        return
    made = {view for view, slots in audited.ledger.slots_hit.items() if slots}
    notices = audited.run.notices()
    told, last = set(notices.views()), notices.last_entry()
    log = {None, *(entry.digest for entry in audited.ledger.of_kind("deletion"))}
    strange = told - made - {0}
    if last is not None and last[1] not in log:
        strange.add(last[0])
    if strange:
        found.broken(
            f"{store.depot.url} was told of deletions at views {sorted(strange)} that the ledger "
            "does not hold: it is an older copy, or another run's; restore the newest"
        )
    if untold := made - told:
        found.pending(
            f"{store.depot.url} was not told of the deletions at views {sorted(untold)}, so who "
            "trains there may still build on them: run s3t status RUN, which tells it"
        )
    if old := audited.run.plans.superseded(audited.ledger.plans_in_use):
        found.pending(
            f"{store.depot.url} keeps {len(old)} plans that were replaced, with digests of deleted "
            f"samples in them: {PURGE}"
        )
    older, needed = store.versions(), audited.needed
    if older is None:
        found.broken(
            f"{store.depot.url} does not let us see older versions of its objects, which may be "
            "dead nodes: allow s3:ListBucketVersions and s3:DeleteObjectVersion"
        )
        return
    dead_nodes = DeadNodes(audited)
    for key in sorted(older - needed - audited.files.there):
        broken, why = dead_nodes.judge(key)
        (found.broken if broken else found.pending)(f"an older version of node {key} {why}")
    found.checked(f"the store knows of {len(told & made)} deletions, and keeps no dead versions")


def _copies(audited: AuditedRun, found: Findings) -> None:
    """Judge that copies on this machine equal the nodes at ``store.url``."""
    files = audited.files
    living = {node.key for node in audited.living}
    count = 0
    for key in sorted(files.copies & living):
        original = files.sound(key)
        try:
            same = original is None or files.copy(key).weights == original.weights
            why = "is not what lies at store.url"
        except DamagedNodeError:
            same, why = False, "is damaged"
        if not same:
            found.broken(f"the copy of node {key} on this machine {why}: remove it")
        count += same
    for key in sorted(files.traces & living):
        if not files.same_copy_of_evidence(key):
            found.broken(
                f"the copy of node {key}'s evidence on this machine is not what lies at store.url: "
                "remove it"
            )
    if files.copies:
        found.checked(f"{count} copies are what lies at store.url")


def _data_keys(audited: AuditedRun, found: Findings) -> None:
    """Judge that the key ring has no data key of a purged node, so backups cannot open it."""
    kept = audited.config.store
    if not kept.keys:
        return
    ring = open_ring(kept.keys, kept.url or str(audited.run.root.absolute()), ())
    purged = {key for entry in audited.ledger.of_kind("purge") for key in entry.body["nodes"]}
    gone = purged - audited.needed
    for key in sorted(gone):
        with suppress(MissingKeyError):
            ring.get(key)
            found.broken(
                f"key ring {kept.keys} still gives the data key of node {key}, which was purged: "
                f"an old ring was put back; {PURGE} again"
            )
    found.checked(f"{len(gone)} data keys of purged nodes destroyed")


def _rows(audited: AuditedRun, found: Findings) -> None:
    """Judge that a purge has replaced the rows of deleted samples by hashes."""
    ledger = audited.ledger
    purges = [int(entry.body["view"]) for entry in ledger.of_kind("purge")]
    last = max(purges, default=-1)
    count = 0
    for (shard, part), counts in sorted(ledger.recounted.items()):
        for view, rows in sorted(counts.marked.items()):
            count += rows
            name = f"{rows} rows of samples of shard {shard} slice {part} deleted at view {view}"
            if view <= last:
                found.broken(
                    f"{name} are in the ledger after the purge of view {last}: {PURGE} again"
                )
            else:
                found.pending(f"{name} await a purge: {PURGE}")
    found.checked(f"{ledger.purged} samples are hashes, {count} deleted ones are rows")


def _leftovers(audited: AuditedRun, found: Findings) -> None:
    """Judge that no cache, half-written file or unknown file is left."""
    run, store = audited.run, audited.run.store
    training = _is_trained_now(run.root / ".training.lock")
    left, _ = sweep(run.root, remove=False)
    if left:
        where = " or ".join(map(str, places(run.root)))
        found.pending(f"{left} temporary runs or copies in {where}, of killed processes: {PURGE}")
    if not training:
        if run.trunk_path.exists():
            count = sum(1 for path in run.trunk_path.rglob("hidden") if path.is_file())
            found.pending(
                f"{run.trunk_path} holds {count} files of hidden states of private rows, and "
                f"no process trains: a killed training left it; {PURGE}"
            )
        for path in [*half_written(run.root), *sorted(store.root.glob(".*.tmp"))]:
            found.pending(f"{path} is half-written, by a process that was killed: {PURGE}")
    for name in audited.beside_ledger():
        found.broken(f"the ledger's database holds {name}, which is no part of it: drop it")
    for path in strangers(run.root, run.plans.others()):
        found.broken(f"{path} is no part of a run, and may hold anything: move it away")
    for stray in store.strays():
        found.broken(f"{stray} lies among the nodes and is none: move it away")
    found.parts(_next_plans, of=audited)
    found.checked(
        "a training is under way, so what it has in hand is left out"
        if training
        else "no hidden states, no half-written files, no strangers"
    )


def _jobs(audited: AuditedRun, found: Findings) -> None:
    """Judge that accepted deletions name samples only until they are done."""
    waiting = 0
    for row in audited.ledger.jobs:
        names = f"the deletion {row.request_id!r}, accepted at {row.received},"
        if row.cancelled is not None:
            if (row.sample_ids, row.subjects) != ("[]", "[]"):
                found.broken(f"{names} was cancelled, and still names samples: restore the ledger")
            continue
        waiting += 1
        done = row.request_id in audited.ledger.requests
        found.pending(
            f"{names} {'is done and' if done else 'is not done, and'} names samples in the ledger: "
            f"{'s3t purge RUN takes them away' if done else 's3t serve RUN does it'}"
        )
    found.checked(f"{waiting} accepted deletions name samples until they are done")


def _next_plans(audited: AuditedRun, found: Findings) -> None:
    known = audited.ledger.plans_in_use
    for path in audited.run.plans.others():
        try:
            digest = Plan.from_json(path.read_text(encoding="utf-8")).digest
        except (IntegrityError, UnicodeDecodeError) as error:
            found.broken(
                f"{path} cannot be used ({error}): remove it, and run s3t repair RUN again"
            )
            continue
        if digest not in known:
            found.pending(f"{path} is no plan that the ledger names: run s3t repair RUN again")


def _is_trained_now(lock: Path) -> bool:
    """Whether another process holds the training lock."""
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
