"""The methods of the benchmark, trained, forgotten from, and compared (see the package).

config ─► method: a run, timed ─► Answers ─┬─► accuracy of each way along the same deletions
                                           └─► latency of each way
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.adoption import trained
from benchmarks.banking.answers import Answers
from benchmarks.banking.showing import draw, show
from benchmarks.deletion_budget.along import requests, served
from benchmarks.prepared_data import ROOT, prepare, shared_data, thinned
from benchmarks.reports import Report
from s3t import load_config

__all__ = ["METHODS", "run"]

CONFIG = ROOT / "configs" / "banking77.yaml"
STEPS = (0, 10, 25, 50, 100)
SIZES = (1, 16, 256)
TREE = "sequences={strategy: tree, unit: slice-passes, horizon: 2, budget: 12}"
DEEP_TREE = "sequences={strategy: tree, unit: slice-passes, horizon: 2, budget: 36}"
"""Planned for about half of the deletions that come; a slice of six holds half of one of three."""
METHODS: Mapping[str, tuple[str, ...]] = {
    "full LoRA": (
        "partition={shards: 1, slices: 1, salt: banking77}",
        "sequences={strategy: cyclic, budget: 1}",
        "stage.isolation=snapshot",
    ),
    "S3T, L = 3": ("partition={shards: 4, slices: 3, salt: banking77}", TREE),
    "S3T, L = 6": ("partition={shards: 4, slices: 6, salt: banking77}", DEEP_TREE),
    "SISA, L = 3": (
        "partition={shards: 4, slices: 3, salt: banking77}",
        TREE,
        "stage.isolation=snapshot",
    ),
    "clusters": ("partition={shards: 4, slices: 3, salt: banking77, clusters: {}}", TREE),
    "clusters, layer 0": (
        "partition={shards: 4, slices: 3, salt: banking77, clusters: {layer: 0}}",
        TREE,
    ),
}


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        every: every k-th private question.
        tests: every k-th test question.
        choices: every k-th public question by which prefixes are chosen.
        epochs: of each stage.
        streams: of deletions.
        repeats: questions that are answered to time an answer, of each size.
    """

    every: int
    tests: int
    choices: int
    epochs: int
    streams: int
    repeats: int


FULL = Scale(every=5, tests=4, choices=2, epochs=1, streams=3, repeats=256)
QUICK = Scale(every=20, tests=20, choices=10, epochs=1, streams=1, repeats=8)


def run(output: Path, quick: bool) -> dict[str, Any]:
    """The benchmark; its figures as JSON values, empty without the data.

    Args:
        output: where runs, JSON and picture go.
        quick: a twentieth of the questions, one stream: shows that it works, not how well.
    """
    shared = shared_data()
    if shared is None:
        print("banking: skipped, there is no ../shared/data (set S3T_SHARED_DATA to its place)")
        return {}
    scale, started, report = (
        QUICK if quick else FULL,
        time.perf_counter(),
        Report("banking", output),
    )
    words = _words(shared, output, scale)
    found: dict[str, Any] = {}
    for number, (method, overrides) in enumerate(METHODS.items()):
        folder = output / ("quick" if quick else "runs") / str(number)
        found[method] = _measured([*words, *overrides, f"output={folder}"], scale)
        _say(f"{method}: {time.perf_counter() - started:.0f} s so far")
    result: dict[str, Any] = {
        "config": CONFIG.name,
        "overrides": words,
        "steps": list(STEPS),
        "streams": scale.streams,
        "sizes": list(SIZES),
        "methods": found,
        "seconds": round(time.perf_counter() - started, 1),
    }
    show(result)
    return report.finish(result, lambda figure: draw(figure, result), size=(12, 4.6))


def _words(shared: Path, output: Path, scale: Scale) -> list[str]:
    """Overrides that all methods share."""
    data = output / "data"
    prepare(shared, data)
    public = data / "banking77"
    private = thinned(shared / "banking77" / "train.csv.gz", scale.every, public)
    test = thinned(public / "test.csv", scale.tests, public)
    choices = thinned(public / "validation.csv", scale.choices, public)
    return [
        f"data.private.files={private}",
        f"data.public.adapt.files={public / 'adapt.csv'}",
        f"data.public.validation.files={choices}",
        f"data.public.test.files={test}",
        f"model.base={shared / 'minilm'}",
        f"stage.epochs={scale.epochs}",
    ]


def _measured(words: list[str], scale: Scale) -> dict[str, Any]:
    """One method: its training, and each way of serving it."""
    done = trained(load_config(CONFIG, words))
    answers = Answers(done.run)
    plan, scorer, count = answers.plan, answers.scorer, max(STEPS)
    scores = {node.key: done.run.store.meta(node.key).score for node in plan.forest}
    deletes = plan.shards > 1  # of one fine-tune nothing can be deleted without training it anew
    streams = [
        served(scorer, requests(done.run, count if deletes else 0, f"stream {seed}"), scores)
        for seed in range(scale.streams if deletes else 1)
    ]
    whole = streams[0][0]
    agree = all(answers.checked(way, whole, 64) for way in answers.ways if way != "merged")
    ways = {
        way: {
            "accuracy": [
                [answers.accuracy(way, states[step]) for step in STEPS if step < len(states)]
                for states in streams
            ],
            "latency": answers.latency(way, whole, SIZES, scale.repeats),
        }
        for way in answers.ways
    }
    summary = plan.summary()
    return {
        "samples": sum(map(sum, plan.sizes)),
        "sizes": [sum(row) for row in plan.sizes],
        "nodes": done.nodes,
        "trained": done.trained,
        "training_seconds": round(done.seconds, 1),
        "sample_passes": summary["sample_passes"],
        "bytes": summary["bytes"],
        "base": answers.accuracy("ensemble", (None,) * plan.shards),
        "living": [
            [sum(node is not None for node in states[step]) for step in STEPS if step < len(states)]
            for states in streams
        ],
        "served_as_reckoned": agree,
        "ways": ways,
    }


def _say(what: str) -> None:
    print(f"banking: {what}", file=sys.stderr, flush=True)
