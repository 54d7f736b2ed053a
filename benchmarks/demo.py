"""``make demo``: train on digits, forget people one after another, keep answering, prove it.

    1  S3T on digits: 4 shards × 4 slices, 4 rotations, a ViT whose base has seen public data only
    2  the set tree at 60 % of the rotations' training; nodes that both have are trained once
    3  beside them S3T as in the paper (a stage trains query and value maps of its block alone, and
       shards count alike), SISA on the same shards (one sequence) and one LoRA fine-tune on all
       private data
    4  samples are forgotten one request after another while a thread keeps predicting
    5  a table and a picture: accuracy and surviving prefixes against deletions
    6  surviving nodes are trained again without the deleted samples: the bytes must be equal
    7  what is dead is purged, and the run audited

Exit code 0 only if no request failed, no answer was older than an acknowledged deletion, all bytes
are equal, and every claim of the audit holds.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a user and the one who forgets: a core each

from benchmarks.adoption import Trained, on_base_of, trained
from s3t import S3T, load_config
from s3t.audit.audit import audit
from s3t.config import Config
from s3t.data import load_public
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.training.retrain import retrain
from s3t.types import NodeKey

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.yaml"
FULL = (
    "partition.shards=1",
    "partition.slices=1",
    "sequences.budget=1",
    "stage.isolation=snapshot",
)
SISA = ("sequences.budget=1", "stage.isolation=snapshot")
TREE = ("sequences={strategy: tree, unit: slice-passes, budget: 24}",)
PAPER = (
    "stage.isolation=layers",
    "lora.targets=[q_proj, v_proj]",
    "aggregation.weights=uniform",
)
NAMES = {
    "s3t": "S3T, 4 rotations",
    "tree": "S3T, set tree",
    "paper": "S3T as in the paper",
    "sisa": "SISA, 1 sequence",
}


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
    """State after a number of deletions.

    Attributes:
        deletions: so many.
        accuracy: on the public test data.
        prefixes: length of each shard's prefix.
        nodes: keys of those that serve.
        milliseconds: that the last deletion took.
    """

    deletions: int
    accuracy: float
    prefixes: tuple[int, ...]
    nodes: tuple[NodeKey, ...]
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
    with S3T.load(runs["s3t"].root) as service:
        users = Predictions(service, test_images(runs["s3t"].config()))
        points = {"s3t": forget(service, ids, users)}
    for name in ("tree", "paper", "sisa"):
        with S3T.load(runs[name].root) as service:
            points[name] = forget(service, ids, None)
    with S3T.load(runs["full"].root) as full:
        full_accuracy = accuracy(full)
        full.deactivate(sample_ids(runs["full"], 1, options.seed))
        base_accuracy = accuracy(full)  # its only prefix is gone: base and public head answer
    shares = {name: cost(runs[name]) / cost(runs["s3t"]) for name in NAMES}
    print_table(points, shares, base_accuracy, full_accuracy)
    picture = draw(options.output / "demo.png", points, shares, base_accuracy, full_accuracy)
    equal = {
        name: retrain(runs[name], survivors, options.output / "retrained" / name)
        for name, survivors in (
            ("s3t", points["s3t"][-1].nodes),
            ("tree", longest(runs["tree"], points["tree"][-1].nodes)),
        )
    }
    latency = sorted(point.milliseconds for point in points["s3t"][1:])
    print(
        f"\nwhile {len(ids)} deletions came, {users.answers} predictions were answered, "
        f"{len(users.failures)} failed, {users.stale} were older than an acknowledged deletion"
    )
    print(
        f"deactivate, durable and with the wait for running predictions: median "
        f"{statistics.median(latency):.1f} ms, slowest {latency[-1]:.1f} ms"
    )
    checks = [same for found in equal.values() for same in found.values()]
    print(
        f"exactness: {len(checks)} surviving nodes trained again without the deleted samples "
        f"({len(equal['tree'])} of the set tree), {sum(checks)} with equal bytes"
    )
    purged, judged = purge(runs["s3t"]), audit(runs["s3t"].root)
    print(
        f"purged {len(purged.nodes)} dead nodes and the rows of {len(ids)} samples; audit: "
        + ", ".join(f"{claim.name} {claim.status}" for claim in judged.claims)
    )
    result = {
        "base": base_accuracy,
        "full_lora": full_accuracy,
        "cost": shares,
        **{name: [vars_of(point) for point in found] for name, found in points.items()},
        "answers": users.answers,
        "failures": users.failures,
        "stale": users.stale,
        "equal_bytes": equal,
        "purged": len(purged.nodes),
        "audit": judged.to_dict(),
        "seconds": round(time.monotonic() - started, 1),
    }
    report = options.output / "demo.json"
    report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"picture {picture}, figures {report}, {result['seconds']} s in all")
    sound = not users.failures and not users.stale and users.answers and all(checks)
    return 0 if sound and judged.holds else 1


def train_all(output: Path) -> dict[str, RunDir]:
    """Train the five runs; all stand on the first one's base, and none trains a node twice."""
    runs: dict[str, RunDir] = {}
    for name, title, words in (
        ("s3t", "S3T, 4 rotations", ()),
        ("tree", "S3T, set tree", TREE),
        ("paper", "S3T as in the paper", PAPER),
        ("sisa", "SISA on the same shards", SISA),
        ("full", "one LoRA fine-tune on all private data", FULL),
    ):
        base = on_base_of(runs["s3t"]) if runs else ()
        where = ("aggregation.on_exhausted=base", f"output={output / name}")
        found = trained(load_config(CONFIG, (*words, *base, *where)), runs.values())
        runs[name] = found.run
        print(f"trained {title}: {_sentence(found)}", flush=True)
    return runs


def _sentence(found: Trained) -> str:
    taken = f", {found.adopted} of them taken over" if found.adopted else ""
    return f"{found.nodes} nodes{taken} in {found.seconds:.1f} s"


def cost(run: RunDir) -> int:
    """Sample passes of a run's plan: what training all of it takes."""
    return int(run.plan().summary()["sample_passes"])


def longest(run: RunDir, survivors: Sequence[NodeKey]) -> list[NodeKey]:
    """The survivor with the longest lineage, at most one."""
    forest = run.plan().forest
    return sorted(survivors, key=lambda key: (-forest[key].stage, key))[:1]


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
    """Accuracy, and what serves, as it is now."""
    shards = service.status().shards
    lengths = tuple(len(shard.prefix) for shard in shards)
    nodes = tuple(shard.node for shard in shards if shard.node is not None)
    return Point(deletions, accuracy(service), lengths, nodes, milliseconds)


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


def print_table(
    points: dict[str, list[Point]], shares: dict[str, float], base: float, full: float
) -> None:
    """Accuracy and prefixes against deletions."""
    print("\naccuracy on public test data; where nothing serves any more the base answers")
    print(f"base alone with a head of public data {base:.4f}, LoRA on all private data {full:.4f}")
    print("deletions" + "".join(f"  {_label(name, shares):>26s}" for name in NAMES))
    last = len(points["s3t"]) - 1
    for number in [n for n in (0, 1, 2, 5, 10, 15, 20) if n < last] + [last]:
        of = [points[name][number] for name in NAMES]
        cells = [f"{point.accuracy:.4f}  {' '.join(map(str, point.prefixes))}" for point in of]
        print(f"{number:9d}" + "".join(f"  {cell:>26s}" for cell in cells))


def _label(name: str, shares: dict[str, float]) -> str:
    """A run's name, with its training as a share of the rotations'."""
    return f"{NAMES[name]} ({100 * shares[name]:.0f} %)"


def draw(
    path: Path,
    points: dict[str, list[Point]],
    shares: dict[str, float],
    base: float,
    full: float,
) -> Path:
    """Two panels: accuracy, and slices that serve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.axhline(full, color="grey", linestyle=":", label="LoRA on all, nothing deleted")
    left.axhline(base, color="grey", linestyle="--", label="base with a public head")
    for (name, series), colour in zip(points.items(), ("C0", "C2", "C1", "C3"), strict=True):
        at = [point.deletions for point in series]
        style = {"color": colour, "label": _label(name, shares)}
        left.plot(at, [point.accuracy for point in series], "o-", ms=3, **style)
        served = [sum(point.prefixes) for point in series]
        right.step(at, served, where="post", **style)
    left.set(xlabel="deletions", ylabel="accuracy on public test data", title="Accuracy")
    right.set(
        xlabel="deletions", ylabel="slices in the serving prefixes", title="What still serves"
    )
    right.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.legend(fontsize=8, title="share of the rotations' training", title_fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
