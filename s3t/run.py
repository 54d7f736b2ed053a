"""The run directory: what lies where, and how each part is opened.

    RUN/
      config.yaml     resolved config, written once
      plan.json       nodes, sequences, digests of slices; no sample ids
      ledger.db       samples and deletions: the durable truth
      nodes/          <key>.safetensors, one per trained node; copies if store.url names a place
      base/           the base, if it was made or adapted here; the public head, if there is one
      .work/          who trains what, while several processes do

    URL/              of store.url
      <key>.safetensors
      run/            plan, base, public head and hits, for machines that share no folder
      work/           who trains what

A machine that shares no folder has a directory of its own, marked ``joined``: all of this without
the ledger. It can train; it cannot serve.

Invariant: plan.json is written last. A directory that holds it is a prepared run.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3t.config import Config, StoreConfig, load_config
from s3t.errors import InputError, IntegrityError, S3TError
from s3t.ledger import Ledger
from s3t.plan import Plan
from s3t.store import Depot, NodeStore
from s3t.types import Slot, digest

__all__ = ["RunDir"]

_LOCK = ".training.lock"
_WORK = ".work"
_HITS = "run/hits.json"


class RunDir:
    """Paths and parts of one run.

    Args:
        root: its directory.
        kept: where its nodes are kept; default: as its config says, once it has one.
    """

    def __init__(self, root: str | Path, kept: StoreConfig | None = None) -> None:
        self.root = Path(root)
        self.config_path = self.root / "config.yaml"
        self.plan_path = self.root / "plan.json"
        self.ledger_path = self.root / "ledger.db"
        self.base_path = self.root / "base"
        self.trunk_path = self.root / "trunk"
        self.head_path = self.root / "base_head.safetensors"
        self.joined_path = self.root / "joined"
        self._store = None if kept is None else self._opened(kept)

    @classmethod
    def existing(cls, root: str | Path) -> RunDir:
        """A prepared run.

        Raises:
            InputError: there is none.
        """
        run = cls(root)
        if not run.prepared:
            raise InputError(
                f"{run.root} is not a run directory (no plan.json): "
                "train one with s3t train CONFIG, or give the directory that it wrote"
            )
        return run

    @property
    def prepared(self) -> bool:
        """Whether a run was planned here."""
        return self.plan_path.is_file()

    @property
    def foreign(self) -> bool:
        """Whether something else than a run, begun or prepared, lies here."""
        if not self.root.exists() or self.config_path.is_file():
            return False
        ours = (_LOCK, _WORK)
        return not self.root.is_dir() or any(path.name not in ours for path in self.root.iterdir())

    @property
    def joined(self) -> bool:
        """Whether a machine that has no ledger trains here for a run prepared elsewhere."""
        return self.joined_path.is_file()

    @property
    def store(self) -> NodeStore:
        """The nodes, where the run's config says that they are kept."""
        if self._store is not None:
            return self._store
        if not self.config_path.is_file():
            return self._opened(StoreConfig())
        self._store = self._opened(self.config().store)
        return self._store

    def work(self) -> Depot:
        """Where the processes that train the run tell each other what they do."""
        depot = self.store.depot
        return Depot(str(self.root.absolute() / _WORK)) if depot is None else depot.under("work")

    def config(self) -> Config:
        """The resolved config."""
        return load_config(self.config_path)

    def plan(self) -> Plan:
        """The plan, proved (see ``Plan.from_json``)."""
        try:
            return Plan.from_json(self.plan_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{self.plan_path} cannot be read ({error})") from None

    def ledger(self, *, create: bool = False) -> Ledger:
        """The ledger; the caller closes it.

        Raises:
            InputError: the run was prepared elsewhere, and its ledger is there.
            IntegrityError: it is missing, damaged or no ledger.
        """
        if self.joined:
            raise InputError(
                f"{self.root} is where another machine trained for a run: its ledger, and so "
                "everything but training, is where that run was prepared"
            )
        if not create and not self.ledger_path.exists():
            raise IntegrityError(
                f"{self.ledger_path} is missing, so nobody knows what was deleted: restore it "
                "from a copy, or train a new run"
            )
        return Ledger.open(self.ledger_path, create=create)

    def hits(self) -> set[Slot]:
        """Every (shard, slice) that holds a deleted sample, as the ledger has it now.

        Where another machine's ledger counts: as it was when that machine last told.
        """
        if self.joined:
            told = self.told_hits()
            if told is None:
                raise IntegrityError(
                    f"{self._told_depot().where(_HITS)} is missing, so nobody knows what was "
                    "deleted: train on the machine that prepared the run, which tells it"
                )
            return told
        with self.ledger() as ledger:
            return {(shard, part) for shard, part, _ in ledger.hits()}

    def tell_hits(self, hits: set[Slot]) -> None:
        """Put the hits where machines without the ledger read them."""
        body = {"hits": [list(slot) for slot in sorted(hits)]}
        text = json.dumps(body | {"check": digest(body)})
        self._told_depot().put(_HITS, text.encode())

    def told_hits(self) -> set[Slot] | None:
        """The hits that were told last; None before the first time.

        Raises:
            IntegrityError: what lies there is not what was told.
        """
        try:
            body = json.loads(self._told_depot().get(_HITS))
            check = body.pop("check")
            if check == digest(body):
                return {(shard, part) for shard, part in body["hits"]}
            reason = "its digest differs"
        except FileNotFoundError:
            return None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = str(error)
        where = self._told_depot().where(_HITS)
        raise IntegrityError(
            f"{where} cannot be used ({reason}): remove it, and train on the machine that "
            "prepared the run, which tells it anew"
        )

    def _opened(self, kept: StoreConfig) -> NodeStore:
        folder = Path(kept.cache) if kept.cache else self.root / "nodes"
        return NodeStore(folder, Depot(kept.url) if kept.url else None)

    def _told_depot(self) -> Depot:
        depot = self.store.depot
        if depot is None:
            raise InputError(f"{self.root} names no store.url, over which machines are told")
        return depot

    @contextmanager
    def training_lock(self) -> Iterator[None]:
        """Hold the run for one training at a time; the system frees it when a holder dies.

        A training that fails before the run is begun leaves no trace, not even this lock.

        Raises:
            InputError: the directory cannot be written.
            S3TError: another process trains this run.
        """
        path = self.root / _LOCK
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise InputError(
                f"{self.root} cannot be written ({error}): give another directory with output=DIR"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except OSError:
                held = False
            if not held:
                raise S3TError(
                    f"{self.root} is being trained by another process: wait for it, or give "
                    "another directory with output=DIR"
                )
            try:
                yield
            finally:
                if not self.config_path.exists():
                    path.unlink()
                    with suppress(OSError):  # one that was there, or is no longer empty
                        for folder in made:
                            folder.rmdir()
