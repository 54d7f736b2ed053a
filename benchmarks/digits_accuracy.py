"""Accuracy on digits along deletions: several partitions, several streams.

    python -m benchmarks.digits_accuracy [--output runs/benchmarks/digits_accuracy]

For each salt (partition): S3T, SISA on the same shards at one sequence, SISA at the same number of
sequences, one LoRA fine-tune on all private data, and the base alone with a head of public data.
For each stream the same samples are forgotten one by one by each method, without retraining. Means,
and the smallest and largest, over salts × streams; where nothing serves any more the base answers.
Writes one JSON with the environment and a picture beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.demo import CONFIG, FULL, SISA, accuracy, sample_ids
from benchmarks.environment import environment, write_json
from s3t import S3T, load_config
from s3t.run import RunDir
from s3t.training.walk import train

METHODS: dict[str, tuple[str, ...]] = {
    "S3T, 4 sequences": (),
    "SISA, 1 sequence": SISA,
    "SISA, 4 sequences": ("stage.isolation=snapshot",),
}
STEPS = (0, 5, 10, 20)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description="accuracy on digits along deletions")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/digits_accuracy"))
    parser.add_argument("--salts", nargs="+", default=["digits", "a", "b"])
    parser.add_argument("--streams", type=int, default=3)
    options = parser.parse_args()
    base: Path | None = None
    full: list[float] = []
    alone: list[float] = []
    found: dict[str, dict[int, list[float]]] = {m: {n: [] for n in STEPS} for m in METHODS}
    seconds: dict[str, list[float]] = {m: [] for m in METHODS}
    for salt in options.salts:
        for number, (method, words) in enumerate(METHODS.items()):
            run, took = trained(options.output / f"{salt}-{number}", salt, words, base)
            base = base or run.base_path
            seconds[method].append(took)
            for stream in range(options.streams):
                for at, value in along(run, stream).items():
                    found[method][at].append(value)
        run, _ = trained(options.output / f"{salt}-full", salt, FULL, base)
        with copied(run) as service:
            full.append(accuracy(service))
            service.deactivate(sample_ids(run, 1, 0))
            alone.append(accuracy(service))
    result = {
        "environment": environment(),
        "salts": options.salts,
        "streams": options.streams,
        "base": alone,
        "full_lora": full,
        "accuracy": found,
        "training_seconds": seconds,
    }
    show(found, full, alone)
    report = options.output / "digits_accuracy.json"
    write_json(report, result)
    draw(report.with_suffix(".png"), found, full, alone)
    print(f"figures {report}, picture {report.with_suffix('.png')}")
    return 0


def trained(
    where: Path, salt: str, words: tuple[str, ...], base: Path | None
) -> tuple[RunDir, float]:
    """A run, trained or gone on with, and the seconds it took."""
    known = (f"model.base={base}", "model.adapt=null") if base else ()
    fixed = (f"partition.salt={salt}", "aggregation.on_exhausted=base", f"output={where}")
    report = train(load_config(CONFIG, (*words, *known, *fixed)))
    return RunDir.existing(where), report.seconds


class copied:
    """A service over a copy of a run, so that deletions do not touch the run."""

    def __init__(self, run: RunDir) -> None:
        self._folder = tempfile.TemporaryDirectory()
        copy = Path(self._folder.name) / "run"
        shutil.copytree(run.root, copy)
        self._service = S3T.load(copy)

    def __enter__(self) -> S3T:
        return self._service

    def __exit__(self, *error: object) -> None:
        self._service.close()
        self._folder.cleanup()


def along(run: RunDir, stream: int) -> dict[int, float]:
    """Accuracy after each number of deletions."""
    ids = sample_ids(run, max(STEPS), stream)
    values = {}
    with copied(run) as service:
        for before, at in zip((0, *STEPS), STEPS, strict=False):
            for sample in ids[before:at]:
                service.deactivate([sample])
            values[at] = accuracy(service)
    return values


def show(found: dict[str, dict[int, list[float]]], full: list[float], alone: list[float]) -> None:
    """Print the table."""
    print(f"base alone with a head of public data: {spread(alone)}")
    print(f"LoRA on all private data:              {spread(full)}")
    print("deletions          " + "".join(f"{at:>24d}" for at in STEPS))
    for method, values in found.items():
        print(f"{method:19s}" + "".join(f"{spread(values[at]):>24s}" for at in STEPS))
    gap = statistics.mean(full) - statistics.mean(found["S3T, 4 sequences"][0])
    print(f"S3T before deletions lies {100 * gap:.1f} points under the full LoRA fine-tune")


def spread(values: list[float]) -> str:
    """Mean, smallest and largest."""
    return f"{statistics.mean(values):.4f} ({min(values):.3f}–{max(values):.3f})"


def draw(
    path: Path, found: dict[str, dict[int, list[float]]], full: list[float], alone: list[float]
) -> None:
    """Means with ranges against deletions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.axhline(statistics.mean(full), color="grey", linestyle=":", label="LoRA on all")
    axes.axhline(statistics.mean(alone), color="grey", linestyle="--", label="base alone")
    for method, values in found.items():
        means = [statistics.mean(values[at]) for at in STEPS]
        low = [mean - min(values[at]) for mean, at in zip(means, STEPS, strict=True)]
        high = [max(values[at]) - mean for mean, at in zip(means, STEPS, strict=True)]
        axes.errorbar(STEPS, means, yerr=[low, high], marker="o", capsize=3, label=method)
    axes.set(xlabel="deletions, without retraining", ylabel="accuracy on public test data")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
