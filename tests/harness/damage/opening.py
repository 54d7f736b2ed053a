"""A damaged run as a service opens it, what is seen of it, and what the audit says.

    files as they were, one bit flipped ──► OpenRun, proofs, nodes that serve, requests ──► Seen
                                        └─► claims of the audit, where that found nothing

Invariant: who is deleted and which nodes are dead is known from before the damage, and never taken
from the damaged run. What is not flipped may be opened once: the config, and the ledger where that
is sound.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.lineage import judge_lineage, judge_slots
from s3t.audit.claims.log import judge_ledger
from s3t.audit.claims.receipts import judge_receipts
from s3t.audit.claims.served import judge_deleted, judge_served
from s3t.audit.claims.weights import judge_weights
from s3t.audit.findings import Findings, judged
from s3t.config import Config
from s3t.errors import S3TError
from s3t.ledger import Deletion, Ledger
from s3t.model.head import read_public_head
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.files.plans import plan_in
from s3t.run.opened import OpenRun
from s3t.run.overview import survey
from s3t.run.status import status
from s3t.serving.predictor import Predictor
from s3t.store import tensors_digest

__all__ = ["LEDGER_FILES", "Opening", "Seen", "State"]

LEDGER_FILES = ("ledger.db", "ledger.db-wal", "ledger.db-lock")

Judge = Callable[[AuditedRun, Findings], None]

_OF_LEDGER: dict[str, Judge] = {
    "ledger": lambda audited, found: judge_ledger(audited, found, (), {}),
    "receipts": judge_receipts,
    "E1": judge_lineage,
    "E6": judge_deleted,
}
_OF_CONFIG: dict[str, Judge] = {"E3": judge_slots}
_OF_NODES: dict[str, Judge] = {"E2": judge_weights, "E8": judge_served, "E1": judge_lineage}


@dataclass(frozen=True)
class State:
    """A run on disk, as it is opened for each flip.

    Attributes:
        files: contents by path below the run.
        requests: ids deleted, by the name of the request.
        living: id of a sample that is not deleted.
    """

    files: Mapping[str, bytes]
    requests: Mapping[str, str]
    living: str


@dataclass(frozen=True)
class Seen:
    """What a service does with a run that it has opened.

    Attributes:
        status: shards, prefixes, counts.
        samples: every row: who, whose, where, deleted or not.
        served: nodes that answer with those that they stand on, and the digests of their tensors.
        answers: what requests made again are told, and what another would do.
        content: what the flipped file holds, as far as it is understood.
        dead: nodes that a deletion has switched off.
    """

    status: Any
    samples: Any
    served: Mapping[str, str]
    answers: Any
    content: Any = field(repr=False)
    dead: frozenset[str] = field(repr=False)


class Opening:
    """Opens one copy of a run again and again.

    Args:
        root: an empty folder, for the copy.
        state: of the run.
    """

    def __init__(self, root: Path, state: State) -> None:
        self._root, self._state = root, state
        shutil.rmtree(root, ignore_errors=True)
        for name in state.files:
            self._restore(name)
        self._config = RunDir(root).config()
        self._base = plan_in(RunDir(root).plan_path).base
        self._ledger: Ledger | None = None
        self._model: Predictor | None = None
        self._sound: dict[str, Seen] = {}

    def sound(self, name: str) -> Seen:
        """What is seen before ``name`` is damaged."""
        if name not in self._sound:
            self._sound[name] = self._look(name)
        return self._sound[name]

    def flip(self, name: str, bit: int) -> tuple[str, str]:
        """Flip one bit of a file, look, and make it undone.

        Returns:
            ``opening``, ``audit``, ``harmless`` or ``FAULT``, and why.
        """
        before = self.sound(name)
        content = bytearray(self._state.files[name])
        content[bit // 8] ^= 1 << bit % 8
        try:
            (self._root / name).write_bytes(content)
            return self._judge(name, before)
        except S3TError as error:
            return "opening", f"{type(error).__name__}: {error}"
        finally:
            for one in LEDGER_FILES if name in LEDGER_FILES else (name,):
                self._restore(one)

    def _judge(self, name: str, before: Seen) -> tuple[str, str]:
        seen = self._look(name)
        if dead := before.dead & seen.served.keys():
            return "FAULT", f"dead nodes serve: {sorted(dead)}"
        gone = {row.sample_id for row in before.samples if row.deleted}
        if back := gone & {row.sample_id for row in seen.samples if not row.deleted}:
            return "FAULT", f"deleted samples are taken for living: {sorted(back)}"
        if seen == before:
            return "harmless", ""
        claims = _OF_LEDGER if name in LEDGER_FILES else _OF_NODES
        if name == "config.yaml":
            claims = _OF_CONFIG
        audited = AuditedRun(RunDir(self._root))
        for claim, judge in claims.items():
            found = judged(claim, lambda findings, judge=judge: judge(audited, findings))  # type: ignore[misc]
            if found.status in ("broken", "pending"):
                return "audit", f"{claim}: {found.problems[0]}"
        other = [key for key in ("status", "samples", "served", "answers")
                 if getattr(seen, key) != getattr(before, key)]  # fmt: skip
        return ("FAULT", f"another {', '.join(other)}, and nothing found") if other else (
            "harmless", "")  # fmt: skip

    def _look(self, name: str) -> Seen:
        run = self._run(name)
        if name == run.head_path.name:  # by a service whose config falls back on the base
            read_public_head(run.head_path, self._base)
        forgetting = OpenRun(run)
        try:
            return self._seen(name, run, forgetting)
        finally:
            if forgetting.ledger is not self._ledger:
                forgetting.close()

    def _seen(self, name: str, run: _Run, forgetting: OpenRun) -> Seen:
        ledger, plan = forgetting.ledger, forgetting.plan
        if ledger is not self._ledger or not self._sound:
            forgetting.prove_ledger()
        forgetting.prove()
        _, ends, _ = forgetting.catch_up()
        if not any(ends):
            forgetting.prove_exhausted()
        served = {}
        for end in ends:
            for node in () if end is None else plan.forest.lineage(end.key):
                served[str(node.key)] = str(tensors_digest(run.store.read(node.key)[1]))
        if name == "config.yaml":
            self._check_recipe(forgetting)
        answers: list[Any] = []
        for request, sample in [*self._state.requests.items(), ("another", self._state.living)]:
            told = asdict(delete(forgetting, Deletion([sample], request_id=request, dry_run=True)))
            answers.append({key: told[key] for key in told.keys() - {"seconds"}})
        samples = list(ledger.samples())
        _, _, nodes = survey(forgetting)
        return Seen(
            status=status(forgetting).to_dict(),
            samples=samples,
            served=served,
            answers=answers,
            content=self._content(name, run, ledger, forgetting),
            dead=frozenset(str(node.key) for node, state in nodes if state == "dead"),
        )

    def _content(self, name: str, run: _Run, ledger: Ledger, forgetting: OpenRun) -> Any:
        if name in LEDGER_FILES:
            with ledger.tables() as rows:
                tables = (rows.values, rows.log, rows.requests, rows.slots, rows.nodes,
                          rows.forgotten, rows.samples, rows.copies)  # fmt: skip
                return [[tuple(row) for row in _listed(table())] for table in tables]
        if name == "config.yaml":
            return run.config()
        if name == "plan.json":
            return forgetting.plan.to_json()
        return (self._root / name).read_bytes()

    def _check_recipe(self, forgetting: OpenRun) -> None:
        """As a service that has loaded its base; here once, with the sound config."""
        config = forgetting.config
        if self._model is None:
            self._model = Predictor(forgetting.run, config, forgetting.plan)
        if (config.model, config.data) == (self._config.model, self._config.data):
            self._model._config = config
            self._model._check_recipe()

    def _run(self, name: str) -> _Run:
        config = None if name == "config.yaml" else self._config
        if name in LEDGER_FILES:
            return _Run(self._root, config, None)
        if self._ledger is None:
            self._ledger = RunDir(self._root).ledger()
        return _Run(self._root, config, self._ledger)

    def _restore(self, name: str) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "ledger.db":
            path.with_name("ledger.db-shm").unlink(missing_ok=True)
        if name in self._state.files:
            path.write_bytes(self._state.files[name])
        else:
            path.unlink(missing_ok=True)


class _Run(RunDir):
    """A run whose config is read once, and whose ledger may be open already."""

    def __init__(self, root: Path, config: Config | None, ledger: Ledger | None) -> None:
        self._read, self._opened_ledger = config, ledger
        super().__init__(root)

    def config(self) -> Config:
        if self._read is None:
            self._read = super().config()
        return self._read

    def ledger(self, *, create: bool = False) -> Ledger:
        return self._opened_ledger or super().ledger(create=create)


def _listed(rows: Any) -> Any:
    return sorted(rows.items()) if isinstance(rows, Mapping) else rows
