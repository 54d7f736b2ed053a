"""Nodes per hour by processes, and peak memory by nodes.

    python -m benchmarks.engine.scaling [--output DIR] [--quick]

On a CPU the same nodes are trained by one process, by one with two workers, by two processes of
accelerate, and by two machines: launches of their own that share a folder and nothing else. On
GPUs by one process for each, one to all. Sides alternate; time counts from the first unit handed
out to the last node published, so that loading torch is told apart.

Memory is the sum of what a training's parent and workers had resident at the most. A run of eight
times the nodes has the same rows and the same model, in more shards.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import OUTPUT
from benchmarks.engine.runs import CORES, trained_anew
from benchmarks.engine.tasks import each_task, task_config
from benchmarks.environment import load_average, table
from benchmarks.reports import Report, main, shown, spread
from s3t.config import Config, dump_config
from s3t.run import RunDir
from s3t.training.work.train import train

TASKS = ("vit", "bert")
SHARDS, MORE = 4, 8
"""Of the smaller run of the memory figure, and how many times the nodes the larger one has."""
TRAINING = {"workers": 2, "group_bytes": 2**18}
"""Groups of 7 nodes, which the smaller run fills too: what a group takes is another question."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to spread a training.

    Attributes:
        workers: of each process.
        launches: options of ``s3t train`` of each launch; none: in this very process.
    """

    workers: int
    launches: tuple[str, ...] = ()


MACHINES = tuple(f"--num_machines 2 --num_processes 2 --machine_rank {rank}" for rank in (0, 1))
CPU_SIDES = {
    "1 process": Side(1),
    "1 process × 2 workers": Side(2),
    "2 processes": Side(1, ("--num_processes 2 --cpu",)),
    "2 machines": Side(1, MACHINES),
}


def sides() -> dict[str, Side]:
    """What this machine can be asked."""
    if not torch.cuda.is_available():
        return CPU_SIDES
    found = {"1 GPU": Side(1)}
    for count in range(2, torch.cuda.device_count() + 1):
        found[f"{count} GPUs"] = Side(1, (f"--num_processes {count}",))
    return found


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("scaling", output)
    repeats = 1 if quick else 3
    tasks = each_task(TASKS, quick, lambda name, config, _: _speed(name, config, repeats))
    measured = {name: one for name, one in tasks.items() if "skipped" not in one}
    memory = _memory()
    print(f"\n{_table(measured)}\n\n{_memory_sentence(memory)}")
    result = {"quick": quick, "repeats": repeats, "cores": CORES, "tasks": tasks, "memory": memory}
    return report.finish(result, lambda figure: _draw(figure, measured, memory), (11, 4))


def _speed(name: str, config: Config, repeats: int) -> dict[str, Any]:
    nodes = train(config).nodes  # prepares the run, and warms up
    before = _files(config)
    turns = []
    for _ in range(repeats):
        turn: dict[str, Any] = {"load_average": load_average(), "seconds": {}, "whole": {}}
        for side, how in sides().items():
            started = time.perf_counter()
            seconds = _launched(config, how) if how.launches else _inside(config, how)
            turn["seconds"][side], turn["whole"][side] = seconds, time.perf_counter() - started
            assert _files(config) == before, f"{side} trained other bytes"
        turns.append(turn)
    found = {
        "nodes": nodes,
        "turns": turns,
        "nodes_per_hour": {
            side: spread([3600 * nodes / turn["seconds"][side] for turn in turns])
            for side in sides()
        },
        "whole_seconds": {
            side: spread([turn["whole"][side] for turn in turns]) for side in sides()
        },
    }
    print(f"{name}: {nodes} nodes, the same bytes on every side", flush=True)
    return found


def _inside(config: Config, how: Side) -> float:
    return trained_anew(config, how.workers).nodes


def _launched(config: Config, how: Side) -> float:
    """Seconds from the first claim to the last node, of launches that begin together."""
    run = RunDir(config.run_dir)
    shutil.rmtree(run.store.root)
    training = config.training.model_copy(update={"workers": how.workers})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config.model_copy(update={"training": training})))
        launches = [_start(path, options.split(), Path(folder)) for options in how.launches]
        claims = run.root / ".work" / "claims"
        while not (claims.is_dir() and any(claims.iterdir())):
            if any(launch.poll() for launch in launches):
                break
            time.sleep(0.005)
        started = time.time()
        codes = [launch.wait() for launch in launches]
        if any(codes):
            raise RuntimeError((Path(folder) / "said").read_text())
    return max(path.stat().st_mtime for path in run.store.root.iterdir()) - started


def _start(config: Path, options: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "s3t", "train", str(config), *options]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(words, stdout=said, stderr=said)


def _files(config: Config) -> dict[str, bytes]:
    folder = RunDir(config.run_dir).store.root
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def _memory() -> dict[str, Any]:
    """Peak memory of a run, and of one with several times the nodes over the same rows."""
    found = []
    for shards in (SHARDS, MORE * SHARDS):
        with tempfile.TemporaryDirectory(prefix="s3t-memory-") as folder:
            config = task_config("demo", Path(folder), quick=True)
            assert config.model.adapt is not None
            adapt = config.model.adapt.model_copy(update={"steps": 10})
            changed = {
                "model": config.model.model_copy(update={"adapt": adapt}),
                "partition": config.partition.model_copy(update={"shards": shards}),
                "stage": config.stage.model_copy(update={"epochs": 1}),
                "training": config.training.model_copy(update=TRAINING),
            }
            found.append(_peak(config.model_copy(update=changed), Path(folder)))
    return {"runs": found, "growth": found[1]["peak_mib"] / found[0]["peak_mib"]}


def _peak(config: Config, folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    path.write_text(dump_config(config))
    training = _start(path, [], folder)
    peaks: dict[int, float] = {}
    while training.poll() is None:
        for process in (training.pid, *_children(training.pid)):
            peaks[process] = max(peaks.get(process, 0.0), _resident(process))
        time.sleep(0.02)
    if training.returncode:
        raise RuntimeError((folder / "said").read_text())
    parent = peaks.pop(training.pid)
    run = RunDir(config.run_dir)
    assert len(run.store.keys()) == len(run.plan().forest)
    return {
        "nodes": len(run.plan().forest),
        "parent_mib": parent,
        "workers_mib": sorted(peaks.values()),
        "peak_mib": parent + sum(peaks.values()),
    }


def _children(process: int) -> list[int]:
    try:
        return [
            int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _resident(process: int) -> float:
    """The most that a process had resident so far, in MiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _table(measured: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            name,
            one["nodes"],
            side,
            shown(one["nodes_per_hour"][side], ",.0f"),
            f"{one['nodes_per_hour'][side]['median'] / first:.2f}",
            shown(one["whole_seconds"][side]),
        )
        for name, one in measured.items()
        for first in [next(iter(one["nodes_per_hour"].values()))["median"]]
        for side in one["nodes_per_hour"]
    ]
    header = ("task", "nodes", "side", "nodes per hour", "ratio", "whole command, s")
    return table(header, rows)


def _memory_sentence(memory: dict[str, Any]) -> str:
    few, many = memory["runs"]
    return (
        f"peak resident memory of parent and 2 workers: {few['peak_mib']:.0f} MiB for "
        f"{few['nodes']} nodes, {many['peak_mib']:.0f} MiB for {many['nodes']} "
        f"({100 * (memory['growth'] - 1):+.1f} %)"
    )


def _draw(figure: Any, measured: dict[str, dict[str, Any]], memory: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    names = [*sides()]
    for at, (name, one) in enumerate(measured.items()):
        values = [one["nodes_per_hour"][side]["median"] for side in names]
        places = [number + 0.8 * (at + 0.5) / len(measured) - 0.4 for number in range(len(names))]
        left.bar(places, values, 0.8 / len(measured), label=f"{name}, {one['nodes']} nodes")
    left.set_xticks(range(len(names)), names)
    left.set_ylabel("nodes per hour")
    left.legend()
    for number, found in enumerate(memory["runs"]):
        below = 0.0
        for part, size in (("parent", [found["parent_mib"]]), ("worker", found["workers_mib"])):
            for one in size:
                right.bar(number, one, bottom=below, color="C0" if part == "parent" else "C1")
                below += one
    right.set_xticks((0, 1), [f"{found['nodes']} nodes" for found in memory["runs"]])
    right.set_ylabel("peak resident memory, MiB")
    right.set_title("parent and two workers")


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
