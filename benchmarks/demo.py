"""``make demo``: train on digits, forget people one after another, keep answering, prove it.

    1  S3T on digits: 4 shards × 4 slices, a ViT whose base has seen public digits only turned, so
       that what is learnt of private ones, and forgotten, counts
    2  beside it S3T with residual stages (better answers for more training), S3T as in the paper
       (a stage trains query and value maps of its block alone, and shards count alike), SISA on the
       same shards, and one LoRA fine-tune on all private data
    3  samples are forgotten one request after another while a thread keeps predicting
    4  a table and a picture: accuracy along the deletions, data that still serves, and the moment
       of one deletion
    5  surviving nodes are trained again without the deleted samples: the bytes must be equal
    6  what is dead is purged, and the run audited

Exit code 0 only if no request failed, no answer was older than an acknowledged deletion, all bytes
are equal, and every claim of the audit holds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a user and the one who forgets: a core each

from accelerate import PartialState

from benchmarks.adoption import Trained, on_base_of, trained
from s3t import S3T, load_config
from s3t.audit.audit import audit
from s3t.config import Config
from s3t.data import load_public
from s3t.ledger import Receipt
from s3t.model.determinism import one_thread
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.training.prepare.prepare import prepare
from s3t.training.retrain import retrain
from s3t.types import NodeKey

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.yaml"
TURNED = ("model.adapt.rotations=true",)
FULL = (
    "partition.shards=1",
    "partition.slices=1",
    "sequences.budget=1",
    "stage.isolation=snapshot",
)
TREE = ("sequences={strategy: tree, budget: 4}",)
PAPER = (
    "stage.isolation=layers",
    "lora.targets=[q_proj, v_proj]",
    "aggregation.weights=uniform",
)
SISA = ("sequences.budget=1", "stage.isolation=snapshot")
SIDES = {
    "s3t": ("S3T", TREE),
    "residual": ("S3T, residual stages", (*TREE, "stage.isolation=residual")),
    "paper": ("S3T as in the paper", PAPER),
    "sisa": ("SISA", SISA),
    "full": ("one LoRA on all private data", FULL),
}
NAMES = {name: title for name, (title, _) in SIDES.items() if name != "full"}
NEAR = 0.25
"""Seconds before and after a deletion that the picture shows."""
COLOURS = dict(zip(NAMES, ("C0", "C2", "C1", "C3"), strict=True))


@dataclass(frozen=True)
class Answer:
    """One answer to a user: when it was asked for and came (s), and the view that gave it."""

    asked: float
    came: float
    view: int


@dataclass
class Predictions:
    """A user who never stops asking; keeps what was answered, and what failed."""

    service: S3T
    images: list[Any]
    acknowledged: int = 0
    answers: list[Answer] = field(default_factory=list)
    stale: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask for one image after another until stopped."""
        number = 0
        while not self._stop.is_set():
            expected = self.acknowledged  # read before asking: a later answer may not be older
            asked = time.monotonic()
            try:
                answer = self.service.predict([self.images[number % len(self.images)]])[0]
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            self.answers.append(Answer(asked, time.monotonic(), answer.view))
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
        asked: when the last deletion was asked for, s.
        milliseconds: that it took.
        switched_off: nodes that it switched off.
    """

    deletions: int
    accuracy: float
    prefixes: tuple[int, ...]
    nodes: tuple[NodeKey, ...]
    asked: float = 0.0
    milliseconds: float = 0.0
    switched_off: int = 0


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
    runs, seconds = train_all(options.output)
    costs = {name: seconds[name] / seconds["full"] for name in NAMES}
    ids = sample_ids(runs["s3t"], options.deletions, options.seed)
    with S3T.load(runs["s3t"].root) as service:
        users = Predictions(service, test_images(runs["s3t"].config()))
        points = {"s3t": forget(service, ids, users)}
    for name in ("residual", "paper", "sisa"):
        with S3T.load(runs[name].root) as service:
            points[name] = forget(service, ids, None)
    with S3T.load(runs["full"].root) as full:
        full_accuracy = accuracy(full)
        full.deactivate(sample_ids(runs["full"], 1, options.seed))
        base_accuracy = accuracy(full)  # its only prefix is gone: base and public head answer
    print_table(points, costs, base_accuracy, full_accuracy)
    lines = Lines(base_accuracy, full_accuracy, len(users.images))
    picture = draw(options.output / "demo.png", points, costs, lines, users.answers)
    equal = {
        name: retrain(runs[name], survivors, options.output / "retrained" / name)
        for name, survivors in (
            ("s3t", points["s3t"][-1].nodes),
            ("residual", longest(runs["residual"], points["residual"][-1].nodes)),
        )
    }
    latency = sorted(point.milliseconds for point in points["s3t"][1:])
    print(
        f"\nwhile {len(ids)} deletions came, {len(users.answers)} predictions were answered, "
        f"{len(users.failures)} failed, {users.stale} were older than an acknowledged deletion"
    )
    print(
        f"deactivate, durable and with the wait for running predictions: median "
        f"{statistics.median(latency):.1f} ms, slowest {latency[-1]:.1f} ms"
    )
    checks = [same for found in equal.values() for same in found.values()]
    print(
        f"exactness: {len(checks)} surviving nodes trained again without the deleted samples "
        f"({len(equal['residual'])} of residual stages), {sum(checks)} with equal bytes"
    )
    purged, judged = purge(runs["s3t"]), audit(runs["s3t"].root)
    print(
        f"purged {len(purged.nodes)} dead nodes and the rows of {len(ids)} samples; audit: "
        + ", ".join(f"{claim.name} {claim.status}" for claim in judged.claims)
    )
    result = {
        "base": base_accuracy,
        "full_lora": full_accuracy,
        "trainings_of_one_lora": costs,
        **{name: [vars_of(point) for point in found] for name, found in points.items()},
        "answers": len(users.answers),
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


def train_all(output: Path) -> tuple[dict[str, RunDir], dict[str, float]]:
    """Train the five runs on the first one's base; returns them, and the seconds that each took."""
    runs: dict[str, RunDir] = {}
    seconds: dict[str, float] = {}
    for name, (title, words) in SIDES.items():
        base = on_base_of(runs["s3t"]) if runs else TURNED
        where = ("aggregation.on_exhausted=base", f"output={output / name}")
        config = load_config(CONFIG, (*words, *base, *where))
        if not runs:  # the base is made before the clock starts
            with one_thread(PartialState().device):
                prepare(config, PartialState().device)
        found = trained(config, runs.values())
        runs[name], seconds[name] = found.run, found.seconds
        print(f"trained {title}: {_sentence(found)}", flush=True)
    return runs, seconds


def _sentence(found: Trained) -> str:
    taken = f", {found.adopted} of them taken over" if found.adopted else ""
    return f"{found.nodes} nodes{taken} in {found.seconds:.1f} s"


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
    points = [point(service, 0)]
    thread = threading.Thread(target=users.run) if users else None
    if thread is not None:
        thread.start()
    try:
        for number, sample in enumerate(ids, 1):
            asked = time.monotonic()
            receipt = service.deactivate([sample])
            if users is not None:
                users.acknowledged = receipt.view
            points.append(point(service, number, asked, receipt))
    finally:
        if users is not None and thread is not None:
            users.stop()
            thread.join()
    return points


def point(
    service: S3T, deletions: int, asked: float = 0.0, receipt: Receipt | None = None
) -> Point:
    """Accuracy, and what serves, as it is now, after a deletion with this receipt."""
    shards = service.status().shards
    lengths = tuple(len(shard.prefix) for shard in shards)
    nodes = tuple(shard.node for shard in shards if shard.node is not None)
    found = Point(deletions, accuracy(service), lengths, nodes)
    if receipt is None:
        return found
    took, off = receipt.seconds * 1000, len(receipt.nodes_dead)
    return replace(found, asked=asked, milliseconds=took, switched_off=off)


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
    points: dict[str, list[Point]], costs: dict[str, float], base: float, full: float
) -> None:
    """Accuracy and lengths of the prefixes against deletions."""
    print("\naccuracy on public test data, and slices that each shard's prefix has learnt")
    print(f"base alone with a head of public data {base:.4f}, one LoRA on all {full:.4f}")
    print("deletions" + "".join(f"  {_label(name, costs):>26s}" for name in NAMES))
    last = len(points["s3t"]) - 1
    for number in [n for n in (0, 1, 2, 5, 10, 15, 20) if n < last] + [last]:
        of = [points[name][number] for name in NAMES]
        cells = [f"{point.accuracy:.4f}  {' '.join(map(str, point.prefixes))}" for point in of]
        print(f"{number:9d}" + "".join(f"  {cell:>26s}" for cell in cells))


def _label(name: str, costs: dict[str, float]) -> str:
    """A side's name, and what it took to train, in trainings of one LoRA."""
    return f"{NAMES[name]}, {costs[name]:.1f} ×"


@dataclass(frozen=True)
class Lines:
    """What the picture measures by: accuracy of the base alone and of one LoRA; test images."""

    base: float
    full: float
    images: int


def draw(
    path: Path,
    points: dict[str, list[Point]],
    costs: dict[str, float],
    lines: Lines,
    answers: Sequence[Answer],
) -> Path:
    """Three panels: accuracy, data that serves, and the moment of a deletion."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(16, 4.6), layout="constrained")
    _accuracy(panels[0], points, costs, lines)
    _served(panels[1], points)
    hardest = max(points["s3t"][2:], key=lambda point: (point.switched_off, -point.deletions))
    _moment(panels[2], hardest, answers)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _accuracy(
    axes: Any, points: dict[str, list[Point]], costs: dict[str, float], lines: Lines
) -> None:
    axes.axhline(100 * lines.full, color="grey", ls=":", label="one LoRA, nobody forgotten")
    axes.axhline(100 * lines.base, color="grey", ls="--", label="the base alone")
    for name, series in points.items():
        at = [point.deletions for point in series]
        values = [point.accuracy for point in series]
        axes.plot(at, [100 * one for one in values], "o-", ms=3, color=COLOURS[name],
                  label=_label(name, costs))  # fmt: skip
        error = [1.96 * math.sqrt(one * (1 - one) / lines.images) for one in values]
        edges = [[100 * (v + sign * e) for v, e in zip(values, error, strict=True)]
                 for sign in (-1, 1)]  # fmt: skip
        if name == "s3t":
            axes.fill_between(at, *edges, color=COLOURS[name], alpha=0.15, lw=0)
    axes.set(xlabel="people forgotten", ylabel="accuracy on test images, %",
             title="How well it answers (band: 95 % for S3T)")  # fmt: skip
    axes.legend(fontsize=8, title="training: × the time of one LoRA", title_fontsize=8)


def _served(axes: Any, points: dict[str, list[Point]]) -> None:
    whole = sum(points["s3t"][0].prefixes)
    for name, series in points.items():
        share = [100 * sum(point.prefixes) / whole for point in series]
        at = [point.deletions for point in series]
        axes.step(at, share, where="post", color=COLOURS[name], label=NAMES[name])
    axes.set(xlabel="people forgotten", ylabel="private data in service, %",
             title="What the answers still rest on", ylim=(0, 102))  # fmt: skip
    axes.legend(fontsize=8)


def _moment(axes: Any, deletion: Point, answers: Sequence[Answer]) -> None:
    """Answers around a deletion: when each came, how long it took, and by which view."""
    done = deletion.asked + deletion.milliseconds / 1000
    near = [one for one in answers if abs(one.asked - deletion.asked) < NEAR]
    for name, colour, some in (
        ("answer that had seen the person", "C3", [a for a in near if a.view < deletion.deletions]),
        ("answer that had not", "C0", [a for a in near if a.view >= deletion.deletions]),
    ):
        at = [1000 * (one.came - deletion.asked) for one in some]
        axes.plot(at, [1000 * (one.came - one.asked) for one in some], "o", ms=3, color=colour,
                  label=name)  # fmt: skip
    axes.axvspan(0, 1000 * (done - deletion.asked), color="grey", alpha=0.25,
                 label="deactivate: asked for … effective")  # fmt: skip
    axes.set(xlabel="milliseconds from the request to forget", ylabel="milliseconds for an answer")
    axes.set_title(f"Deletion {deletion.deletions}: {deletion.switched_off} blocks switched off")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    sys.exit(main())
