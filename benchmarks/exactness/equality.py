"""Is a repaired run, byte for byte, the run that never saw the deleted samples?

    python -m benchmarks.exactness.equality [--output DIR] [--quick]

For each salt: train the digits demo, delete random samples one request each, repair. Then train
runs from scratch without those samples, each spread another way, and compare all node files. The
base is made and adapted anew in each.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.exactness import OUTPUT
from benchmarks.exactness.runs import delete, digits, stream
from benchmarks.reports import Report, main
from s3t.config import dump_config
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.retrain import Compared, compare, from_scratch
from s3t.training.work.train import train

SALTS, DELETIONS = ("digits", "second", "third"), 20
WAYS = {
    "1 worker, grouped": {"workers": 1},
    "1 worker, alone": {"workers": 1, "group_bytes": 1},
    "2 workers, grouped": {"workers": 2},
    "2 workers, alone": {"workers": 2, "group_bytes": 1},
}
"""How a run from scratch is trained; the repaired run has two workers, and groups."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Compare, print; returns what the JSON holds."""
    report = Report("equality", output)
    folder = Path(tempfile.mkdtemp(prefix="s3t-equality-"))
    try:
        found = [_salt(folder, salt, quick) for salt in SALTS[: 1 if quick else None]]
    finally:
        shutil.rmtree(folder)
    header = ["salt", "deleted", "trained again", "nodes", *found[0]["ways"]]
    rows = [
        [one["salt"], one["deleted"], one["repaired"], one["nodes"]]
        + [f"{same} the same" for same in one["ways"].values()]
        for one in found
    ]
    print(table(header, rows))
    equal = all(same == one["nodes"] for one in found for same in one["ways"].values())
    print("every node file is equal, byte for byte" if equal else "SOME NODES DIFFER")
    return report.finish({"salts": found, "equal": equal})


def _salt(folder: Path, salt: str, quick: bool) -> dict[str, Any]:
    config = digits(folder / salt, salt, quick, {"workers": 2})
    train(config)
    existing = RunDir(config.run_dir)
    gone = stream(existing, DELETIONS, f"equality {salt}")
    delete(existing, gone)
    repaired = train(config, replan=Replan())
    nodes = len(existing.store.keys())
    found: dict[str, int] = {}
    for way, training in WAYS.items():
        other = folder / f"{salt}-scratch"
        compared = from_scratch(existing, other, training)
        found[way] = _told(salt, way, compared)
        shutil.rmtree(other)
    found["2 processes"] = _processes(folder, salt, existing)
    shutil.rmtree(config.run_dir)
    return {
        "salt": salt,
        "deleted": len(gone),
        "repaired": repaired.trained,
        "nodes": nodes,
        "ways": found,
    }


def _processes(folder: Path, salt: str, existing: RunDir) -> int:
    """From scratch by two processes of accelerate, started as a user would."""
    import subprocess

    from s3t.training.prepare.prepare import prepare

    other = folder / f"{salt}-processes"
    config = existing.config().model_copy(update={"output": str(other)})
    prepare(config, _cpu(), without=existing.gone())
    path = folder / "processes.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "s3t", "train", str(path), "--num_processes", "2", "--cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    same = _told(salt, "2 processes", compare(existing, RunDir(other)))
    shutil.rmtree(other)
    return same


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def _told(salt: str, way: str, compared: Compared) -> int:
    off = len(compared.different) + len(compared.only_here) + len(compared.only_there)
    print(
        f"{time.strftime('%H:%M:%S')}  {salt}, {way}: {compared.same} equal, {off} not", flush=True
    )
    return compared.same


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
