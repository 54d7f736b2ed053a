"""How long ``s3t train`` takes to its first optimizer step, what it loads for that, and its memory.

    fresh     a new run: data, base, public head, plan
    resumed   the same command again, with every node missing
    repair    after a deletion: the run is planned again

    python -m benchmarks.engine --only startup

Each is a process of its own, with one worker, over a BERT of 100 M parameters that is made here. It
ends at the first step of a node. Seconds are from the first import on; those of the CPU tell more
where other processes want the machine too.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environment import environment, table, write_json

__all__ = ["measure", "run"]

CASES = ("fresh", "resumed", "repair")
LARGE = {"hidden": 768, "layers": 14, "heads": 12}
SMALL = {"hidden": 192, "layers": 4, "heads": 4}
ROWS = {"private": 512, "adapt": 128, "validation": 64, "test": 64}


class _FirstStepError(Exception):
    """Ends a training at its first step."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure every case, print and write the figures."""
    folder = output / "startup"
    config = _config(folder, SMALL if quick else LARGE)
    found: dict[str, Any] = {}
    for case in CASES:
        if case == "repair":
            _python("s3t", "deactivate", str(folder / "run"), "--ids", "s7")
        said = _python("benchmarks.engine.startup", "--case", case, str(config))
        found[case] = json.loads(said.splitlines()[-1])
    write_json(output / "startup.json", {"environment": environment(), "cases": found})
    header = [
        "case",
        "seconds",
        "CPU seconds",
        "MiB",
        "models",
        "bases",
        "sources read",
        "rows encoded",
    ]
    columns = ("seconds", "cpu", "peak_mib", "models", "bases", "sources", "encodings")
    rows = [[case, *(one[column] for column in columns)] for case, one in found.items()]
    print(table(header, rows))
    return found


def measure(case: str, path: str) -> dict[str, Any]:
    """Train to the first step in this process; what that took."""
    started = time.perf_counter()
    from s3t.system.pinned import pin

    pin("native")
    from s3t.config import load_config
    from s3t.run import RunDir
    from s3t.training.prepare.replan import Replan
    from s3t.training.work.train import train

    counts = _counted()
    config = load_config(path)
    replan = Replan() if case == "repair" else None
    try:
        train(RunDir(config.run_dir).here() if replan else config, replan=replan)
    except _FirstStepError:
        seconds, cpu = time.perf_counter() - started, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 1), "cpu": round(cpu, 1), "peak_mib": round(peak), **counts}


def _counted() -> Counter[str]:
    """Counts what is loaded from now on, and ends at the first step of a node."""
    from s3t.data import samples
    from s3t.model import loading
    from s3t.model.base import Base
    from s3t.model.inputs.encoders import TextEncoder
    from s3t.training.work.worker_state import WorkerState

    counts: Counter[str] = Counter(models=0, bases=0, sources=0, encodings=0)

    def count(owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            counts[what] += 1
            return plain(*arguments, **named)

        setattr(owner, name, counted)

    count(loading, "build_model", "models")
    count(loading, "_pretrained", "models")
    count(Base, "__init__", "bases")
    count(samples, "read_columns", "sources")
    count(TextEncoder, "encode", "encodings")
    plain: Any = WorkerState.train

    def until_the_first_step(state: Any, keys: Any, on_step: Any = None) -> None:
        def stop(steps: int) -> None:
            raise _FirstStepError

        plain(state, keys, stop)

    setattr(WorkerState, "train", until_the_first_step)  # noqa: B010  (it is typed otherwise)
    return counts


def _config(folder: Path, shape: dict[str, int]) -> Path:
    """A config over made texts, whose run is new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sources = {}
    for name, count in ROWS.items():
        lines = (
            {"id": f"s{number}", "text": f"{name} row {number}", "label": "ab"[number % 2]}
            for number in range(count)
        )
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        sources[name] = {"format": "json", "files": str(path)}
    private = sources.pop("private")
    config = {
        "task": "text-classification",
        "output": str(folder / "run"),
        "data": {
            "private": private,
            "public": sources,
            "columns": {"id": "id"},
            "max_length": 32,
        },
        "model": {"base": "make:bert", "make": shape},
        "partition": {"shards": 2, "slices": 2, "salt": "startup"},
        "stage": {"head": "public", "epochs": 1},
        "training": {"workers": 1},
    }
    path = folder / "startup.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _python(module: str, *words: str) -> str:
    """What a module prints, in a process of its own."""
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        sys.exit("python -m benchmarks.engine --only startup")
