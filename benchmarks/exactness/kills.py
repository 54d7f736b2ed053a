"""kill -9 at random moments of train, deactivate, repair and purge; an audit after each.

    python -m benchmarks.exactness.kills [--output DIR] [--quick]

Each round starts one command in a process of its own and kills its session after a random part of
the time that it takes. Then, with what lies on disk:

- every deletion that was acknowledged (its receipt was printed) is in the ledger,
- no node that would be served has seen a deleted sample, counted from the ids themselves,
- the audit finds nothing broken (a purge may be pending).

Then the same command runs to its end, then a purge, and the audit has to hold whole: nothing dead
is left, nothing is pending. After a few rounds another run is begun.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.exactness import OUTPUT
from benchmarks.exactness.runs import PERSONS, small
from benchmarks.reports import Report, main
from s3t.audit.audit import audit
from s3t.config import dump_config
from s3t.run import RunDir
from s3t.run.opened import OpenRun

KILLS, QUICK = 250, 20
OPERATIONS = ("train", "deactivate", "repair", "purge")
WEIGHTS = (2, 3, 2)
"""How often each of those after ``train`` is killed, relative to the others."""
ROUNDS = 9
"""Commands killed on one run, before another is begun."""


class Zygote:
    """Starts commands without the time that it takes to load torch."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.exactness.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, words: list[str], out: Path) -> int:
        """Begin a command; returns its process."""
        return int(self._ask({"words": words, "out": str(out)})["pid"])

    def wait(self, process: int) -> int:
        """Wait for a command's end; returns its exit code, negative for a signal."""
        return int(self._ask({"wait": process})["code"])

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@dataclass
class Trial:
    """One run under fire, and what is known of it from outside."""

    folder: Path
    zygote: Zygote
    random: random.Random
    number: int
    acknowledged: set[str] = field(default_factory=set)
    asked: int = 0

    def __post_init__(self) -> None:
        self.config = small(self.folder, f"run{self.number}")
        self.path = self.folder / f"run{self.number}.yaml"
        self.path.write_text(dump_config(self.config), encoding="utf-8")
        self.run = RunDir(self.config.run_dir)

    def words(self, operation: str) -> tuple[list[str], str | None]:
        """A command line, and the person that it deletes."""
        root = str(self.run.root)
        if operation == "train":
            return ["train", str(self.path)], None
        if operation != "deactivate":
            return [operation, root], None
        left = sorted({f"p{n:02d}" for n in range(PERSONS)} - self.acknowledged)
        person = self.random.choice(left)
        self.asked += 1
        request = f"r{self.number}-{self.asked}"
        return ["deactivate", root, "--subjects", person, "--request-id", request, "--json"], person

    def complete(self, words: list[str], person: str | None, out: Path) -> None:
        """Run a command to its end."""
        code = self.zygote.wait(self.zygote.start(words, out))
        if code:
            raise AssertionError(f"{' '.join(words)} ended with {code}: {out.read_text()}")
        if person is not None:
            self.acknowledged.add(person)

    def problems(self, when: str, whole: bool) -> list[str]:
        """What is wrong with what lies on disk: nothing may be broken or, if ``whole``, pending."""
        if not self.run.prepared:
            return []
        run = RunDir(self.run.root)
        found = self._served_and_lost(run)
        judged = audit(run.root)
        bad = ("broken", "pending") if whole else ("broken",)
        for claim in judged.claims:
            if claim.status in bad:
                found.append(f"audit {claim.name} {claim.status}: {'; '.join(claim.problems[:3])}")
        named = [f"run {self.number}, {when}: {problem}" for problem in found]
        for problem in named:
            print(problem, flush=True)
        return named

    def _served_and_lost(self, run: RunDir) -> list[str]:
        """Acknowledged deletions that are lost, and served nodes that have seen one."""
        found = []
        with run.ledger() as ledger:
            gone = ledger.deleted.all()
            places = {entry.sample_id: (entry.shard, entry.slice) for entry in ledger.samples()}
        ids = {
            f"s{person[1:]}{number}": person for person in self.acknowledged for number in range(3)
        }
        found += [
            f"{one} of {who} was acknowledged and is lost"
            for one, who in ids.items()
            if one not in gone
        ]
        forgetting = OpenRun(run)
        try:
            _, served, plan = forgetting.catch_up()
        finally:
            forgetting.close()
        left: dict[tuple[int, int], list[str]] = {}
        for one, place in places.items():
            if one not in gone:
                left.setdefault(place, []).append(one)
        for node in filter(None, served):
            for part in node.prefix:
                size = plan.sizes[node.shard][part]
                if size != len(left.get((node.shard, part), [])):
                    found.append(f"node {node.key} is served and has seen a deleted sample")
        return found


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Kill, check, print; returns what the JSON holds."""
    report = Report("kills", output)
    kills = QUICK if quick else KILLS
    folder = Path(tempfile.mkdtemp(prefix="s3t-kills-"))
    zygote = Zygote()
    try:
        found = _rounds(folder, zygote, kills)
    finally:
        zygote.close()
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        [
            name,
            found["killed"].get(name, 0),
            found["finished"].get(name, 0),
            f"{found['seconds'][name]:.2f} s",
        ]
        for name in OPERATIONS
    ]
    print(table(["command", "killed", "finished before", "takes"], rows))
    print(
        f"{sum(found['killed'].values())} kills, {found['acknowledged']} deletions acknowledged in "
        f"{found['runs']} runs; {found['audits']} audits; problems: {len(found['problems'])}"
    )
    return report.finish(found)


@dataclass
class Tally:
    """What came of all rounds."""

    killed: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, 1.0))
    problems: list[str] = field(default_factory=list)
    acknowledged: int = 0
    audits: int = 0
    runs: int = 0


def _rounds(folder: Path, zygote: Zygote, kills: int) -> dict[str, Any]:
    rand, tally = random.Random("kills"), Tally()
    while tally.killed.total() < kills:
        tally.runs += 1
        trial = Trial(folder, zygote, rand, tally.runs)
        while tally.killed["train"] < kills / 4 and _round(trial, "train", tally):
            pass  # killed: once more, until a training gets through
        _complete(trial, "train", tally)
        for operation in rand.choices(OPERATIONS[1:], WEIGHTS, k=ROUNDS):
            if operation != "deactivate":  # something has to be dead for the others
                _complete(trial, "deactivate", tally)
            _round(trial, operation, tally)
            _complete(trial, operation, tally)
            _complete(trial, "purge", tally)
            tally.problems += trial.problems(f"{operation} completed", whole=True)
            tally.audits += 1
        tally.acknowledged += len(trial.acknowledged)
        shutil.rmtree(trial.run.root)
        said = f"{tally.killed.total()} kills, {len(tally.problems)} problems"
        print(f"{time.strftime('%H:%M:%S')}  {said}", flush=True)
    return vars(tally) | {"killed": dict(tally.killed), "finished": dict(tally.finished)}


def _round(trial: Trial, operation: str, tally: Tally) -> bool:
    """Begin a command, kill it at some moment, judge what lies there; whether it was killed."""
    out = trial.folder / "out"
    words, person = trial.words(operation)
    process = trial.zygote.start(words, out)
    time.sleep(trial.random.random() * tally.seconds[operation])
    with suppress(ProcessLookupError, PermissionError):  # it is through, or not in its session yet
        os.kill(process, signal.SIGKILL)
        os.killpg(process, signal.SIGKILL)
    killed = trial.zygote.wait(process) == -signal.SIGKILL
    (tally.killed if killed else tally.finished)[operation] += 1
    if person is not None and _told(out):
        trial.acknowledged.add(person)
    tally.problems += trial.problems(f"{operation} killed", whole=False)
    tally.audits += 1
    return killed


def _complete(trial: Trial, operation: str, tally: Tally) -> None:
    started = time.monotonic()
    words, person = trial.words(operation)
    trial.complete(words, person, trial.folder / "out")
    took = time.monotonic() - started
    tally.seconds[operation] = 0.8 * tally.seconds[operation] + 0.2 * took


def _told(out: Path) -> bool:
    """Whether a receipt was printed whole."""
    try:
        return "request_id" in json.loads(out.read_text())
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
