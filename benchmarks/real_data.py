"""S3T on text that nobody here invented: MiniLM on banking77, stories260k on tinyshakespeare.

    python -m benchmarks.real_data [--quick] [--only banking77|tinyshakespeare]

Each data set is trained three ways from the one config: S3T; SISA of the same shards and slices
with one sequence; one LoRA fine-tune of all private data. Then the same streams of random requests
(a sample of banking77, a speaker of tinyshakespeare; each stream on its own copy of the run) are
forgotten one after another, and the public test data is evaluated before and after 5, 10 and 20.
The base alone is what a run answers with when all has been forgotten: MiniLM with a head trained on
the public rows, or the untouched language model.

Everything goes through what a user has: ``s3t train``, ``s3t samples``, ``S3T.load``,
``deactivate``, ``evaluate``. Runs lie in runs/benchmarks; a killed benchmark goes on where it was,
and figures that are already measured of the same plan are not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import environment, load_average, median, table, write_json
from benchmarks.prepared_data import ROOT, prepare, shared_data

if TYPE_CHECKING:
    from s3t import S3T

__all__ = ["main"]

CHECKPOINTS = (5, 10, 20)
STREAMS = 3
RUNS = Path("runs/benchmarks")
QUICK = (
    "data.private.split=" + "+".join(f"train[{at}%:{at + 1}%]" for at in range(0, 100, 5)),
    "stage.epochs=1",
)
ONE_SEQUENCE = (
    "stage.isolation=snapshot",
    "sequences.strategy=cyclic",
    "sequences.explicit=null",
    "sequences.budget=1",
)
METHODS: Mapping[str, tuple[str, ...]] = {
    "s3t": (),
    "sisa": ONE_SEQUENCE,
    "full": (*ONE_SEQUENCE, "partition.shards=1", "partition.slices=1"),
}
LABELS = {"s3t": "S3T", "sisa": "SISA, one sequence", "full": "full LoRA fine-tune"}


@dataclass(frozen=True)
class Task:
    """A data set and what a request names in it."""

    name: str
    unit: str
    metric: str


TASKS = (
    Task("banking77", "sample", "accuracy"),
    Task("tinyshakespeare", "subject", "perplexity"),
)


class Measured:
    """A run and the figures that were measured of it, kept beside it and bound to its plan."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._path = run.with_name(f"{run.name}.measured.json")
        self.values: dict[str, Any] = {}
        if self._path.is_file():
            self.values = json.loads(self._path.read_text(encoding="utf-8"))

    def train(self, config: Path, overrides: Sequence[str]) -> None:
        """Train what is missing, and add up the time of it."""
        started, load, before_cpu = time.perf_counter(), load_average(), os.times()
        report = _train(config, self.run, overrides)
        plan = json.loads((self.run / "plan.json").read_text(encoding="utf-8"))["digest"]
        if self.values.get("plan") not in (None, plan):
            self.values = {}
        if report["trained"]:
            before = self.values.get("training", {"seconds": 0.0, "cpu_seconds": 0.0, "nodes": 0})
            cpu = sum(os.times()[2:4]) - sum(before_cpu[2:4])  # of ended children
            self.values["training"] = {
                "seconds": round(before["seconds"] + time.perf_counter() - started, 1),
                "cpu_seconds": round(before["cpu_seconds"] + cpu, 1),
                "nodes": before["nodes"] + report["trained"],
                "workers": report["workers"],
                "load_average": [load, load_average()],
            }
        self.keep("plan", plan)

    def keep(self, name: str, value: Any) -> None:
        """Write a figure down."""
        self.values[name] = value
        write_json(self._path, self.values)


def main() -> int:
    """Run the benchmark."""
    arguments = _arguments()
    shared = shared_data()
    if shared is None:
        print("real_data: skipped, there is no ../shared/data (set S3T_SHARED_DATA to its place)")
        return 0
    os.chdir(ROOT)
    _quiet()
    prepare(shared, Path("runs/data"))
    if arguments.prepare:
        print("real_data: prepared what the configs read below runs/data")
        return 0
    output = arguments.output or RUNS / (
        "real_data_quick.json" if arguments.quick else "real_data.json"
    )
    tasks = [task for task in TASKS if arguments.only in (None, task.name)]
    started = time.perf_counter()
    result = {"environment": environment(), "quick": arguments.quick, "tasks": {}}
    for task in tasks:
        result["tasks"][task.name] = _measure(task, arguments.quick, shared)
        result["seconds"] = round(time.perf_counter() - started, 1)
        write_json(output, result)
        print(f"\n{task.name}\n\n{_table(task, result['tasks'][task.name])}\n", flush=True)
    _draw(result, tasks, output.with_suffix(".png"))
    print(f"{output} and {output.with_suffix('.png')}, {result['seconds']:.0f} s in all")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.real_data", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="a fifth of the data, one stream")
    parser.add_argument("--only", choices=[task.name for task in TASKS])
    parser.add_argument("--prepare", action="store_true", help="only write the files of runs/data")
    parser.add_argument("--output", type=Path, help="JSON; the picture goes beside it")
    return parser.parse_args()


def _quiet() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["OMP_NUM_THREADS"] = "1"  # a process for each core is faster than two threads


# ── measuring ────────────────────────────────────────────────────────────────────────────────


def _measure(task: Task, quick: bool, shared: Path) -> dict[str, Any]:
    config = Path("configs") / f"{task.name}.yaml"
    runs: dict[str, Measured] = {}
    for method, overrides in METHODS.items():
        _say(f"{task.name}: {LABELS[method]}")
        runs[method] = Measured(RUNS / f"{task.name}-{method}{'-quick' if quick else ''}")
        runs[method].train(
            config, [*_placed(config, shared), *(QUICK if quick else ()), *overrides]
        )
    if "retrain" not in runs["s3t"].values:
        _say(f"{task.name}: one shard of S3T again")
        runs["s3t"].keep("retrain", _retrain_shard(runs["s3t"].run, config, quick, shared))
    _say(f"{task.name}: evaluating, and forgetting")
    _in_parallel(runs, _jobs(task, runs, 1 if quick else STREAMS))
    return {method: run.values for method, run in runs.items()}


Job = tuple[str, str, Callable[..., dict[str, Any]], tuple[Any, ...]]
"""The method, the name of the figure, and the call that measures it."""


def _jobs(task: Task, runs: Mapping[str, Measured], streams: int) -> list[Job]:
    """What is measured of trained runs, the longest first."""
    everyone = _requests(task, runs["s3t"].run)
    jobs: list[Job] = []
    for seed in range(streams):
        stream = random.Random(f"{task.name} {seed}").sample(everyone, max(CHECKPOINTS))
        for method in ("sisa", "s3t"):
            jobs.append((method, f"stream {seed}", _forget, (task, runs[method].run, stream, seed)))
    jobs += [(method, "before", _before, (runs[method].run,)) for method in METHODS]
    return [*jobs, ("s3t", "base", _base_alone, (task, runs["s3t"].run, everyone))]


def _in_parallel(runs: Mapping[str, Measured], jobs: Sequence[Job]) -> None:
    """Measure what has not been, in a process of one thread for each core."""
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = {
            pool.submit(call, *arguments): (method, name)
            for method, name, call, arguments in jobs
            if name not in runs[method].values
        }
        for done in as_completed(found):
            method, name = found[done]
            runs[method].keep(name, done.result())
            _say(f"{runs[method].run.name}: {name}")


def _placed(config: Path, shared: Path) -> list[str]:
    """Overrides for a data folder that is not where the configs say."""
    if shared.resolve() == (ROOT / "../shared/data").resolve():
        return []
    import yaml

    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    named = {
        "data.private.files": tree["data"]["private"]["files"],
        "model.base": tree["model"]["base"],
    }
    return [
        f"{key}={shared}/{value.removeprefix('../shared/data/')}"
        for key, value in named.items()
        if value.startswith("../shared/data/")
    ]


def _train(config: Path, run: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """``s3t train --json``: its report."""
    words = ["train", str(config), f"output={run}", *overrides, "--json"]
    command = [sys.executable, "-m", "s3t", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"real_data: s3t {' '.join(words)} ended with exit code {done.returncode}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _requests(task: Task, run: Path) -> list[str]:
    """What may be forgotten: every sample id, or every subject."""
    command = [sys.executable, "-m", "s3t", "samples", str(run), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted({row["subject" if task.unit == "subject" else "sample_id"] for row in rows})


def _before(run: Path) -> dict[str, Any]:
    from s3t import S3T

    with S3T.load(run) as service:
        return _figures(service)


def _figures(service: S3T) -> dict[str, Any]:
    """The metric, and how much of the run serves."""
    started = time.perf_counter()
    found, status = service.evaluate(), service.status()
    return {
        "value": found.value,
        "test_rows": found.samples,
        "deleted": status.deleted,
        "prefixes": [len(shard.prefix) for shard in status.shards],
        "exhausted": status.exhausted,
        "evaluate_seconds": round(time.perf_counter() - started, 2),
    }


def _forget(task: Task, run: Path, stream: Sequence[str], seed: int) -> dict[str, Any]:
    """One stream of requests on a copy of the run, evaluated at the checkpoints."""
    from s3t import S3T

    found: dict[str, Any] = {"seconds": []}
    copy = _copied(run, f"stream-{seed}")
    with S3T.load(copy) as service:
        _answer_once(service, task)  # loads the model: deletions include the swap of its view
        for count, one in enumerate(stream, 1):
            receipt = service.deactivate(*_named(task, [one]))
            found["seconds"].append(receipt.seconds)
            if count in CHECKPOINTS:
                found[str(count)] = _figures(service)
    shutil.rmtree(copy)
    return found


def _answer_once(service: S3T, task: Task) -> None:
    if task.metric == "perplexity":
        service.generate(["Speak"], max_new_tokens=1)
    else:
        service.predict(["Where is my card?"])


def _base_alone(task: Task, run: Path, everyone: Sequence[str]) -> dict[str, Any]:
    """What answers when all has been forgotten."""
    from s3t import S3T

    copy = _copied(run, "base")
    with S3T.load(copy) as service:
        service.deactivate(*_named(task, everyone))
        found = _figures(service)
    shutil.rmtree(copy)
    return found


def _retrain_shard(run: Path, config: Path, quick: bool, shared: Path) -> dict[str, Any]:
    """One shard's nodes taken away and trained again: how long, and whether to the same bytes."""
    copy = _copied(run, "retrain")
    plan = json.loads((copy / "plan.json").read_text(encoding="utf-8"))
    keys = [node["key"] for node in plan["nodes"] if node["shard"] == 0]
    before = {key: (copy / "nodes" / f"{key}.safetensors").read_bytes() for key in keys}
    for key in keys:
        (copy / "nodes" / f"{key}.safetensors").unlink()
    load, before_cpu = load_average(), os.times()
    report = _train(config, copy, [*_placed(config, shared), *(QUICK if quick else ())])
    cpu = sum(os.times()[2:4]) - sum(before_cpu[2:4])
    same = all((copy / "nodes" / f"{k}.safetensors").read_bytes() == v for k, v in before.items())
    shutil.rmtree(copy)
    return {
        "seconds": report["seconds"],
        "cpu_seconds": round(cpu, 1),
        "nodes": report["trained"],
        "same_bytes": same,
        "load_average": [load, load_average()],
    }


def _copied(run: Path, name: str) -> Path:
    copy = run.with_name(f"{run.name}.{name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    return copy


def _named(task: Task, names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Sample ids and subjects of a request: the names are one or the other."""
    return ((), names) if task.unit == "subject" else (names, ())


def _say(what: str) -> None:
    print(f"real_data: {what}", file=sys.stderr, flush=True)


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _streams(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [value for name, value in figures.items() if name.startswith("stream ")]


def _values(figures: Mapping[str, Any], count: int) -> list[float]:
    return [stream[str(count)]["value"] for stream in _streams(figures)]


def _exhausted(figures: Mapping[str, Any], count: int) -> str:
    """A star for each stream that has nothing left: there the base answers."""
    return "*" * sum(bool(stream[str(count)]["exhausted"]) for stream in _streams(figures))


def _table(task: Task, found: Mapping[str, Any]) -> str:
    scale, form = (100, ".1f") if task.metric == "accuracy" else (1, ".2f")

    def shown(values: Sequence[float]) -> str:
        mean = f"{sum(values) / len(values) * scale:{form}}"
        spread = f" ({min(values) * scale:{form}}–{max(values) * scale:{form}})"
        return mean + (spread if len(values) > 1 else "")

    rows: list[list[object]] = [["base alone", shown([found["s3t"]["base"]["value"]]), *"–––", "–"]]
    for method in ("full", "s3t", "sisa"):
        figures = found[method]
        after = [
            shown(values) + _exhausted(figures, count)
            if (values := _values(figures, count))
            else "–"
            for count in CHECKPOINTS
        ]
        cost = f"{figures['training']['seconds']:.0f}" if "training" in figures else "?"
        rows.append([LABELS[method], shown([figures["before"]["value"]]), *after, cost])
    unit = "accuracy, %" if task.metric == "accuracy" else "perplexity per token"
    header = [unit, "before", *(f"after {count}" for count in CHECKPOINTS), "training, s"]
    seconds = [s for stream in _streams(found["s3t"]) for s in stream["seconds"]]
    retrain = found["s3t"]["retrain"]
    times = f"{retrain['seconds'] / median(seconds):,.0f} times as long"
    same = "the same bytes" if retrain["same_bytes"] else "OTHER BYTES"
    return (
        f"{table(header, rows)}\n\nrequests name one {task.unit} each; mean (lowest–highest) of "
        f"{len(_streams(found['s3t']))} streams; * for each exhausted one, "
        "where the base alone answers. One deactivate: median "
        f"{median(seconds) * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms. Training one shard "
        f"again: {retrain['seconds']:.1f} s ({times}), {retrain['nodes']} nodes, {same}"
    )


def _draw(result: Mapping[str, Any], tasks: Sequence[Task], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(tasks), figsize=(5.2 * len(tasks), 6.4), squeeze=False, sharex=True
    )
    points = (0, *CHECKPOINTS)
    for column, task in enumerate(tasks):
        found = result["tasks"][task.name]
        above, below = axes[0][column], axes[1][column]
        for method, colour in (("s3t", "tab:blue"), ("sisa", "tab:orange")):
            figures = found[method]
            lines = [
                [figures["before"], *(stream[str(count)] for count in CHECKPOINTS)]
                for stream in _streams(figures)
            ]
            for axis, of in ((above, _metric), (below, _slices)):
                curves = [[of(point) for point in line] for line in lines]
                mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
                for curve in curves:
                    axis.plot(points, curve, color=colour, alpha=0.25, linewidth=1)
                axis.plot(points, mean, color=colour, marker="o", label=LABELS[method])
        for figures, colour, label in (
            (found["full"]["before"], "tab:green", LABELS["full"]),
            (found["s3t"]["base"], "tab:grey", "base alone"),
        ):
            above.axhline(figures["value"], color=colour, linestyle="--", label=label)
        above.set_title(f"{task.name}: {task.metric}")
        below.set_title("slices behind the answers, all shards")
        below.set_xlabel(f"requests, one {task.unit} each")
        below.set_ylim(bottom=0)
        above.legend(fontsize=8)
        for axis in (above, below):
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def _metric(point: Mapping[str, Any]) -> float:
    return float(point["value"])


def _slices(point: Mapping[str, Any]) -> float:
    return float(sum(point["prefixes"]))


if __name__ == "__main__":
    sys.exit(main())
