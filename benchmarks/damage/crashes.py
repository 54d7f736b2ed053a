"""A crash, and a failing disk, at every sync, rename and removal of a script of deletions.

    python -m benchmarks.damage --only crashes [--output DIR] [--quick]

    delete ─► delete ─► purge ─► plan and train again ─► delete ─► purge
        at each call:  crash, three ways │ the call fails (EIO), and the script goes on

After each: every deletion acknowledged by then is in the ledger, nothing that serves has seen one,
the ledger proves itself, no claim of the audit that needs no model is broken; what a purge has told
as gone is not there; and the run can be deleted from, trained and purged on. What the disk loses is
said in ``tests.harness.damage.shim``; a crash after which all is there is a kill -9. Skipped where
there is no C compiler.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.reports import Report
from s3t.errors import S3TError
from s3t.ledger import Deletion
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from s3t.run.purge import purge
from tests.harness.damage.checked import audited, in_a_process, unheld
from tests.harness.damage.made import make_run, seen_by, train_again
from tests.harness.damage.shim import COMPILER, Disk, Watched, compiled

__all__ = ["run"]

_SAMPLES = 200
_SCRIPT = ("s00003", "s00010", "purge", "train", "s00021", "s00030", "purge")
_WAYS = ("strict", "names", "kill")


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Crash and fail, and print and write the table."""
    report = Report("crashes", output)
    if COMPILER is None:
        print("skipped: there is no C compiler to make the shim with")
        return report.finish({"skipped": "no C compiler"})
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        words = [sys.executable, "-m", "benchmarks.damage.crashes", folder, str(int(quick))]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        subprocess.run(words, check=True, env=environment)
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text("utf-8"))
    names = ("what", "points", "deletions acknowledged by then", "problems")
    print(table(names, [[str(value) for value in row] for row in result["rows"]]))
    return report.finish(result)


class _Trial:
    """The script on a fresh run, watched."""

    def __init__(self, folder: Path, made: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
        self.run = RunDir(folder / "run")
        self.folder, self.points = folder, 0
        self.acknowledged: list[str] = []
        self.purged: list[str] = []
        self.refused: list[str] = []

    def go(self, at_point: Callable[[str], bool], synced: Callable[[Path], None]) -> int:
        """Do the script; returns its exit code."""

        def asked(what: str, path: str) -> bool:
            if not path.startswith(str(self.folder)):
                return True
            if what == "synced":
                synced(Path(path))
                return True
            self.points += 1
            return at_point(what)

        return Watched(lambda tell: _script(self.run, tell)).go(asked, self._told)

    def _told(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        if what == "purged":
            self.purged = list(self.acknowledged)
        else:
            (self.acknowledged if what == "deleted" else self.refused).append(rest)


def _script(run: RunDir, tell: Callable[[str], None]) -> None:
    """The steps; one that is refused is told, and the next one taken."""
    for number, step in enumerate(_SCRIPT):
        try:
            if step == "purge":
                purge(run)
                tell("purged")
            elif step == "train":
                train_again(run)
            else:
                forgetting = OpenRun(run)
                try:
                    delete(forgetting, Deletion([step], request_id=f"step {number}"))
                    tell(f"deleted {step}")
                finally:
                    forgetting.close()
        except (S3TError, OSError) as error:
            tell(f"refused {step}: {' '.join(str(error).split())}")


def _held(run: RunDir, acknowledged: list[str], purged: list[str]) -> list[str]:
    problems = unheld(run, acknowledged) + audited(run, pending=False)
    problems += _left_of(run, purged)
    for number, step in enumerate(_SCRIPT):  # all of it again: what was done is not done twice
        if step == "train":
            train_again(run)
        elif step == "purge":
            purge(run)
        else:
            forgetting = OpenRun(run)
            delete(forgetting, Deletion([step], request_id=f"step {number}"))
            forgetting.close()
    everyone = [step for step in _SCRIPT if step.startswith("s0")]
    return problems + unheld(run, everyone) + audited(run, pending=True)


def _left_of(run: RunDir, purged: list[str]) -> list[str]:
    """Nodes that lie there and have seen what was told as purged."""
    plan = run.plan()
    there = [node.key for node in plan.forest if run.store.has(node.key)]
    found = ((key, seen_by(run, plan, key) & set(purged)) for key in there)
    return [f"node {key} lies there after the purge of {sorted(of)}" for key, of in found if of]


class _All:
    """All crashes, then all failures."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.folder, self.step = folder, 11 if quick else 1
        self.made = folder / "made"
        self.made.mkdir()
        make_run(self.made / "run", _SAMPLES, shards=2, slices=2)
        self.counts, self.calls = Counter[tuple[str, str]](), Counter[str]()
        self.problems: list[str] = []

    def crashes(self) -> int:
        """A crash at every point, in each way; returns how many points there are."""
        trial = _Trial(self.folder / "trial", self.made)
        disk = Disk(trial.folder)

        def crash(what: str) -> bool:
            self.calls[what] += 1
            if trial.points % self.step == 0:
                for way in _WAYS:
                    image = self.folder / "image"
                    shutil.rmtree(image, ignore_errors=True)
                    if way == "kill":
                        shutil.copytree(trial.folder, image)
                    else:
                        disk.crash(image, names_too=way == "strict")
                    self._look(f"crash, {way}", what, RunDir(image / "run"), trial)
            return True

        code = trial.go(crash, disk.sync)
        assert code == 0 and not trial.refused, trial.refused
        return trial.points

    def failures(self, points: int) -> None:
        """The script as often as there are points; at each, the call fails once."""
        for number in range(1, points + 1, self.step):
            trial = _Trial(self.folder / "trial", self.made)
            failed = ""

            def fail(what: str, at: int = number, of: _Trial = trial) -> bool:
                nonlocal failed
                failed = what if of.points == at else failed
                return of.points != at

            if trial.go(fail, lambda path: None):
                self.problems.append(f"point {number}, {failed}: an error that is not ours")
            self._look("failure", failed, trial.run, trial)

    def _look(self, way: str, what: str, run: RunDir, trial: _Trial) -> None:
        self.counts[way, "points"] += 1
        self.counts[way, "acknowledged"] += len(trial.acknowledged)
        known, purged = list(trial.acknowledged), list(trial.purged)
        for problem in in_a_process(lambda: _held(run, known, purged), self.folder / "looked"):
            print(f"{way}, point {trial.points}, {what}: {problem[:900]}", flush=True)
            self.problems.append(f"{way}, point {trial.points}, {what}: {problem}")
            self.counts[way, "problems"] += 1

    def result(self, seconds: float) -> dict[str, Any]:
        """As JSON values."""
        ways = [*(f"crash, {way}" for way in _WAYS), "failure"]
        return {
            "seconds": round(seconds, 1),
            "calls": dict(self.calls),
            "rows": [
                [way, *(self.counts[way, what] for what in ("points", "acknowledged", "problems"))]
                for way in ways
            ],
            "what_did_not_hold": self.problems,
        }


def _main(folder: Path, quick: bool) -> None:
    """What runs with the shim loaded."""
    import torch

    torch.set_num_threads(1)
    logging.disable()
    started = time.perf_counter()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as inner:
        every = _All(Path(inner), quick)
        every.failures(every.crashes())
        result = every.result(time.perf_counter() - started)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2] == "1")
