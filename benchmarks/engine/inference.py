"""Latency and throughput of answers from all shards, and what averaging them costs.

    python -m benchmarks.engine.inference [--output DIR] [--quick]

    single       one shard's adapter in peft: the yardstick
    sequential   peft: ``set_adapter`` and a forward pass, shard after shard
    mixed        peft: one pass of all rows for all shards with ``adapter_names``
    stacked      s3t's ensemble
    merged       s3t's ensemble with ``aggregation.method: mean-adapters``

m = 4 and 16; the demo's ViT, the ViT of hidden 96 and the BERT of hidden 256 of the training
benchmarks; batches of 1 to 256 encoded rows; full prefixes, and ones of half the layers; one torch
thread, and one per core at batch 64. The ways take turns in one run: in each turn one warms up with
a call and then answers for a while; a turn's figure is its median, ratios are within one turn, and
figures are medians of turns. All ways but ``merged`` and ``single`` give the same answer: checked.

Also measured: what the next view costs when one of 16 shards loses its lowest block; and on a
trained digits run, through ``S3T.load``, the accuracy of averaged adapters beside that of averaged
answers, before and after deletions, and the latency of ``predict``.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

# before torch is loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import yaml

from benchmarks.engine import OUTPUT
from benchmarks.engine.tasks import task_config
from benchmarks.engine.views import next_view
from benchmarks.engine.ways import SIDES, Shards
from benchmarks.environment import load_average, median, table
from benchmarks.reports import Report, main, spread
from s3t import S3T
from s3t.config import Config
from s3t.data import load_public
from s3t.run import RunDir
from s3t.training.work.train import train

__all__ = ["run"]

CORES = len(os.sched_getaffinity(0))
TASKS = ("demo", "vit", "bert")
BATCHES = (1, 16, 64, 256)
SHORT_BATCHES = (1, 64)
MOST_ROWS = {"bert": 1024}
"""Rows × shards of the largest batch that is measured."""

TARGETS = {"demo": 1.0, "bert": 2.2}
"""Latency of four shards stacked at batch 1, over that of a single adapter in peft."""

SAME = 2e-5
"""How far the probabilities of two ways may lie apart."""

METHODS = ("mean-probabilities", "mean-logits", "mean-adapters")
DELETIONS = (0, 4, 8, 16)
STREAMS = 5
"""Streams of deletions, the same for each method; accuracies are means over them."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("inference", output)
    result: dict[str, Any] = {"quick": quick, "cores": CORES, "cells": [], "views": {}}
    with tempfile.TemporaryDirectory(prefix="s3t-inference-") as folder:
        for name in TASKS:
            config = task_config(name, Path(folder) / name, quick=True)
            for count in (4, 16):
                result["cells"] += _measure(name, config, count, quick)
            result["views"][name] = next_view(Shards(config, 16, 1.0), 5 if quick else 20)
            print(_views_sentence(name, result["views"][name]), flush=True)
        result["digits"] = _digits(Path(folder) / "trained", quick)
    print(f"\n{_table(result['cells'])}\n\n{_digits_sentence(result['digits'])}")
    result["targets"] = _targets(result["cells"])
    for line in result["targets"]["sentences"]:
        print(line)
    return report.finish(result, lambda figure: _draw(figure, result["cells"]), (13, 7))


# ── latency ──────────────────────────────────────────────────────────────────────────────────


def _measure(name: str, config: Config, count: int, quick: bool) -> Iterator[dict[str, Any]]:
    """The cells of one base and number of shards."""
    for share, batches in ((1.0, BATCHES), (0.5, SHORT_BATCHES)):
        shards = Shards(config, count, share)
        for batch in batches:
            if batch * count > MOST_ROWS.get(name, 2**20) or (quick and batch * count > 256):
                continue
            for threads in (1, CORES) if batch == 64 and share == 1.0 and CORES > 1 else (1,):
                with _threads(threads):
                    found = _cell(shards, batch, turns=3 if quick else 7)
                cell = {
                    "task": name,
                    "shards": count,
                    "prefix": share,
                    "batch": batch,
                    "threads": threads,
                }
                yield cell | found
                print(_cell_sentence(cell | found), flush=True)


def _cell(shards: Shards, batch: int, turns: int) -> dict[str, Any]:
    ways, rows = shards.ways(), shards.rows(batch)
    answers = {side: ways[side](rows) for side in SIDES}
    apart = max(
        float((answers[side] - answers["sequential"]).abs().max()) for side in ("mixed", "stacked")
    )
    if apart > SAME:
        raise RuntimeError(f"stacked or mixed answers differ from sequential ones by {apart:.1e}")
    each: dict[str, list[float]] = {side: [] for side in SIDES}
    started = time.perf_counter()
    while len(each["single"]) < turns:
        for side in SIDES:
            each[side].append(_turn(partial(ways[side], rows)))
        if len(each["single"]) >= 3 and time.perf_counter() - started > 30:
            break
    over = {
        f"{one} / {other}": spread([a / b for a, b in zip(each[one], each[other], strict=True)])
        for one, other in (
            *((side, "single") for side in SIDES[1:]),
            ("sequential", "stacked"),
            ("sequential", "mixed"),
            ("sequential", "merged"),
        )
    }
    seconds = {side: spread(values) for side, values in each.items()}
    return {
        "seconds": seconds,
        "rows_per_second": {side: batch / values["median"] for side, values in seconds.items()},
        "ratios": over,
        "answers_apart": apart,
        "turns": len(each["single"]),
        "load_average": load_average(),
    }


def _turn(call: Callable[[], Any], least: float = 0.05) -> float:
    """Median seconds of a call, over so many seconds of calls after a warm one."""
    call()
    found: list[float] = []
    while sum(found) < least:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return median(found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many torch threads, and no garbage collection."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(before)


# ── digits ───────────────────────────────────────────────────────────────────────────────────


def _digits(folder: Path, quick: bool) -> dict[str, Any]:
    """Accuracy by method and number of deletions, and the latency of ``predict``."""
    config = task_config("demo", folder, quick)
    train(config)
    run_dir = RunDir(config.run_dir)
    with run_dir.ledger() as ledger:
        names = sorted(entry.sample_id for entry in ledger.samples())
    streams = [random.Random(seed).sample(names, DELETIONS[-1]) for seed in range(STREAMS)]
    rows = load_public(config, "test", [str(digit) for digit in range(10)]).inputs
    accuracy: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    latency: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for number, stream in enumerate(streams):
            copy = folder / f"{method}-{number}"
            shutil.copytree(run_dir.root, copy)
            _set_method(copy, method)
            with S3T.load(copy) as model:
                if not number:
                    latency[method] = {
                        str(batch): _turn(partial(model.predict, rows[:batch])) for batch in (1, 64)
                    }
                accuracy[method].append(_along(model, stream))
    return {
        "deletions": DELETIONS,
        "accuracy": accuracy,
        "test_rows": len(rows),
        "predict_seconds": latency,
        "epochs": config.stage.epochs,
    }


def _along(model: S3T, stream: Sequence[str]) -> list[float]:
    """Accuracy after so many of the stream's deletions."""
    found, done = [], 0
    for count in DELETIONS:
        if count > done:
            model.deactivate(stream[done:count])
        done = count
        found.append(model.evaluate().value)
    return found


def _set_method(run: Path, method: str) -> None:
    """Let a run aggregate by another method."""
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree.setdefault("aggregation", {})["method"] = method
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


# ── what is said ─────────────────────────────────────────────────────────────────────────────


def _targets(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sentences, reached = [], {}
    for cell in cells:
        if (cell["shards"], cell["batch"], cell["prefix"]) == (4, 1, 1.0):
            ratio = cell["ratios"]["stacked / single"]["median"]
            if target := TARGETS.get(cell["task"]):
                reached[cell["task"]] = ratio
                sentences.append(
                    f"{cell['task']}: four shards stacked at batch 1 take {ratio:.2f} times a "
                    f"single adapter in peft (target: at most {target})"
                )
    worst = min(cells, key=lambda cell: float(cell["ratios"]["sequential / stacked"]["median"]))
    least = worst["ratios"]["sequential / stacked"]["median"]
    sentences.append(
        f"stacked against sequential: {least:.2f} times as fast at least ({worst['task']}, "
        f"m = {worst['shards']}, batch {worst['batch']}, {worst['threads']} threads)"
    )
    return {
        "stacked / single": reached,
        "least sequential / stacked": least,
        "sentences": sentences,
    }


def _cell_sentence(cell: Mapping[str, Any]) -> str:
    ratios = cell["ratios"]
    return (
        f"{cell['task']} m={cell['shards']} prefix {cell['prefix']:.0%} batch {cell['batch']} "
        f"threads {cell['threads']}: stacked {ratios['stacked / single']['median']:.2f} × single, "
        f"sequential {ratios['sequential / stacked']['median']:.2f} × stacked"
    )


def _views_sentence(name: str, found: Mapping[str, Any]) -> str:
    each = ", ".join(f"{k} {v['median']:.2f} ms" for k, v in found["milliseconds"].items())
    return f"{name}, the next view of {found['shards']} shards: {each}"


def _digits_sentence(found: Mapping[str, Any]) -> str:
    header = ["accuracy after deletions", *map(str, DELETIONS)]
    body = [
        [method, *(f"{100 * fmean(values):.1f}" for values in zip(*streams, strict=True))]
        for method, streams in found["accuracy"].items()
    ]
    predict = "; ".join(
        f"{method}: " + ", ".join(f"{1000 * s:.2f} ms for {n} rows" for n, s in values.items())
        for method, values in found["predict_seconds"].items()
    )
    return f"{table(header, body)}\nS3T.predict: {predict}"


def _table(cells: Sequence[Mapping[str, Any]]) -> str:
    header = ["base", "m", "prefix", "batch", "threads", "single ms", "rows/s stacked"]
    header += [f"{side} × single" for side in SIDES[1:]]
    header += ["sequential / stacked"]
    body = []
    for cell in cells:
        ratios = cell["ratios"]
        body.append(
            [
                cell["task"],
                cell["shards"],
                f"{cell['prefix']:.0%}",
                cell["batch"],
                cell["threads"],
                f"{1000 * cell['seconds']['single']['median']:.2f}",
                f"{cell['rows_per_second']['stacked']:.0f}",
                *(f"{ratios[f'{side} / single']['median']:.2f}" for side in SIDES[1:]),
                f"{ratios['sequential / stacked']['median']:.2f}",
            ]
        )
    return table(header, body)


def _draw(figure: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    """Time over that of a single adapter, by batch: a panel per base and number of shards."""
    panels = figure.subplots(2, len(TASKS), squeeze=False)
    for row, count in enumerate((4, 16)):
        for column, name in enumerate(TASKS):
            panel = panels[row][column]
            chosen = [
                cell
                for cell in cells
                if (cell["task"], cell["shards"], cell["prefix"], cell["threads"])
                == (name, count, 1.0, 1)
            ]
            for side in SIDES[1:]:
                panel.plot(
                    [cell["batch"] for cell in chosen],
                    [cell["ratios"][f"{side} / single"]["median"] for cell in chosen],
                    marker="o",
                    label=side,
                )
            panel.axhline(1, color="grey", linewidth=0.8)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.set_title(f"{name}, m = {count}")
            panel.set_xlabel("rows of a batch")
            panel.set_ylabel("time / single adapter in peft")
    panels[0][0].legend()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
