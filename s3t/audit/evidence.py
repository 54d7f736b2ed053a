"""What claims are judged by: each part of a run, opened once, or the reason why it cannot be.

    config, books (the ledger), plan in force, plan to come, node files, base

Invariant: parts are opened apart, so that one that is damaged leaves the others; who asks for it
gets its error, each time the same. Nothing is written to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from s3t.audit.claims.node_files import NodeFiles
from s3t.audit.claims.reckoning import read_books
from s3t.audit.ledger_facts import Books
from s3t.config import Config, PartitionConfig
from s3t.errors import ConfigError, IntegrityError, S3TError
from s3t.ledger import Ledger
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.types import Digest, NodeKey, Slot, digest

if TYPE_CHECKING:
    from s3t.model.base import Base
    from s3t.model.inputs.encoders import ImageEncoder, TextEncoder

__all__ = ["Case", "LoadedBase", "short"]

Part = TypeVar("Part")

_TRIES = 3
"""Times that a ledger is read which others write at the same time."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """The base as it lies there now, with its encoder."""

    base: Base
    encoder: TextEncoder | ImageEncoder


class Case:
    """A run to be judged. Each part raises ``S3TError`` if it cannot be had."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._parts: dict[str, Any] = {}

    @property
    def config(self) -> Config:
        """The resolved config."""
        return self._once("config.yaml", self.run.config)

    @property
    def books(self) -> Books:
        """The ledger, read in one moment."""
        return self._once("the ledger", self._read_books)

    @property
    def plan(self) -> Plan:
        """The plan in force: the one that the ledger names or, if that cannot be read, the file."""
        return self._once("the plan", self._read_plan)

    @property
    def pending(self) -> Plan | None:
        """The plan that is trained before it is served, if there is one."""
        return self._once("the plan to come", self._read_pending)

    @property
    def files(self) -> NodeFiles:
        """The node files."""
        return self._once("the nodes", lambda: NodeFiles(self.run.store))

    @property
    def loaded(self) -> LoadedBase:
        """The base."""
        return self._once("the base", self._load_base)

    @property
    def here(self) -> Digest:
        """Digest of the environment of this process, which trains nodes again."""
        return self._once("this environment", self._find_environment)

    @property
    def dead_slots(self) -> dict[Slot, int]:
        """Slots with a sample deleted since the plan, by their rows, and since which view."""
        return self.books.dead_slots

    @property
    def living(self) -> list[Node]:
        """Nodes of the plan in whose prefix no sample was deleted."""
        dead = self.dead_slots
        return [
            node
            for node in self.plan.forest
            if not any((node.shard, part) in dead for part in node.prefix)
        ]

    @property
    def elsewhere(self) -> bool:
        """Whether other machines may purge the run too, who do not reach the copies here."""
        return self.run.ledger_at != str(self.run.ledger_path)

    def wanted(self) -> set[NodeKey]:
        """Keys of the nodes of the plan to come that no deletion has hit."""
        plan, row = self.pending, self.books.pending
        if plan is None or row is None:
            return set()
        struck = self.books.struck.items()
        hit = {slot for view, slots in struck if view > row.view for slot in slots}
        return {
            node.key
            for node in plan.forest
            if not any((node.shard, part) in hit for part in node.prefix)
        }

    def names_among(self, asked: Callable[[str], bool]) -> list[str]:
        """Those ids and subjects in the ledger for which ``asked`` is true."""
        at = self.run.ledger_at
        with Ledger.open(at, read_only=True) as ledger, ledger.evidence() as evidence:
            names = (name for row in evidence.samples() for name in (row.sample_id, row.subject))
            return sorted({name for name in names if name is not None and asked(name)})

    def purged_among(self, names: Collection[str]) -> list[str]:
        """Those names that are of samples or persons of which hashes alone are left."""
        with Ledger.open(self.run.ledger_at, read_only=True) as ledger, ledger.evidence() as told:
            hashes = {one for row in told.forgotten() for one in (row.sample, row.subject)}
            return sorted(name for name in names if told.hashed(name) in hashes) if hashes else []

    def beside_ledger(self) -> list[str]:
        """What the ledger's database holds and is no part of a ledger."""
        with Ledger.open(self.run.ledger_at, read_only=True) as ledger, ledger.evidence() as told:
            return told.strange()

    def _once(self, name: str, load: Callable[[], Part]) -> Part:
        if name not in self._parts:
            try:
                self._parts[name] = load()
            except ConfigError as error:
                problem = f"{name} cannot be used ({'; '.join(error.problems)}): restore it"
                self._parts[name] = IntegrityError(problem)
            except S3TError as error:
                self._parts[name] = error
        found = self._parts[name]
        if isinstance(found, S3TError):
            raise found
        part: Part = found
        return part

    def _read_books(self) -> Books:
        at, path, shape = self.run.ledger_at, self.run.ledger_path, self._shape()
        if at != str(path):
            with Ledger.open(at, read_only=True) as ledger:
                return read_books(ledger, shape)
        if not path.is_file():
            raise IntegrityError(
                f"{path} is missing, so nobody knows what was deleted: restore it from a copy"
            )
        for _ in range(_TRIES):
            before = _stamp(path)
            with Ledger.open(path, read_only=True) as ledger:
                books = read_books(ledger, shape)
            if before[1] or _stamp(path) == before:  # with a log of writes beside it, SQLite
                return books  # itself sees to it that all is of one moment
        raise S3TError(f"{path} was written to while it was read: run s3t audit again")

    def _shape(self) -> PartitionConfig | None:
        try:
            return self.config.partition
        except S3TError:
            return None

    def _read_plan(self) -> Plan:
        try:
            row = self.books.plan
        except S3TError:
            return Plan.from_json(_text(self.run.plan_path))
        paths = (self.run.plan_path, *self.run.plans.others())
        return self._named(None if row is None else row.digest, paths)

    def _read_pending(self) -> Plan | None:
        row = self.books.pending
        if row is None:
            return None
        return self._named(row.digest, (*self.run.plans.others(), self.run.plan_path))

    def _named(self, name: Digest | None, paths: tuple[Path, ...]) -> Plan:
        """The plan that the ledger names: of a file here, or made and published elsewhere."""
        try:
            return _plan_named(name, paths)
        except IntegrityError:
            found = None if name is None else self.run.plans.fetched(name)
            if found is None:
                raise
            return found

    def _find_environment(self) -> Digest:
        import torch

        from s3t.model.determinism import one_thread
        from s3t.training.environment import environment_of

        device, classes = torch.device("cpu"), len(self.plan.recipe["labels"])
        with one_thread(device):
            return digest(environment_of(self.config, self.loaded.base, classes, device))

    def _load_base(self) -> LoadedBase:
        from s3t.model.loading import build_base, load_model

        folder = self.run.base_path
        loaded = load_model(self.config, folder if folder.is_dir() else None)
        return LoadedBase(build_base(self.config, loaded), loaded.encoder)


def short(key: str) -> str:
    """A digest as people read it."""
    return key[:12]


def _plan_named(name: Digest | None, paths: tuple[Path, ...]) -> Plan:
    """The plan of this digest in one of the files; the first one's, for an older s3t's ledger."""
    reasons = []
    for path in paths:
        if not path.is_file():
            continue
        try:
            plan = Plan.from_json(_text(path))
        except IntegrityError as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if name in (None, plan.digest):
            return plan
        reasons.append(f"{path.name} is another plan, {short(plan.digest)}")
    raise IntegrityError(
        f"no file holds the plan {short(name or '')} that the ledger names "
        f"({'; '.join(reasons) or 'there is none'}): restore {paths[0].name} from a copy"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}): restore it from a copy") from None


def _stamp(path: Path) -> tuple[tuple[int, int, int], bool]:
    """What changes when the file is written to, and whether a log of writes lies beside it."""
    status = path.stat()
    beside = path.with_name(f"{path.name}-wal").exists()
    return (status.st_ino, status.st_size, status.st_mtime_ns), beside
