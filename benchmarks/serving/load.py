"""Users and the one who forgets, at the same time: what either notices of the other.

    python -m benchmarks.serving.load [--output DIR] [--quick] [--run DIR]

32 users over keep-alive connections ask for one digit at a time, as fast as they get answers:

    plain       one peft model behind the same app
    quiet       s3t serve, the same base
    forgetting  s3t serve, while 200 deletions arrive, evenly spread over the 60 s, and a repair is
                begun after a third of them (the users go on until it has ended)

The run has 16 shards of 4 slices: with the 4 shards of configs/digits.yaml it would be exhausted
after some 54 random deletions, which is measured as `quiet, 4 shards` for its throughput alone.
Stages are short (1 epoch), so that the repair ends soon. Everything shares the cores: the
service, its users (one process, a few per cent of a core) and the repair's workers.

Each answer carries its view. What an answer may not be:

    failed          any status but 200
    began after     asked after the client had an acknowledgement, of an older view than that
    arrived after   arrived after an acknowledgement, of an older view of which a block had died

An answer that arrives after an acknowledgement, of an older view that lost nothing by it, is right:
these are counted too. Exit code 1 if there is an answer that may not be. With --run a copy of that
run is served in both phases, and the one of 4 shards is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import load_average, quantile, table
from benchmarks.reports import Report
from benchmarks.serving import OUTPUT
from benchmarks.serving.cluster import ROOT, Serving, train
from benchmarks.serving.users import Spec
from s3t.run import RunDir

__all__ = ["Checked", "checked", "run"]

CLIENTS = 32
ENV = {"OMP_NUM_THREADS": "1"}
SHORT = ("stage.epochs=1", "aggregation.on_exhausted=base")
PARTITION = ("partition.shards=16", *SHORT)
WARM_UP = 3.0
LONGEST = 300.0
"""Seconds that the last phase may take until the repair has ended."""


@dataclass(frozen=True)
class Length:
    """How long, and how many."""

    seconds: float
    short: float
    deletions: int


FULL, QUICK = Length(60.0, 30.0, 200), Length(10.0, 5.0, 30)


@dataclass(frozen=True)
class Checked:
    """Answers of a phase joined with the acknowledged deletions.

    Attributes:
        failed: answers that were none.
        began_after: asked after an acknowledgement, of an older view.
        arrived_after: arrived after the acknowledgement of a deletion that killed a block which
            served at their view.
        arrived_harmless: arrived after an acknowledgement, of an older view that it did not hit.
        refused: deletions that were not acknowledged.
    """

    failed: int
    began_after: int
    arrived_after: int
    arrived_harmless: int
    refused: int

    @property
    def sound(self) -> bool:
        """Whether nothing happened that may not happen."""
        return not (self.failed or self.began_after or self.arrived_after or self.refused)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look")
    parser.add_argument("--run", type=Path, help="a digits run to copy instead of training one")
    options = parser.parse_args()
    found = run(options.output, options.quick, options.run)
    return 0 if all(phase["sound"] for phase in found["phases"].values()) else 1


def run(output: Path, quick: bool = False, trained: Path | None = None) -> dict[str, Any]:
    """Measure, print, check; returns what the JSON holds.

    Args:
        output: folder of the JSON.
        quick: for a first look.
        trained: a run of digits that is copied; without it two are trained.
    """
    report, length = Report("load", output), QUICK if quick else FULL
    bodies = questions()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        here = Path(folder)
        quiet = {"quiet": here / "digits"}
        if trained is None:
            train(here / "digits", None, *PARTITION, env=ENV)
            train(here / "four", None, *SHORT, env=ENV)
            quiet = {"quiet, 4 shards": here / "four", **quiet}
        else:
            shutil.copytree(trained, here / "digits")
        with RunDir.existing(here / "digits").ledger() as ledger:
            samples = [str(entry.sample_id) for entry in ledger.samples()]
        phases = {}
        with _plain(here / "digits") as port:
            phases["plain"] = _phase(here, Spec(port, CLIENTS, length.short, 99, bodies))
        for name, kept in quiet.items():
            with _served(kept, here) as port:
                phases[name] = _phase(here, Spec(port, CLIENTS, length.short, 99, bodies))
        ids = random.Random(0).sample(samples, length.deletions)
        with _served(here / "digits", here) as port:
            busy = Spec(
                port,
                CLIENTS,
                length.seconds,
                LONGEST,
                bodies,
                tuple(ids),
                length.seconds / 3,
            )
            phases["forgetting"] = _phase(here, busy)
    result = {"clients": CLIENTS, "length": asdict(length), "phases": phases}
    _print(phases)
    report.finish(result)
    return result


def questions() -> tuple[str, ...]:
    """The public test digits, one to a question."""
    from sklearn.datasets import load_digits

    images = (load_digits().images[-400:] * (255 / 16)).astype(np.uint8)
    return tuple(json.dumps({"rows": [image.tolist()]}, separators=(",", ":")) for image in images)


@contextmanager
def _served(run: Path, folder: Path) -> Iterator[int]:
    """``s3t serve`` of a run; gives its port."""
    serving = Serving(run, ENV, folder / "serve.log")
    try:
        yield serving.port
    finally:
        code = serving.stop()
        serving.kill()  # a repair that has not ended would go on by itself
        if code:
            print(f"s3t serve ended with {code}: {(folder / 'serve.log').read_text()[-2000:]}")


@contextmanager
def _plain(run: Path) -> Iterator[int]:
    """The plain model behind the same app; gives its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.plain", str(run), "0"],
        cwd=ROOT,
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(60)


def _phase(folder: Path, spec: Spec) -> dict[str, Any]:
    """Warm up, ask, and join what was seen."""
    _ask(folder, Spec(spec.port, spec.clients, WARM_UP, 99, spec.bodies))
    load = load_average()
    answers, told = _ask(folder, spec)
    found = checked(answers, told["deletions"])
    busy = answers[(answers[:, 0] - told["started"]) < spec.seconds]
    latency = [float(value) for value in busy[:, 1] - busy[:, 0]]
    repair = told["repair"]
    apart = busy[(busy[:, 1] < repair["began"]) | (busy[:, 0] > repair["seen"])] if repair else busy
    deletions = [entry["acknowledged"] - entry["sent"] for entry in told["deletions"]]
    return {
        "answers": len(answers),
        "answers_a_second": len(busy) / spec.seconds,
        "milliseconds": _quantiles(latency),
        "milliseconds_without_repair": _quantiles([float(v) for v in apart[:, 1] - apart[:, 0]]),
        "deletions": len(deletions),
        "deletion_milliseconds": _quantiles(deletions) if deletions else None,
        "checked": asdict(found),
        "sound": found.sound,
        "refusals": [
            {"status": entry["status"], "code": entry["answer"].get("code")}
            for entry in told["deletions"]
            if entry["status"] != 201
        ],
        "repair": repair and _repaired(repair),
        "views": int(answers[:, 3].max()),
        "load_average_before": load,
    }


def _ask(folder: Path, spec: Spec) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Run the users in a process of their own."""
    words = folder / "spec.json"
    words.write_text(json.dumps(asdict(spec)), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.serving.users", str(words), str(folder / "seen")]
    subprocess.run(command, cwd=ROOT, check=True)
    told = json.loads((folder / "seen.json").read_text(encoding="utf-8"))
    return np.load(folder / "seen.npy"), told


def checked(answers: NDArray[np.float64], deletions: Sequence[dict[str, Any]]) -> Checked:
    """Join answers with the deletions that were acknowledged.

    Args:
        answers: [n, 4]: when asked, when arrived, status, view.
        deletions: in the order in which they were made: ``acknowledged``, ``status``, ``answer``.
    """
    made = [entry for entry in deletions if entry["status"] == 201]
    times = [entry["acknowledged"] for entry in made]
    receipts = [entry["answer"]["receipt"] for entry in made]
    views = [receipt["view"] for receipt in receipts]
    killed = [any(one["before"] != one["after"] for one in r["prefixes"]) for r in receipts]
    began = arrived = harmless = 0
    for asked, got, status, view in answers.tolist():
        if status != 200:
            continue
        known = bisect_left(times, asked)
        began += known > 0 and view < views[known - 1]
        by_then = bisect_left(times, got)
        hits = [killed[at] for at in range(by_then) if views[at] > view]
        arrived += any(hits)
        harmless += bool(hits) and not any(hits)
    failed = int((answers[:, 2] != 200).sum())
    return Checked(failed, began, arrived, harmless, len(deletions) - len(made))


def _repaired(told: dict[str, Any]) -> dict[str, Any]:
    """How the repair went, in short."""
    report = told.get("report") or {}
    return {
        "state": told["state"],
        "seconds": told["seen"] - told["began"],
        "nodes_trained": report.get("trained"),
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: 1000 * quantile(seconds, share) for name, share in shares.items()}


def _print(phases: dict[str, Any]) -> None:
    plain = phases["plain"]["answers_a_second"]
    print(
        table(
            ("phase", "answers/s", "to plain", "p50 ms", "p99 ms", "max ms", "failed"),
            [
                (
                    name,
                    f"{phase['answers_a_second']:.0f}",
                    f"{phase['answers_a_second'] / plain:.2f}",
                    *(f"{phase['milliseconds'][q]:.1f}" for q in ("p50", "p99", "max")),
                    phase["checked"]["failed"],
                )
                for name, phase in phases.items()
            ],
        )
    )
    busy = phases["forgetting"]
    found, took, repair = busy["checked"], busy["deletion_milliseconds"], busy["repair"]
    apart = busy["milliseconds_without_repair"]
    print(
        f"forgetting, but for the repair: p50 {apart['p50']:.1f} ms, p99 {apart['p99']:.1f} ms\n"
        f"{busy['deletions']} deletions, {found['refused']} refused: p50 {took['p50']:.1f} ms, "
        f"p99 {took['p99']:.1f} ms; a repair of {repair['seconds']:.0f} s: {repair['state']}\n"
        f"of {busy['answers']:,} answers meanwhile {found['failed']} failed, "
        f"{found['began_after']} began after an acknowledgement with an older view, "
        f"{found['arrived_after']} arrived after one that had hit them "
        f"({found['arrived_harmless']} after one that had not)"
    )


if __name__ == "__main__":
    sys.exit(main())
