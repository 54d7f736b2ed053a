"""The run that claims are judged by: each part of it, opened once, or why it cannot be.

    config, facts of the ledger, plan in force, plan to come, node files, base

Invariant: each part is opened by itself. A damaged part raises the same error each time it is asked
for, and the other parts stay usable. Nothing is written to the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from s3t.audit.claims.node_files import NodeFiles
from s3t.audit.ledger_facts import LedgerFacts
from s3t.audit.read_ledger import read_facts
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

__all__ = ["AuditedRun", "LoadedBase", "short"]

Part = TypeVar("Part")

_TRIES = 3
"""Attempts to read a ledger file that other processes write at the same time."""


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """The frozen base of the run, loaded from disk, and the encoder of its inputs."""

    base: Base
    encoder: TextEncoder | ImageEncoder


class AuditedRun:
    """The parts of a run that an audit looks at.

    Each property loads its part when it is first asked for, and raises ``S3TError`` if the part is
    missing or damaged.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._parts: dict[str, Any] = {}

    @property
    def config(self) -> Config:
        """The resolved config."""
        return self._once("config.yaml", self.run.config)

    @property
    def ledger(self) -> LedgerFacts:
        """What the ledger says, read in one transaction."""
        return self._once("the ledger", self._read_ledger)

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

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in order.

        Raises:
            DataError: they come from the public data, which cannot be read.
        """
        from s3t.data import label_names

        return label_names(self.config)

    @property
    def here(self) -> Digest:
        """Digest of the environment of this process, which trains nodes again."""
        return self._once("this environment", self._find_environment)

    @property
    def dead_slots(self) -> dict[Slot, int]:
        """Slots that lost a sample since the plan was made, and the first view that deleted one."""
        return self.ledger.dead_slots

    @property
    def living(self) -> list[Node]:
        """Nodes of the plan in force whose slices have lost no sample since the plan was made."""
        dead = self.dead_slots
        return [
            node
            for node in self.plan.forest
            if not any((node.shard, part) in dead for part in node.prefix)
        ]

    @property
    def elsewhere(self) -> bool:
        """Whether the ledger is a database that other machines use too.

        A purge by another machine does not reach the copies of nodes on this one.
        """
        return self.run.ledger_at != str(self.run.ledger_path)

    def wanted(self) -> set[NodeKey]:
        """Keys of the nodes of the plan to come whose slices no deletion has hit."""
        plan, row = self.pending, self.ledger.pending
        if plan is None or row is None:
            return set()
        by_view = self.ledger.slots_hit.items()
        hit = {slot for view, slots in by_view if view > row.view for slot in slots}
        return {
            node.key
            for node in plan.forest
            if not any((node.shard, part) in hit for part in node.prefix)
        }

    @property
    def needed(self) -> set[NodeKey]:
        """Keys of the living nodes of the plan in force and of the plan to come."""
        return {node.key for node in self.living} | self.wanted()

    def names_among(self, asked: Callable[[str], bool]) -> list[str]:
        """The ids and subjects in the ledger for which ``asked`` returns true, sorted."""
        at = self.run.ledger_at
        with Ledger.open(at, read_only=True) as ledger, ledger.tables() as rows:
            names = (name for row in rows.samples() for name in (row.sample_id, row.subject))
            return sorted({name for name in names if name is not None and asked(name)})

    def purged_among(self, names: Collection[str]) -> list[str]:
        """The names that belong to purged samples or persons, sorted.

        The ledger keeps only keyed hashes of those, so each name is hashed and looked up.
        """
        with Ledger.open(self.run.ledger_at, read_only=True) as ledger, ledger.tables() as rows:
            hashes = {one for row in rows.forgotten() for one in (row.sample, row.subject)}
            return sorted(name for name in names if rows.hashed(name) in hashes) if hashes else []

    def beside_ledger(self) -> list[str]:
        """Names of the tables and other objects in the ledger's database that s3t did not make."""
        with Ledger.open(self.run.ledger_at, read_only=True) as ledger, ledger.tables() as rows:
            return rows.strange()

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

    def _read_ledger(self) -> LedgerFacts:
        at, path, shape = self.run.ledger_at, self.run.ledger_path, self._shape()
        if at != str(path):
            with Ledger.open(at, read_only=True) as ledger:
                return read_facts(ledger, shape)
        if not path.is_file():
            raise IntegrityError(
                f"{path} is missing, so what was deleted is unknown: restore it from a copy"
            )
        for _ in range(_TRIES):
            before = _stamp(path)
            with Ledger.open(path, read_only=True) as ledger:
                facts = read_facts(ledger, shape)
            if before[1] or _stamp(path) == before:  # with a log of writes beside it, SQLite
                return facts  # itself sees to it that all is of one moment
        raise S3TError(f"{path} was written to while it was read: run s3t audit again")

    def _shape(self) -> PartitionConfig | None:
        try:
            return self.config.partition
        except S3TError:
            return None

    def _read_plan(self) -> Plan:
        try:
            row = self.ledger.plan
        except S3TError:
            return Plan.from_json(_text(self.run.plan_path))
        paths = (self.run.plan_path, *self.run.plans.others())
        return self._named(None if row is None else row.digest, paths)

    def _read_pending(self) -> Plan | None:
        row = self.ledger.pending
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
    """The plan of this digest in one of the files; the first one's, if it names none."""
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
