"""Do nodes have the same bytes on this machine, on emulated others, and does a run outlive one?

    python -m benchmarks.exactness.machines [--output DIR] [--quick]

Other machines are emulated by the switches with which MKL and ATen choose their kernels; each is a
process of its own. Three tables:

    cells    nodes of every family, type, width, batch and part of a batch (``cells``) alone, in
             groups, and without a row of the private set: how many have other bytes
    keys     what a training of the digits demo gets under each: the environment, and how many of
             its nodes have the key and the bytes that they have natively
    lives    a run begun natively, repaired under another, repaired natively again: what each
             repair trained, and what the audit says
    cost     seconds that the nodes of the demo, a BERT and a real Llama take, natively and with
             portable arithmetic, one worker each, in turns
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.exactness import OUTPUT
from benchmarks.exactness.runs import TINY, stream
from benchmarks.reports import Report, main
from s3t.run import RunDir
from s3t.system.pinned import switches

__all__ = ["run"]

ROOT = Path(__file__).parents[2]
MACHINES: Mapping[str, Mapping[str, str]] = {
    "native": {},
    "MKL_CBWR=AVX2": {"MKL_CBWR": "AVX2"},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "ATEN_CPU_CAPABILITY=avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "portable": {},
}
OTHER = {"MKL_CBWR": "COMPATIBLE"}
LIVES: Sequence[tuple[str, Mapping[str, str]]] = (
    ("elsewhere", OTHER),
    ("here again", {}),
    ("elsewhere again", OTHER),
)
TURNS = 3


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print; returns what the JSON holds."""
    report = Report("machines", output)
    folder = Path(tempfile.mkdtemp(prefix="s3t-machines-"))
    try:
        found = {
            "cells": _cells(quick),
            "keys": _keys(folder, quick),
            "lives": _lives(folder, quick),
            "cost": _cost(folder, quick),
        }
    finally:
        shutil.rmtree(folder)
    return report.finish(found)


def _cells(quick: bool) -> dict[str, Any]:
    found = {}
    for machine, environment in MACHINES.items():
        words = ["portable" if machine == "portable" else "native"]
        if quick or machine != "native":  # the whole grid where people train
            words.append("--quick")
        said = _python(["-m", "benchmarks.exactness.cells", *words], environment)
        found[machine] = json.loads(said.splitlines()[-1])
    header = [
        "environment",
        "cells",
        "nodes",
        "other bytes in a group",
        "other bytes without a row",
    ]
    header += ["cells node by node", "cells row by row"]
    names = ("cells", "nodes", "in_a_group", "without_a_row", "one_by_one", "row_by_row")
    print(table(header, [[m, *(one[name] for name in names)] for m, one in found.items()]))
    return found


def _keys(folder: Path, quick: bool) -> list[dict[str, Any]]:
    rows, first = [], dict[str, bytes]()
    for number, (machine, environment) in enumerate(MACHINES.items()):
        run = folder / f"keys-{number}"
        portable = ["training.arithmetic=portable"] if machine == "portable" else []
        _train(run, environment, [*_shape(quick), *portable])
        nodes = {path.name: path.read_bytes() for path in (run / "nodes").iterdir()}
        first = first or nodes
        (environment_of_run,) = RunDir(run).plan().environments
        rows.append(
            {
                "machine": machine,
                "environment": environment_of_run[:12],
                "nodes": len(nodes),
                "native_keys": len(nodes.keys() & first.keys()),
                "native_bytes": sum(first.get(name) == there for name, there in nodes.items()),
            }
        )
    header = ["environment", "its digest", "nodes", "with a native key", "with native bytes"]
    print(f"\n{table(header, [list(row.values()) for row in rows])}")
    return rows


def _lives(folder: Path, quick: bool) -> list[dict[str, Any]]:
    run, rows = folder / "lives", []
    _train(run, {}, _shape(quick))
    for where, environment in LIVES:
        directory = RunDir(run)
        (one,) = stream(directory, 1, where)
        _s3t(["deactivate", str(run), "--ids", one], {})
        before = _stamps(run)
        said = json.loads(_s3t(["repair", str(run), "--json"], environment))
        after = _stamps(run)
        lived = before.keys() & after.keys()
        audited = json.loads(_s3t(["audit", str(run), "--retrain", "all", "--json"], {}))
        claims = {claim["name"]: claim for claim in audited["claims"]}
        rows.append(
            {
                "repaired": where,
                "trained": said["trained"],
                "lived": len(lived),
                "written_again": sum(before[name] != after[name] for name in lived),
                "audit": "holds" if audited["holds"] else "BROKEN",
                "compared": claims["E2"]["checked"].split("; ")[-1],
            }
        )
    header = ["repaired", "trained", "lived", "written again", "audit", "compared here"]
    print(f"\n{table(header, [list(row.values()) for row in rows])}")
    return rows


def _cost(folder: Path, quick: bool) -> list[dict[str, Any]]:
    rows = []
    for task in ("demo", "bert", "stories260k"):
        seconds: dict[str, list[float]] = {"native": [], "portable": []}
        for _ in range(1 if quick else TURNS):
            for arithmetic, times in seconds.items():
                said = _python(
                    ["-m", "benchmarks.exactness.timed", arithmetic, task, str(folder)], {}
                )
                timed = json.loads(said.splitlines()[-1])
                if "skipped" in timed:
                    print(f"{task}: {timed['skipped']}")
                    break
                times.append(timed["seconds"])
        if all(seconds.values()):
            pairs = zip(seconds["portable"], seconds["native"], strict=True)
            ratio = statistics.median(slow / fast for slow, fast in pairs)
            medians = {name: round(statistics.median(times), 1) for name, times in seconds.items()}
            rows.append({"task": task, **medians, "ratio": round(ratio, 2)})
    header = ["task", "native, s", "portable, s", "portable / native"]
    print(f"\n{table(header, [list(row.values()) for row in rows])}")
    return rows


def _shape(quick: bool) -> list[str]:
    return [*TINY] if quick else ["stage.epochs=2", "partition.shards=2"]


def _train(run: Path, environment: Mapping[str, str], words: Sequence[str]) -> None:
    config = str(ROOT / "configs" / "digits.yaml")
    _s3t(["train", config, f"output={run}", "training.workers=1", *words], environment)


def _stamps(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (run / "nodes").iterdir()}


def _s3t(words: Sequence[str], environment: Mapping[str, str]) -> str:
    return _python(["-m", "s3t", *words], environment)


def _python(words: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a process says whose switches are these alone."""
    plain = {name: value for name, value in os.environ.items() if name not in switches()}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
