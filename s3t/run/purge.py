"""What is dead leaves the disk: nodes, caches, rows. And a report of what could not be reached.

    ledger, plan ─► dead nodes ─► data keys, files here and at the URL ─┐
                                  adapters exported elsewhere           │
                    trunk, half-written files ──────────────────────────┼─► ledger: rows ─► hashes,
                    rows of deleted samples ────────────────────────────┘          entry in the log

Invariants: what is told as gone is gone, durably; the ledger tells of it last. Nothing is removed
before the store at ``store.url`` knows of every deletion, nor while a process that could put it
back trains there. Killed anywhere, the same command finishes it. The user's own files are read, and
never written.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

from s3t.errors import InputError, S3TError, UnavailableError
from s3t.ledger import Gone, Ledger
from s3t.run import RunDir
from s3t.run.files.contents import half_written, strangers, written_files
from s3t.run.files.exports import Exported, ExportFolder, ExportRecords, export_tag
from s3t.run.files.trainers import MAIN, Trainers
from s3t.run.kept_nodes import RemovableNodes, is_dead, removable_nodes
from s3t.run.leftovers import files_naming, own_files
from s3t.store import Removal
from s3t.system import scratch
from s3t.system.durable import remove_whole
from s3t.system.progress import taking_time
from s3t.types import NodeKey

__all__ = ["Purge", "Store", "purge"]

_OUT_OF_REACH = (
    "backups and copies of the run or of its store (with store.encrypt their dead nodes cannot be "
    "read any more)",
    "the memory of a process that serves the run, until its next answer or view",
    "what was downloaded or copied elsewhere, and answers given before",
)
_OF_ENGINES = (
    "adapters in the memory of an engine that was told to load them, until s3t sync has had them "
    "unloaded"
)
_OF_SERVER = (
    "of the ledger's server: its log of writes (WAL) until that is recycled and overwritten, its "
    "archives, standbys and backups, and blocks of its disk that were freed"
)
_OF_VERSIONS = (
    "older versions and deleted objects that the store keeps (object versioning, soft delete): "
    "they are removed on S3, and known of nowhere else"
)
_OF_REPLICAS = (
    "copies of nodes on machines that serve the run from the store: each removes its own when it "
    "takes the deletion up, one that is switched off when it is started again"
)

_PATIENCE = 10.0
"""Seconds beyond a lease that trainers are waited for."""


@dataclass(frozen=True, slots=True)
class Store:
    """One place that a purge looked at.

    Attributes:
        name: what it holds.
        where: path or URL.
        found: how many things of deleted samples were there.
        purged: how many of them are gone now.
        note: what to know about the rest; empty if there is nothing.
    """

    name: str
    where: str
    found: int
    purged: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Purge:
    """What a purge did.

    Attributes:
        run: the run directory.
        view: the ledger's view that it is of.
        dry_run: nothing was removed.
        nodes: keys of the dead nodes that were there, sorted.
        stores: every place that the run writes to.
        own_files: the user's own files with rows of deleted samples, and how many each.
        out_of_reach: what no purge of a run can reach.
    """

    run: str
    view: int
    dry_run: bool
    nodes: tuple[NodeKey, ...]
    stores: tuple[Store, ...]
    own_files: tuple[tuple[str, int], ...]
    out_of_reach: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def purge(run: RunDir, *, dry_run: bool = False, locked: bool = False) -> Purge:
    """Remove all of deleted samples that the run has made, and report it.

    Dead are nodes that are in no plan any more or whose lineage holds a slice that was hit.

    Args:
        run: a prepared run.
        dry_run: look, and remove nothing.
        locked: the caller holds the training lock.

    Raises:
        InputError: the run was prepared elsewhere.
        IntegrityError: the plan, the ledger or the key ring is damaged, or the ledger contradicts
            itself; nothing was removed.
        UnavailableError: somebody trains at ``store.url``, or it cannot be told of every deletion;
            nothing was removed.
        S3TError: a place cannot be reached or written; what is gone by then is told next time.
    """
    with ExitStack() as stack:
        ledger = stack.enter_context(run.ledger())
        ledger.prove()
        alone = locked or _held(run, stack)
        if not dry_run and run.store.depot is not None:
            run.notices().tell(ledger, again=True)
            _wait_for_trainers(run, alone, locked)
        view = ledger.view()  # what dies after this look is left to the next purge
        dead, gone = removable_nodes(run, ledger), ledger.deleted.all()
        exports = ExportRecords(run.root).all()
        with taking_time(f"removing {len(dead.there)} dead nodes"):
            left, nodes_store = _nodes(run, dead, dry_run)
        with taking_time("looking through exports, caches and the run's other files"):
            stores = [
                nodes_store,
                *(_exported(run, one, ledger, dead, dry_run) for one in exports),
                *_plans(run, dry_run),
                *_caches(run, alone, dry_run),
                _scratch(run, dry_run),
                *_left_alone(run, ledger, gone),
                _jobs(ledger, dry_run),
            ]
        nodes = sorted((dead.there | (set(ledger.plans.nodes()) & dead.keys)) - left)
        with taking_time("removing rows from the ledger, and compacting it"):
            stores.append(_rows(ledger, view, nodes, stores, dry_run))
        with taking_time("reading the data for rows of who was deleted"):
            theirs = tuple(own_files(run.config(), gone))
        return Purge(
            run=str(run.root),
            view=view,
            dry_run=dry_run,
            nodes=tuple(sorted(dead.there - left)),
            stores=tuple(stores),
            own_files=theirs,
            out_of_reach=tuple(_out_of_reach(run, ledger, bool(exports))),
        )


def _rows(
    ledger: Ledger, view: int, nodes: list[NodeKey], stores: list[Store], dry_run: bool
) -> Store:
    """Have the ledger forget who was deleted, and log what of it is gone from the other stores."""
    rows, kept = ledger.deleted.unpurged(view), ""
    if not dry_run:
        told = dict(sum((Counter({one.name: one.purged}) for one in stores), Counter()))
        compacted = (
            ledger.deleted.purge(view, nodes, {"stores": told})
            if nodes or rows or told
            else ledger.deleted.compact()  # an earlier purge may have left bytes in the files
        )
        if not compacted:
            kept = (
                "a process reads an older state of it, whose bytes stay until it ends and this "
                "is run again; "
            )
    note = f"{kept}ids, subjects and digests of deleted samples; keyed hashes stay"
    return Store("ledger", ledger.name, rows, 0 if dry_run else rows, note)


def _out_of_reach(run: RunDir, ledger: Ledger, exported: bool) -> Iterator[str]:
    """What no purge of this run can reach."""
    yield from _OUT_OF_REACH
    if exported:
        yield _OF_ENGINES
    if ledger.shared:
        yield _OF_SERVER
    depot = run.store.depot
    if depot is not None:
        yield _OF_REPLICAS
        if not depot.tells_versions:
            yield _OF_VERSIONS


def _jobs(ledger: Ledger, dry_run: bool) -> Store:
    """Deletions that were accepted name samples. Those that are done go; the others are to be
    done, which a service of the run does."""
    found = ledger.outbox.counts()["jobs"]
    done = 0 if dry_run else ledger.outbox.sweep()
    note = "s3t serve does the others, and their ids go with that" if found > done else ""
    return Store("accepted deletions", ledger.name, found, done, note)


def _held(run: RunDir, stack: ExitStack) -> bool:
    """Whether no training is at work, and none begins before ``stack`` is closed."""
    try:
        stack.enter_context(run.training_lock())
    except InputError:
        raise
    except S3TError:
        return False
    return True


def _wait_for_trainers(run: RunDir, alone: bool, locked: bool) -> None:
    """Refuse, or outwait, processes that train at ``store.url`` and could put there what is purged.

    One that gave no sign of life for a lease is dead, and its sign is removed. After a repair the
    others are at their ends, so they are waited for.
    """
    lease, work = run.config().store.lease, run.work()
    others = Trainers(work, None, lease)
    limit = time.monotonic() + lease + _PATIENCE
    while True:
        others.look(again=True)
        mine = [name for name in others.names if locked and name.startswith(MAIN)]
        living = [name for name in others.names if name not in mine and others.lives(name)]
        if alone and not living:
            break
        if not alone or time.monotonic() > limit or (not locked and any(map(others.moves, living))):
            who = ", ".join(living) or "a process with the training lock"
            raise UnavailableError(
                f"{run.root} is being trained at {work.url}/beats ({who}), and could put back what "
                "is purged, so nothing was removed: wait until that has ended, or end it; then run "
                "the same command again"
            )
        time.sleep(min(1.0, lease / 8))
    for name in others.names:
        if name not in mine:
            work.remove(f"beats/{name}")


def _nodes(run: RunDir, dead: RemovableNodes, dry_run: bool) -> tuple[frozenset[NodeKey], Store]:
    """Remove dead nodes; returns those of which the store holds older versions all the same."""
    store, left = run.store, frozenset[NodeKey]()
    where = str(store.root) if store.depot is None else f"{store.depot.url} and {store.root}"
    note = [f"not ours, left alone: {name}" for name in store.strays()]
    purged = 0
    if not dry_run:
        removal = store.remove(dead.keys)
        left = frozenset(removal.left) | frozenset(removal.linked)
        purged = len(dead.there - left)
        strange = len(removal.unknown & dead.there)
        if store.sealer is not None and not strange:
            note.insert(0, "their data keys are destroyed, so backups of the run forget them too")
        elif store.sealer is not None:
            note.insert(0, f"{strange} of them had no data key in the key ring: their backups stay")
        note += _lingering(removal)
    if store.versions() is None:
        note.append(
            "the store does not let us see older versions of its objects, so they may hold dead "
            "nodes, and the audit's claim E7 does not hold: allow s3:ListBucketVersions and "
            "s3:DeleteObjectVersion"
        )
    return left, Store("nodes", where, len(dead.there), purged, "; ".join(note))


def _lingering(removal: Removal) -> Iterator[str]:
    """What is left of nodes whose files were removed, and why."""
    if removal.left:
        why = next(iter(removal.left.values()))
        yield (
            f"older versions of {len(removal.left)} of them are left at the URL, which does not "
            f"let go of them ({why}), and the audit's claim E7 does not hold until they are gone"
        )
    if removal.linked:
        names = "; ".join(sorted(removal.linked.values())[:5])
        yield (
            f"{len(removal.linked)} of them have other names, which no purge follows and no audit "
            f"sees: remove those too ({names})"
        )


def _exported(
    run: RunDir, exported: Exported, ledger: Ledger, dead: RemovableNodes, dry_run: bool
) -> Store:
    """Adapters that hold dead nodes, in one folder that the run has exported to."""
    known = dict(exported.adapters)
    if (owner := ExportRecords(run.root).owner()) is not None:
        note = f"of {owner}, of which this run is a copy: purge that one, or export this one again"
        return Store("exports", str(exported.path), 0, 0, note)
    if not exported.path.is_dir():
        names = [name for name in known if is_dead(known[name], dead.kept)]
        note = (
            "the folder is not there: if it was moved or is not mounted, remove "
            f"{', '.join(names)} from it; each purge looks again"
        )
        return Store("exports", str(exported.path), 0, 0, note if names else "")
    folder = ExportFolder(exported.path, export_tag(ledger))
    try:
        with folder.alone():
            with suppress(InputError):  # it cannot be understood: the run's own record counts
                known |= folder.told()
            names = [name for name in folder.names() if is_dead(known.get(name), dead.kept)]
            left = [] if dry_run else folder.remove(names)
            if not dry_run:
                folder.sweep()
                lying = {*folder.names()}
                gone = [name for name in known if name not in lying]
                gone = [name for name in gone if is_dead(known[name], dead.kept)]
                ExportRecords(run.root).drop(exported.path, gone)
    except (OSError, S3TError) as error:
        note = f"cannot be reached ({error})"
        return Store("exports", str(exported.path), len(known), 0, note)
    note = "; ".join(f"cannot be removed: {name}" for name in left)
    purged = 0 if dry_run else len(names) - len(left)
    return Store("exports", str(exported.path), len(names), purged, note)


def _plans(run: RunDir, dry_run: bool) -> Iterator[Store]:
    """Plans at the URL that no machine needs any more: they hold digests of slices as they were."""
    depot = run.store.depot
    if depot is None:
        return
    old = run.plans.superseded({run.plan().digest, run.trained_plan().digest})
    if not dry_run:
        run.plans.forget(old)
    yield Store("plans", depot.where("run/plans"), len(old), 0 if dry_run else len(old))


def _caches(run: RunDir, alone: bool, dry_run: bool) -> Iterator[Store]:
    """Hidden states of private rows, and what killed writers left half-written."""
    busy = "" if alone else "a training is at work here: it removes them at its end"
    files = sum(path.is_file() for path in run.trunk_path.rglob("*"))
    if alone and not dry_run:
        shutil.rmtree(run.trunk_path, ignore_errors=True)
    left = sum(path.is_file() for path in run.trunk_path.rglob("*"))
    yield Store("activations", str(run.trunk_path), files, files - left, busy if files else "")
    half = half_written(run.root)
    swept = 0
    if alone and not dry_run:
        for path in half:
            with suppress(FileNotFoundError):
                remove_whole(path)
        swept = len(half) + run.store.sweep()
    found = max(len(half), swept)
    yield Store("half-written files", str(run.root), found, swept, busy if found else "")


def _left_alone(run: RunDir, ledger: Ledger, gone: Gone) -> Iterator[Store]:
    """What may be of deleted samples and is not ours to remove; nothing where there is none."""
    others = [*map(str, strangers(run.root, run.plans.others()))]
    with ledger.tables() as tables:
        others += [f"{name} in {ledger.name}" for name in tables.strange()]
    if others:
        note = f"no part of a run, left alone: {', '.join(others)}"
        yield Store("other files", str(run.root), len(others), 0, note)
    told = files_naming(written_files(run.root), ledger, gone)
    if told:
        note = f"they name deleted samples or persons; remove the lines: {', '.join(told)}"
        yield Store("reports", str(run.root), len(told), 0, note)


def _scratch(run: RunDir, dry_run: bool) -> Store:
    """What audits have trained again, and copies of data, of processes that were killed."""
    left, held = scratch.sweep(run.root, remove=not dry_run)
    note = f"{held} of processes at work, which remove them at their end" if held else ""
    where = " and ".join(map(str, scratch.places(run.root)))
    return Store("temporary runs", where, left + held, 0 if dry_run else left, note)
