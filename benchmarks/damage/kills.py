"""kill -9 among processes that delete, purge, train and serve on one ledger, and what holds then.

    python -m benchmarks.damage --only kills [--output DIR] [--quick]

    two deleters ──ids, once acknowledged──► a file ──► after every three kills: all of them are
    a trainer that purges in between                    deleted, nothing that serves has seen one,
    two readers, each answer held against that file     the ledger proves itself, the audit holds

Processes are forks of one that has loaded everything, so kills fall upon their work. The run is
made up but for its weights (``made``): a plan and 48 nodes are written in tenths of a second. Kills
of the commands with true training are in ``benchmarks.exactness.kills``.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.reports import Report
from s3t.errors import IntegrityError, S3TError
from s3t.ledger import Deletion
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from s3t.run.purge import purge
from tests.harness.damage.checked import audited, in_a_process, served_dead, unheld
from tests.harness.damage.made import make_run, train_again

__all__ = ["run"]

_KILLS, _QUICK, _ROUND = 1000, 40, 50
_SAMPLES = 1500
_AT_ONCE = 3
_AUDIT_EVERY = 4
_LATEST_SECONDS = 0.12


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Kill, look, and print and write the table."""
    import torch

    torch.set_num_threads(1)
    report = Report("kills", output)
    logging.disable()
    found, problems, started = Counter[str](), [], time.perf_counter()
    for number in range(0, _QUICK if quick else _KILLS, _ROUND):
        count = min(_ROUND, (_QUICK if quick else _KILLS) - number)
        with tempfile.TemporaryDirectory() as folder:
            told = _Round(Path(folder), number).go(count)
        problems += told.problems
        found += told.found
    seconds = time.perf_counter() - started
    names = ("kills", *_ROLES, "deletions acknowledged", "purges", "plans", "answers looked at",
             "audits", "problems")  # fmt: skip
    print(table(("what", "times"), [[name, str(found[name])] for name in names]))
    return report.finish(
        {
            "seconds": round(seconds, 1),
            **{name: found[name] for name in names},
            "what_did_not_hold": problems,
        }
    )


class _Round:
    """Some kills on one run."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.run = make_run(folder / "run", _SAMPLES)
        self.found, self.problems = Counter[str](), list[str]()
        self._files = {name: folder / name for name in ("acknowledged", "told", "wrong")}
        for path in self._files.values():
            path.touch()

    def go(self, kills: int) -> _Round:
        """Kill so often; then train, purge, and audit once more."""
        working = {self._start(role): role for role in _ROLES for _ in range(_ROLES[role][1])}
        try:
            for number in range(0, kills, _AT_ONCE):
                killed = []
                for _ in range(min(_AT_ONCE, kills - number)):
                    time.sleep(self.random.uniform(0, _LATEST_SECONDS))
                    victim = self.random.choice(sorted(working))
                    _kill(victim)
                    killed.append(working.pop(victim))
                self.found.update(["kills"] * len(killed) + killed)
                self._look(audit=number % (_AT_ONCE * _AUDIT_EVERY) == 0)
                working |= {self._start(role): role for role in killed}
        finally:
            for one in working:
                _kill(one)
        self._end()
        return self

    def _look(self, audit: bool) -> None:
        acknowledged = self._lines("acknowledged")
        self._hold(lambda: unheld(self.run, acknowledged))
        if audit:
            self.found["audits"] += 1
            self._hold(lambda: audited(self.run, pending=False))

    def _end(self) -> None:
        def finish() -> list[str]:
            train_again(self.run)
            purge(self.run)
            return audited(self.run, pending=True)

        self._look(audit=True)
        self._hold(finish)
        self.found["audits"] += 1
        self.problems += self._lines("wrong")
        self.found.update(self._lines("told"))
        self.found["deletions acknowledged"] += len(self._lines("acknowledged"))
        self.found["problems"] = len(self.problems)

    def _hold(self, look: Callable[[], list[str]]) -> None:
        for problem in in_a_process(look, self.folder / "looked"):
            print(f"DOES NOT HOLD: {problem[:600]}", flush=True)
            self.problems.append(problem)

    def _lines(self, name: str) -> list[str]:
        return self._files[name].read_text(encoding="utf-8").splitlines()

    def _start(self, role: str) -> int:
        seed = self.random.random()
        child = os.fork()
        if child:
            return child
        try:
            worker = _Worker(self.run, self._files, random.Random(seed))
            getattr(worker, _ROLES[role][0])()
        finally:
            os._exit(1)


class _Worker:
    """What runs until it is killed. A line in a file is written whole, by one call."""

    def __init__(self, run: RunDir, files: dict[str, Path], chance: random.Random) -> None:
        self.run, self.random = run, chance
        self._files = {name: os.open(path, os.O_WRONLY | os.O_APPEND)
                       for name, path in files.items()}  # fmt: skip
        self._acknowledged = files["acknowledged"]

    def delete(self) -> None:
        """Delete samples, one request after another, and write down what is acknowledged."""
        forgetting: OpenRun | None = None
        while True:
            try:
                forgetting = forgetting or OpenRun(self.run)
                one = f"s{self.random.randrange(_SAMPLES):05}"
                delete(forgetting, Deletion([one]))
                self._write("acknowledged", one)
            except BaseException as error:
                self._wrong("delete", error)
            time.sleep(self.random.uniform(0, 0.04))

    def keep(self) -> None:
        """Plan and train again, and purge, in turn."""
        while True:
            for name, work in (("purges", purge), ("plans", train_again)):
                try:
                    work(self.run)
                    self._write("told", name)
                except BaseException as error:
                    self._wrong(name, error)
                time.sleep(self.random.uniform(0, 0.04))

    def serve(self) -> None:
        """Answer: what serves at a view, if that view is still in force when its nodes are read."""
        forgetting: OpenRun | None = None
        while True:
            try:
                forgetting = forgetting or OpenRun(self.run)
                forgetting.prove_ledger()
                known = set(self._acknowledged.read_text(encoding="utf-8").splitlines())
                problems, view = served_dead(forgetting, known), forgetting.catch_up()[0]
                for end in forgetting.catch_up()[1]:
                    for node in () if end is None else forgetting.plan.forest.lineage(end.key):
                        self.run.store.read(node.key)
                if forgetting.ledger.view() == view:
                    self._write("told", "answers looked at")
                    for problem in problems:
                        self._write("wrong", f"answered: {problem}")
            except IntegrityError as error:
                if forgetting is None or not self._moved(forgetting):
                    self._wrong("serve", error)
                forgetting = None  # what it read was replaced or purged meanwhile
            except BaseException as error:
                self._wrong("serve", error)
            time.sleep(self.random.uniform(0, 0.02))

    def _moved(self, forgetting: OpenRun) -> bool:
        with suppress(S3TError):
            before = forgetting.known.view
            return forgetting.ledger.view() != before
        return False

    def _wrong(self, what: str, error: BaseException) -> None:
        refused = isinstance(error, S3TError) and not isinstance(error, IntegrityError)
        if not refused:
            words = " ".join(f"{what}: {type(error).__name__}: {error}".split())
            self._write("wrong", words)

    def _write(self, name: str, line: str) -> None:
        os.write(self._files[name], f"{line}\n".encode())


_ROLES = {"deleters": ("delete", 2), "keepers": ("keep", 1), "readers": ("serve", 2)}
"""Methods of ``_Worker``, and how many processes at a time."""


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
