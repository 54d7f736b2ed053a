"""The run directory: what lies where, and how each part is opened.

    RUN/
      config.yaml     resolved config, written once
      plan.json       nodes, sequences, digests of slices; no sample ids
      ledger.db       samples and deletions: the durable truth
      nodes/          <key>.safetensors, one per trained node
      base/           the base, if it was made or adapted here; the public head, if there is one

Invariant: plan.json is written last. A directory that holds it is a prepared run.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3t.config import Config, load_config
from s3t.errors import InputError, IntegrityError, S3TError
from s3t.ledger import Ledger
from s3t.plan import Plan
from s3t.store import NodeStore
from s3t.types import Slot

__all__ = ["RunDir"]

_LOCK = ".training.lock"


class RunDir:
    """Paths and parts of one run."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config_path = self.root / "config.yaml"
        self.plan_path = self.root / "plan.json"
        self.ledger_path = self.root / "ledger.db"
        self.base_path = self.root / "base"
        self.head_path = self.root / "base_head.safetensors"
        self.store = NodeStore(self.root / "nodes")

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
        return not self.root.is_dir() or any(path.name != _LOCK for path in self.root.iterdir())

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
            IntegrityError: it is missing, damaged or no ledger.
        """
        if not create and not self.ledger_path.exists():
            raise IntegrityError(
                f"{self.ledger_path} is missing, so nobody knows what was deleted: restore it "
                "from a copy, or train a new run"
            )
        return Ledger.open(self.ledger_path, create=create)

    def hits(self) -> set[Slot]:
        """Every (shard, slice) that holds a deleted sample, as the ledger has it now."""
        with self.ledger() as ledger:
            return {(shard, part) for shard, part, _ in ledger.hits()}

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
