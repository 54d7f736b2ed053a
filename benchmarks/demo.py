"""``make demo``: train on digits, forget people one after another, keep answering, prove it.

    1  S3T on digits: 4 shards × 4 slices, 4 sequences, a ViT whose base has seen public data only
    2  beside it SISA on the same shards (one sequence) and one LoRA fine-tune on all private data
    3  samples are forgotten one request after another while a thread keeps predicting
    4  a table and a picture: accuracy and surviving prefixes against deletions
    5  surviving nodes are trained again without the deleted samples: the bytes must be equal

Exit code 0 only if no request failed, no answer was older than an acknowledged deletion, and all
bytes are equal.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from s3t import S3T, load_config
from s3t.config import Config
from s3t.data import load_public
from s3t.run import RunDir
from s3t.training.retraining import retrain
from s3t.training.walk import train

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.yaml"
FULL = (
    "partition.shards=1",
    "partition.slices=1",
    "sequences.budget=1",
    "stage.isolation=snapshot",
)
SISA = ("sequences.budget=1", "stage.isolation=snapshot")


@dataclass
class Predictions:
    """A user who never stops asking; keeps what was answered, and what failed."""

    service: S3T
    images: list[Any]
    acknowledged: int = 0
    answers: int = 0
    stale: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask for one image after another until stopped."""
        number = 0
        while not self._stop.is_set():
            expected = self.acknowledged  # read before asking: a later answer may not be older
            try:
                answer = self.service.predict([self.images[number % len(self.images)]])[0]
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            self.answers += 1
            self.stale += answer.view < expected
            number += 1

    def stop(self) -> None:
        """Stop asking."""
        self._stop.set()


@dataclass(frozen=True)
class Point:
    """State after a number of deletions."""

    deletions: int
    accuracy: float
    prefixes: tuple[int, ...]
    milliseconds: float


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="s3t on digits, end to end")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="emptied first")
    parser.add_argument("--deletions", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the stream of deletions")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    started = time.monotonic()
    shutil.rmtree(options.output, ignore_errors=True)
    runs = train_all(options.output)
    ids = sample_ids(runs["s3t"], options.deletions, options.seed)
    with S3T.load(runs["sisa"].root) as sisa:
        sisa_points = forget(sisa, ids, None)
    with S3T.load(runs["s3t"].root) as service:
        users = Predictions(service, test_images(runs["s3t"].config()))
        points = forget(service, ids, users)
        status = service.status()
    with S3T.load(runs["full"].root) as full:
        full_accuracy = accuracy(full)
        full.deactivate(sample_ids(runs["full"], 1, options.seed))
        base_accuracy = accuracy(full)  # its only prefix is gone: base and public head answer
    print_table(points, sisa_points, base_accuracy, full_accuracy)
    picture = draw(options.output / "demo.png", points, sisa_points, base_accuracy, full_accuracy)
    survivors = [shard.node for shard in status.shards if shard.node is not None]
    equal = retrain(runs["s3t"], survivors, options.output / "retrained")
    latency = sorted(point.milliseconds for point in points[1:])
    print(
        f"\nwhile {len(ids)} deletions came, {users.answers} predictions were answered, "
        f"{len(users.failures)} failed, {users.stale} were older than an acknowledged deletion"
    )
    print(
        f"deactivate, durable and with the wait for running predictions: median "
        f"{statistics.median(latency):.1f} ms, slowest {latency[-1]:.1f} ms"
    )
    print(
        f"exactness: {len(equal)} surviving nodes trained again without the deleted samples, "
        f"{sum(equal.values())} with equal bytes"
    )
    result = {
        "base": base_accuracy,
        "full_lora": full_accuracy,
        "s3t": [vars_of(point) for point in points],
        "sisa": [vars_of(point) for point in sisa_points],
        "answers": users.answers,
        "failures": users.failures,
        "stale": users.stale,
        "equal_bytes": {str(key): same for key, same in equal.items()},
        "seconds": round(time.monotonic() - started, 1),
    }
    report = options.output / "demo.json"
    report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"picture {picture}, figures {report}, {result['seconds']} s in all")
    sound = not users.failures and not users.stale and users.answers and all(equal.values())
    return 0 if sound else 1


def train_all(output: Path) -> dict[str, RunDir]:
    """Train the three runs; the second and third start from the first one's base."""
    runs: dict[str, RunDir] = {}
    for name, title, words in (
        ("s3t", "S3T", ()),
        ("sisa", "SISA on the same shards", SISA),
        ("full", "one LoRA fine-tune on all private data", FULL),
    ):
        base = (f"model.base={runs['s3t'].base_path}", "model.adapt=null") if runs else ()
        where = ("aggregation.on_exhausted=base", f"output={output / name}")
        report = train(load_config(CONFIG, (*words, *base, *where)))
        print(f"trained {title}: {report.nodes} nodes in {report.seconds:.1f} s", flush=True)
        runs[name] = RunDir.existing(output / name)
    return runs


def sample_ids(run: RunDir, count: int, seed: int) -> list[str]:
    """Ids of ``count`` random private samples, in the order in which they ask to be forgotten."""
    with run.ledger() as ledger:
        ids = [entry.sample_id for entry in ledger.samples()]
    return random.Random(seed).sample(ids, count)


def test_images(config: Config) -> list[Any]:
    """Public test images, as a user would send them."""
    labels = [str(digit) for digit in range(10)]
    return list(load_public(config, "test", labels).inputs)


def forget(service: S3T, ids: list[str], users: Predictions | None) -> list[Point]:
    """Forget one id per request, and look at accuracy and prefixes after each."""
    points = [point(service, 0, 0.0)]
    thread = threading.Thread(target=users.run) if users else None
    if thread is not None:
        thread.start()
    try:
        for number, sample in enumerate(ids, 1):
            receipt = service.deactivate([sample])
            if users is not None:
                users.acknowledged = receipt.view
            points.append(point(service, number, receipt.seconds * 1000))
    finally:
        if users is not None and thread is not None:
            users.stop()
            thread.join()
    return points


def point(service: S3T, deletions: int, milliseconds: float) -> Point:
    """Accuracy on the public test data, and each shard's prefix length."""
    lengths = tuple(len(shard.prefix) for shard in service.status().shards)
    return Point(deletions, accuracy(service), lengths, milliseconds)


def accuracy(service: S3T) -> float:
    """Accuracy on the public test data."""
    return service.evaluate().value


def vars_of(point: Point) -> dict[str, Any]:
    """A point as JSON values."""
    return {
        "deletions": point.deletions,
        "accuracy": point.accuracy,
        "prefixes": list(point.prefixes),
        "milliseconds": round(point.milliseconds, 3),
    }


def print_table(points: list[Point], sisa: list[Point], base: float, full: float) -> None:
    """Accuracy and prefixes against deletions."""
    print("\naccuracy on public test data; where nothing serves any more the base answers")
    print(f"base alone with a head of public data {base:.4f}, LoRA on all private data {full:.4f}")
    print("deletions   S3T accuracy  prefixes      SISA accuracy  prefixes")
    for ours, theirs in zip(points, sisa, strict=True):
        if ours.deletions in (0, 1, 2, 5, 10, 15, 20) or ours is points[-1]:
            print(
                f"{ours.deletions:9d}   {ours.accuracy:12.4f}  {_lengths(ours):12s}  "
                f"{theirs.accuracy:13.4f}  {_lengths(theirs)}"
            )


def draw(path: Path, points: list[Point], sisa: list[Point], base: float, full: float) -> Path:
    """Two panels: accuracy, and slices that serve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    at = [point.deletions for point in points]
    left.axhline(full, color="grey", linestyle=":", label="LoRA on all, nothing deleted")
    left.axhline(base, color="grey", linestyle="--", label="base with a public head")
    for name, series, colour in (
        ("S3T, 4 sequences", points, "C0"),
        ("SISA, 1 sequence", sisa, "C3"),
    ):
        left.plot(at, [point.accuracy for point in series], "o-", color=colour, ms=3, label=name)
        served = [sum(point.prefixes) for point in series]
        right.step(at, served, where="post", color=colour, label=name)
    left.set(xlabel="deletions", ylabel="accuracy on public test data", title="Accuracy")
    right.set(
        xlabel="deletions", ylabel="slices in the serving prefixes", title="What still serves"
    )
    right.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _lengths(point: Point) -> str:
    return " ".join(str(length) for length in point.prefixes)


if __name__ == "__main__":
    sys.exit(main())
