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

import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from s3t.config import Config
from s3t.data import private_origins
from s3t.data.files import resolve
from s3t.errors import InputError, S3TError, UnavailableError
from s3t.ledger import Gone, Ledger
from s3t.run import RunDir
from s3t.run.files.contents import half_written, strangers, written, written_files
from s3t.run.files.exports import Exported, ExportFolder, ExportRecords, export_tag
from s3t.run.files.trainers import MAIN, Trainers
from s3t.store import Removal
from s3t.system import scratch
from s3t.system.durable import remove_whole
from s3t.types import NodeKey

__all__ = ["Purge", "Store", "is_dead", "kept_nodes", "purge"]

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
            run.notices().tell(ledger, anew=True)
            _wait_for_trainers(run, alone, locked)
        view = ledger.view()  # what dies after this look is left to the next purge
        doomed, gone = _dead(run, ledger), ledger.deleted.all()
        exports = ExportRecords(run.root).all()
        left, nodes_store = _nodes(run, doomed, dry_run)
        stores = [nodes_store]
        stores += [_exported(run, one, ledger, doomed, dry_run) for one in exports]
        stores += _plans(run, dry_run)
        stores += _caches(run, alone, dry_run)
        stores += [_scratch(run, dry_run), *_left_alone(run, ledger, gone)]
        stores.append(_jobs(ledger, dry_run))
        rows, kept = ledger.deleted.unpurged(view), ""
        nodes = sorted((doomed.there | (set(ledger.plans.nodes()) & doomed.keys)) - left)
        if not dry_run:
            told = dict(sum((Counter({one.name: one.purged}) for one in stores), Counter()))
            found = nodes or rows or told
            # what an earlier one has left behind in the files is met again
            if not (
                ledger.deleted.purge(view, nodes, {"stores": told})
                if found
                else ledger.deleted.compact()
            ):
                kept = (
                    "a process reads an older state of it, whose bytes stay until it ends and this "
                    "is run again; "
                )
        note = f"{kept}ids, subjects and digests of deleted samples; keyed hashes stay"
        gone_rows = 0 if dry_run else rows
        stores.append(Store("ledger", ledger.name, rows, gone_rows, note))
        return Purge(
            run=str(run.root),
            view=view,
            dry_run=dry_run,
            nodes=tuple(sorted(doomed.there - left)),
            stores=tuple(stores),
            own_files=tuple(_own_files(run.config(), gone)),
            out_of_reach=(
                *_OUT_OF_REACH,
                *((_OF_ENGINES,) if exports else ()),
                *((_OF_SERVER,) if ledger.shared else ()),
                *((_OF_REPLICAS,) if run.store.depot is not None else ()),
                *((_OF_VERSIONS,) if _keeps_versions(run) else ()),
            ),
        )


def _jobs(ledger: Ledger, dry_run: bool) -> Store:
    """Deletions that were accepted name samples. Those that are done go; the others are to be
    done, which a service of the run does."""
    found = ledger.outbox.counts()["jobs"]
    done = 0 if dry_run else ledger.outbox.sweep()
    note = "s3t serve does the others, and their ids go with that" if found > done else ""
    return Store("accepted deletions", ledger.name, found, done, note)


def _keeps_versions(run: RunDir) -> bool:
    """Whether nodes lie at a URL that may keep versions which nothing here knows to remove."""
    depot = run.store.depot
    return depot is not None and not depot.tells_versions


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
        others.look(anew=True)
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


@dataclass(frozen=True, slots=True)
class _Doomed:
    """Dead nodes: all keys that must not be readable any more, and those that lie somewhere.

    Attributes:
        keys, there: of these.
        kept: of the nodes that live.
    """

    keys: frozenset[NodeKey]
    there: frozenset[NodeKey]
    kept: frozenset[NodeKey]


def is_dead(nodes: Collection[NodeKey] | None, kept: Collection[NodeKey]) -> bool:
    """Whether a copy of nodes must go: one of them is not kept, or it is unknown which it holds.

    Args:
        nodes: all whose weights are in it; None or empty if that is unknown.
        kept: see ``kept_nodes``.
    """
    return not nodes or not all(node in kept for node in nodes)


def kept_nodes(run: RunDir, ledger: Ledger) -> frozenset[NodeKey]:
    """Nodes that live in the plan in force, or are wanted by the newest plan; all others must go.

    Raises:
        IntegrityError: a plan is damaged.
    """
    return _kept(run, ledger)[0]


def _kept(run: RunDir, ledger: Ledger) -> tuple[frozenset[NodeKey], frozenset[NodeKey]]:
    """Keys of the nodes that live, and of all in these plans."""
    kept: set[NodeKey] = set()
    known: set[NodeKey] = set()
    serving = run.plans.find(lambda: ledger.plans.in_force().plan), ledger.plans.in_force()
    training = run.plans.find(lambda: ledger.plans.newest().plan), ledger.plans.newest()
    for plan, state in (serving, training):
        hits = set(state.hits)
        for node in plan.forest:
            known.add(node.key)
            if not node.is_hit(hits):
                kept.add(node.key)
    return frozenset(kept), frozenset(known)


def _dead(run: RunDir, ledger: Ledger) -> _Doomed:
    """All nodes but those that are kept."""
    kept, planned = _kept(run, ledger)
    there = run.store.traces()
    known = planned | set(ledger.plans.nodes()) | there
    return _Doomed(frozenset(known - kept), frozenset(there - kept), kept)


def _nodes(run: RunDir, doomed: _Doomed, dry_run: bool) -> tuple[frozenset[NodeKey], Store]:
    """Remove dead nodes; returns those of which the store holds older versions all the same."""
    store, left = run.store, frozenset[NodeKey]()
    where = str(store.root) if store.depot is None else f"{store.depot.url} and {store.root}"
    note = [f"not ours, left alone: {name}" for name in store.strays()]
    purged = 0
    if not dry_run:
        removal = store.remove(doomed.keys)
        left = frozenset(removal.left) | frozenset(removal.linked)
        purged = len(doomed.there - left)
        strange = len(removal.unknown & doomed.there)
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
    return left, Store("nodes", where, len(doomed.there), purged, "; ".join(note))


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
    run: RunDir, exported: Exported, ledger: Ledger, doomed: _Doomed, dry_run: bool
) -> Store:
    """Adapters that hold dead nodes, in one folder that the run has exported to."""
    known = dict(exported.adapters)
    if (owner := ExportRecords(run.root).owner()) is not None:
        note = f"of {owner}, of which this run is a copy: purge that one, or export this one again"
        return Store("exports", str(exported.path), 0, 0, note)
    if not exported.path.is_dir():
        dead = [name for name in known if is_dead(known[name], doomed.kept)]
        note = (
            f"the folder is not there: if it was moved or is not mounted, remove {', '.join(dead)} "
            "from it; each purge looks again"
        )
        return Store("exports", str(exported.path), 0, 0, note if dead else "")
    folder = ExportFolder(exported.path, export_tag(ledger))
    try:
        with folder.alone():
            with suppress(InputError):  # it cannot be understood: the run's own record counts
                known |= folder.told()
            dead = [name for name in folder.names() if is_dead(known.get(name), doomed.kept)]
            left = [] if dry_run else folder.remove(dead)
            if not dry_run:
                folder.sweep()
                lying = {*folder.names()}
                gone = [name for name in known if name not in lying]
                gone = [name for name in gone if is_dead(known[name], doomed.kept)]
                ExportRecords(run.root).drop(exported.path, gone)
    except (OSError, S3TError) as error:
        note = f"cannot be reached ({error})"
        return Store("exports", str(exported.path), len(known), 0, note)
    note = "; ".join(f"cannot be removed: {name}" for name in left)
    purged = 0 if dry_run else len(dead) - len(left)
    return Store("exports", str(exported.path), len(dead), purged, note)


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
    with ledger.evidence() as evidence:
        others += [f"{name} in {ledger.name}" for name in evidence.strange()]
    if others:
        note = f"no part of a run, left alone: {', '.join(others)}"
        yield Store("other files", str(run.root), len(others), 0, note)
    told = _naming(written_files(run.root), ledger, gone)
    if told:
        note = f"they name deleted samples or persons; remove the lines: {', '.join(told)}"
        yield Store("reports", str(run.root), len(told), 0, note)


def _naming(files: Collection[Path], ledger: Ledger, gone: Gone) -> list[str]:
    """Files that name deleted samples, or the persons of some."""
    if not files or not len(gone):
        return []
    with ledger.evidence() as evidence:
        marked = (row.subject for row in evidence.samples() if row.deleted_view is not None)
        hashes = {evidence.hashed(subject) for subject in marked if subject is not None}
        hashes |= {row.subject for row in evidence.forgotten()} - {None}
        people = Gone(gone.secret, frozenset(hashes))
    found = []
    for path in files:
        with suppress(FileNotFoundError):  # a training's signs of life come and go
            names = written(path.read_bytes().decode(errors="replace"))
            if any(name in gone or name in people for name in names):
                found.append(str(path))
    return found


def _scratch(run: RunDir, dry_run: bool) -> Store:
    """What audits have trained again, and copies of data, of processes that were killed."""
    left, held = scratch.sweep(run.root, remove=not dry_run)
    note = f"{held} of processes at work, which remove them at their end" if held else ""
    where = " and ".join(map(str, scratch.places(run.root)))
    return Store("temporary runs", where, left + held, 0 if dry_run else left, note)


def _own_files(config: Config, gone: Gone) -> Iterator[tuple[str, int]]:
    """The user's files that still hold rows of deleted samples, with the number of those: all that
    the data are read from, whole, and the images and metadata that rows name."""
    if not len(gone):
        return
    source = config.data.private
    if source.files is None or source.format == "imagefolder":
        name = f"data.private ({source.name or source.files or f'the embedded {source.format}'})"
        folders = {"split": re.split(r"[\[+]", source.split)[0]} if source.files else {}
        yield from _rows_in(name, _reading(config, **folders), gone)
        return
    for pattern in [source.files] if isinstance(source.files, str) else source.files:
        try:
            names = resolve(pattern)
        except InputError as error:
            yield f"{pattern} (cannot be read: {error})", 0
            continue
        for name in names:
            yield from _rows_in(name, _reading(config, files=name, split="train"), gone)


def _rows_in(name: str, config: Config, gone: Gone) -> Iterator[tuple[str, int]]:
    """Rows of deleted samples that a source of its own holds, by file."""
    try:
        rows = [origin for one, origin in private_origins(config) if one in gone]
    except InputError as error:
        yield f"{name} (cannot be read: {error})", 0
        return
    if rows and config.data.private.format != "imagefolder":  # it is no file of its own
        yield name, len(rows)
    yield from sorted(Counter(file for origin in rows for file in origin).items())


def _reading(config: Config, **changes: str) -> Config:
    private = config.data.private.model_copy(update=changes)
    return config.model_copy(update={"data": config.data.model_copy(update={"private": private})})
