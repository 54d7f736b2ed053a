"""The run directory: what lies where, and how each part is opened.

    RUN/
      config.yaml     resolved config
      plan.json       nodes, sequences, digests of slices; no sample ids
      plan.*.json     a plan that is trained before it is served, if there is one
      ledger.db       samples, deletions, plans: the durable truth; unless ``ledger`` of the config
                      names a database
      ledger.db-readers   empty; locks on it tell of answers under way (``s3t.serving.readers``)
      nodes/          <key>.safetensors, one per trained node; copies if store.url names a place
      base/           the base, if it was made or adapted here; the public head, if there is one
      prototypes.safetensors   of the clusters, if shards are clusters
      exports.json    folders elsewhere that hold adapters of the run, and of which nodes
      public/         public rows that were given as Python objects
      .work/          who trains what, while several processes do
      .scratch/       what audits train again, while they do

    URL/              of store.url
      <key>.safetensors
      run/            config, plans, base, public head, whose the store is, and every deletion:
                      slots hit, and who is forgotten (as keyed hashes)
      work/           who trains what

A machine that shares no folder has a directory of its own. Where the ledger is a file of another
machine it is marked ``joined``: all of this without the ledger. It can train; it cannot serve.
Where the ledger is a database the directory is as good as any other (``s3t attach``), and finds
plans that were made elsewhere at the URL.

Invariants: plan.json is written last; a directory that holds it is a prepared run. A database is
believed to be the run's ledger only if it names the run's plan.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from s3t.config import Config, StoreConfig, load_config
from s3t.errors import InputError, IntegrityError, S3TError, is_full, unavailable
from s3t.ledger import Gone, Ledger, Signer
from s3t.plan import Plan
from s3t.run.files.plans import PlanFiles, plan_in
from s3t.run.files.published import Notices
from s3t.store import Depot, NodeStore, Sealer, open_depot, open_ring
from s3t.system import scratch
from s3t.system.locks import prove_locks
from s3t.types import Digest, Slot

__all__ = ["PUBLIC", "RunDir"]

_LOCK = ".training.lock"
_WORK = ".work"
PUBLIC = "public"
"""Folder for public rows that were given as Python objects."""


class RunDir:
    """Paths and parts of one run.

    Args:
        root: its directory.
        kept: where its nodes are kept; default: as its config says, once it has one.
    """

    def __init__(self, root: str | Path, kept: StoreConfig | None = None) -> None:
        self.root = Path(root)
        self.config_path = self.root / "config.yaml"
        self.plans = PlanFiles(self.root, lambda: self.store.depot)
        self.plan_path = self.plans.path
        self.ledger_path = self.root / "ledger.db"
        self.base_path = self.root / "base"
        self.trunk_path = self.root / "trunk"
        self.head_path = self.root / "base_head.safetensors"
        self.prototypes_path = self.root / "prototypes.safetensors"
        self.joined_path = self.root / "joined"
        self._store = None if kept is None else self._opened(kept)
        self._ours: str | None = None
        self._notices: Notices | None = None
        self._read: tuple[tuple[int, int, int], Config] | None = None
        self._open: Ledger | None = None

    @classmethod
    def existing(cls, root: str | Path, *, sweep: bool = True) -> RunDir:
        """A prepared run, without what killed processes have left in scratch folders.

        Args:
            root: its directory.
            sweep: remove that.

        Raises:
            InputError: there is none.
        """
        run = cls(root)
        if not run.prepared:
            raise InputError(
                f"{run.root} is not a run directory (no plan.json): "
                "train one with s3t train CONFIG, or give the directory that it wrote"
            )
        if sweep:
            scratch.sweep(run.root)
        return run

    def __reduce__(self) -> tuple[type[RunDir], tuple[Path]]:
        """Another process opens it by its path."""
        return RunDir, (self.root,)

    @property
    def prepared(self) -> bool:
        """Whether a run was planned here."""
        return self.plan_path.is_file()

    @property
    def foreign(self) -> bool:
        """Whether something else than a run, begun or prepared, lies here."""
        if not self.root.exists() or self.config_path.is_file():
            return False
        ours = (_LOCK, _WORK, PUBLIC)
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
        return (
            open_depot(str(self.root.absolute() / _WORK)) if depot is None else depot.under("work")
        )

    def config(self) -> Config:
        """The resolved config, read again when its file has changed."""
        try:
            status = self.config_path.stat()
        except FileNotFoundError:
            raise IntegrityError(
                f"{self.config_path} is missing: restore it from a copy of the run"
            ) from None
        except OSError:
            return load_config(self.config_path)  # says what is wrong
        stamp = status.st_ino, status.st_mtime_ns, status.st_size
        if self._read is None or self._read[0] != stamp:
            self._read = stamp, load_config(self.config_path)
        return self._read[1]

    def here(self) -> Config:
        """The resolved config, with this directory as its output: a run may have been moved."""
        return self.config().model_copy(update={"output": str(self.root)})

    def plan(self) -> Plan:
        """The plan in force, proved (see ``Plan.from_json``)."""
        if self.joined:
            return plan_in(self.plan_path)
        with self.ledger() as ledger:
            return self.plans.find(lambda: ledger.plans.in_force().plan)

    def trained_plan(self) -> Plan:
        """The plan to train: the newest, in force or not yet."""
        if self.joined:
            return plan_in(self.plan_path)
        with self.ledger() as ledger:
            return self.plans.find(lambda: ledger.plans.newest().plan)

    @property
    def ledger_at(self) -> str:
        """Path of the ledger, or URL of its database, which may hold a password."""
        if not self.config_path.exists():
            return str(self.ledger_path)
        try:
            return self.config().ledger or str(self.ledger_path)
        except S3TError:
            if not self.ledger_path.is_file():
                raise
            return str(self.ledger_path)  # the config is damaged, and here is the ledger

    def ledger(self, *, create: bool = False) -> Ledger:
        """The ledger; the caller closes it.

        Raises:
            InputError: the run was prepared elsewhere, and its ledger is there; or the database
                holds the ledger of another run.
            IntegrityError: it is missing, damaged or no ledger.
            UnavailableError: the database cannot be reached.
        """
        if self.joined:
            raise InputError(
                f"{self.root} is where another machine trained for a run: its ledger, and so "
                "everything but training, is where that run was prepared"
            )
        return self._ledger(self.ledger_at, create)

    @contextmanager
    def ledger_open(self) -> Iterator[None]:
        """Keep the ledger open for ``hits``, which else opens it, and reads its whole log, each
        time. A run that another machine prepared has none."""
        if self.joined or self._open is not None:
            yield
            return
        with self.ledger() as ledger:
            self._open = ledger
            try:
                yield
            finally:
                self._open = None

    def prove_ledger(self, url: str | None) -> None:
        """Refuse another ledger than the run's, before the config names it.

        Raises:
            InputError, IntegrityError, UnavailableError: as ``ledger``.
        """
        if not self.joined:
            self._ledger(url or str(self.ledger_path), False).close()

    def _ledger(self, at: str, create: bool) -> Ledger:
        own = at == str(self.ledger_path)
        if own and not create and not self.ledger_path.exists():
            raise IntegrityError(
                f"{self.ledger_path} is missing, so it is unknown what was deleted: restore it "
                "from a copy, or train a new run"
            )
        ledger = Ledger.open(at, create=create, signer=self._signer, run=self.root)
        if own or self._ours == at:
            return ledger
        try:
            made = {one.digest for one in ledger.plans.all()}
            if self.prepared and plan_in(self.plan_path).digest not in made:
                raise InputError(
                    f"{ledger.name} holds the ledger of another run than {self.root}, so nothing "
                    "was done: name the database of this run with ledger=URL in its config"
                )
        except BaseException:
            ledger.close()
            raise
        self._ours = at if self.prepared else None
        return ledger

    def hits(self) -> set[Slot]:
        """Every (shard, slice) that a deletion has hit since the plan to train was made.

        Where another machine's ledger counts: as it was when that machine last told.
        """
        if self.joined:
            return self.notices().hits_of(self.joined_plan)
        if self._open is not None:
            return set(self._open.plans.newest().hits)
        with self.ledger() as ledger:
            return set(ledger.plans.newest().hits)

    def gone(self) -> Gone:
        """The deleted samples, as keyed hashes; see ``hits`` for other machines."""
        if not self.joined:
            with self.ledger() as ledger:
                return ledger.deleted.all()
        return self.notices().gone()

    def notices(self) -> Notices:
        """What those without the ledger are told; all that ask the same object share its memory."""
        if self._notices is None:
            self._notices = Notices(str(self.root), self.store.depot, self._ledger_file)
        return self._notices

    def tell_store(self) -> None:
        """Tell the store, if there is one, of every deletion; see ``Notices.tell``."""
        if self.store.depot is not None:
            with self.ledger() as ledger:
                self.notices().tell(ledger)

    def _ledger_file(self) -> Path | None:
        return self.ledger_path if self.ledger_at == str(self.ledger_path) else None

    @cached_property
    def joined_plan(self) -> Digest:
        """Digest of the plan that a machine without the ledger trains."""
        return plan_in(self.plan_path).digest

    def _signer(self) -> Signer | None:
        key = self.config().receipts.signing_key if self.config_path.is_file() else None
        return None if key is None else Signer(key)

    def _opened(self, kept: StoreConfig) -> NodeStore:
        folder = Path(kept.cache) if kept.cache else self.root / "nodes"
        depot, sealer = open_depot(kept.url) if kept.url else None, None
        if kept.keys:
            shared = None if depot is None else depot.folder
            run = kept.url or str(self.root.absolute())
            ring = open_ring(kept.keys, run, [self.root, folder, shared or folder])
            sealer = Sealer(ring, kept.keys)
        return NodeStore(folder, depot, sealer)

    @contextmanager
    def training_lock(self) -> Iterator[None]:
        """Hold the run for one training at a time; the system frees it when a holder dies.

        A training that fails before the run is begun leaves no trace, not even this lock. A
        directory where no run has begun is tried first: locks must hold there.

        Raises:
            InputError: the directory cannot be written, or lies where locks do not hold.
            S3TError: another process trains this run.
        """
        path = self.root / _LOCK
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            if is_full(error):
                raise unavailable(error) or error from None
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
                if not self.config_path.exists():
                    prove_locks(self.root)
                with self._training_elsewhere():
                    yield
            finally:
                if not self.config_path.exists():
                    path.unlink()
                    with suppress(OSError):  # one that was there, or is no longer empty
                        for folder in made:
                            folder.rmdir()

    @contextmanager
    def _training_elsewhere(self) -> Iterator[None]:
        """Keep other machines that share the ledger from training the run."""
        if self.joined or not self.prepared or self.ledger_at == str(self.ledger_path):
            yield
            return
        with self.ledger() as ledger, ledger.plans.training() as held:
            if not held:
                raise S3TError(
                    f"{self.root} is being trained or purged on another machine: wait for it"
                )
            yield
