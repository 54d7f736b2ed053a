"""How long a deletion takes, from the call to the durable commit and the new view in force.

    python -m benchmarks.deletion_latency [--deletions 200] [--sizes 1000 1000000]

What is real: the run. configs/digits.yaml is trained in full (4 × 4 slices, 64 nodes, 800 private
images), and deletions go through ``S3T.load`` and ``deactivate`` on the same trie throughout:
scheduler, SQLite commit with synchronous FULL, receipt, view swap. What is not: samples beyond the
800. They are registered in a fresh ledger of a copy of the run through ``Ledger.register``, each in
the place that its hash gives it; no node was trained on them, which the ledger cannot tell. The
run's own 800 are registered beside them, and what is deleted is drawn from all.

Each of three ways of opening the run gives 200 deletions of one id, in rounds of 25 from a fresh
copy, because a run whose slices are all hit has nothing left to switch off:

    ledger only   no model loaded: what ``s3t deactivate`` and a deletion service pay
    serving       the model has answered before, so each deletion also builds and swaps the view
    under load    a thread keeps predicting 16 images; the deletion waits for the answer under way

The other side, in the same process: the nodes of one shard taken from a copy and trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import environment, load_average, quantile, table, write_json
from benchmarks.prepared_data import ROOT

if TYPE_CHECKING:
    from s3t import S3T
    from s3t.types import Place, Sample

__all__ = ["main"]

RUN = Path("runs/benchmarks/digits")
ROUND = 25
BATCH = 16
MODES = ("ledger only", "serving", "under load")


def main() -> int:
    """Run the benchmark."""
    arguments = _arguments()
    os.chdir(ROOT)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    started = time.perf_counter()
    result: dict[str, Any] = {"environment": environment(), "deletions": arguments.deletions}
    _say("training configs/digits.yaml")
    result["training_seconds"] = _trained(RUN)
    with tempfile.TemporaryDirectory(dir=RUN.parent) as folder:
        _say("training one shard again")
        result["retrain_shard"] = _retrained(Path(folder) / "retrain")
        result["latency"] = [
            found
            for size in arguments.sizes
            for found in _latencies(size, arguments.deletions, Path(folder))
        ]
    result["seconds"] = round(time.perf_counter() - started, 1)
    write_json(arguments.output, result)
    _draw(result, arguments.output.with_suffix(".png"))
    print(_table(result))
    print(f"\n{arguments.output} and the picture beside it, {result['seconds']:.0f} s in all")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.deletion_latency", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--deletions", type=int, default=200, help="of each kind")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 1_000_000])
    parser.add_argument(
        "--output", type=Path, default=Path("runs/benchmarks/deletion_latency.json")
    )
    return parser.parse_args()


def _say(what: str) -> None:
    print(f"deletion_latency: {what}", file=sys.stderr, flush=True)


# ── the run, and one shard of it again ───────────────────────────────────────────────────────


def _trained(run: Path) -> float | None:
    """Train the digits unless they are trained; seconds, None if nothing was left to do."""
    report = _train(run)
    return report.seconds if report.trained else None


def _train(run: Path) -> Any:
    from s3t import S3TError, load_config
    from s3t.training.walk import train

    try:
        return train(load_config("configs/digits.yaml", [f"output={run}"]))
    except S3TError as error:
        sys.exit(f"deletion_latency: {error} (a run of an older config: remove {RUN})")


def _retrained(copy: Path) -> dict[str, Any]:
    """Seconds to train the nodes of shard 0, the plain alternative to switching blocks off."""
    shutil.copytree(RUN, copy)
    plan = json.loads((copy / "plan.json").read_text(encoding="utf-8"))
    gone = [node["key"] for node in plan["nodes"] if node["shard"] == 0]
    for key in gone:
        (copy / "nodes" / f"{key}.safetensors").unlink()
    load, before_cpu = load_average(), os.times()
    report = _train(copy)
    cpu = sum(os.times()[:4]) - sum(before_cpu[:4])  # the workers' too: they have been waited for
    assert report.trained == len(gone)
    same = all(
        (folder / "nodes" / f"{key}.safetensors").read_bytes() == before
        for key in gone
        for folder, before in [(copy, (RUN / "nodes" / f"{key}.safetensors").read_bytes())]
    )
    return {
        "seconds": report.seconds,
        "cpu_seconds": round(cpu, 2),
        "nodes": report.trained,
        "workers": report.workers,
        "same_bytes": same,
        "load_average": [load, load_average()],
    }


# ── deletions ────────────────────────────────────────────────────────────────────────────────


def _latencies(size: int, deletions: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Latencies over a ledger of ``size`` samples, one entry for each mode."""
    _say(f"registering {size:,} samples")
    started = time.perf_counter()
    ledger = folder / f"{size}.db"
    ids = _filled(ledger, size)
    registering = round(time.perf_counter() - started, 2)
    draw = random.Random(size)
    for mode in MODES:
        _say(f"{size:,} samples, {mode}")
        load = load_average()
        seconds: list[float] = []
        changed: list[bool] = []
        while len(seconds) < deletions:
            count = min(ROUND, deletions - len(seconds))
            for receipt in _round(ledger, folder / "round", draw.sample(ids, count), mode):
                seconds.append(receipt.seconds)
                changed.append(bool(receipt.nodes_dead))
        yield {
            "samples": size,
            "mode": mode,
            "deletions": len(seconds),
            "changed_the_view": sum(changed),
            "seconds": seconds,
            "changed": changed,
            "register_seconds": registering,
            "ledger_bytes": ledger.stat().st_size,
            "load_average": [load, load_average()],
        }
    ledger.unlink()


def _filled(path: Path, size: int) -> list[str]:
    """A fresh ledger of ``size`` samples, the real ones among them; their ids."""
    from s3t.ledger import Ledger

    ids: list[str] = []

    def registered() -> Iterator[tuple[Sample, Place]]:
        for sample, place in _samples(size):
            ids.append(sample.id)
            yield sample, place

    with Ledger.open(path, create=True) as ledger:
        ledger.register(registered())
    return ids


def _samples(size: int) -> Iterator[tuple[Sample, Place]]:
    """The run's samples, and synthetic ones up to ``size``, each with its place."""
    from s3t import load_config
    from s3t.data import label_names, load_private
    from s3t.partition import place
    from s3t.types import Digest, Sample, SampleId

    config = load_config(RUN / "config.yaml")
    shape = config.partition
    real = load_private(config, label_names(config)).samples
    for number in range(size):
        if number < len(real):
            sample = real[number]
        else:
            content = Digest(hashlib.sha256(b"synthetic %d" % number).hexdigest())
            sample = Sample(SampleId(f"synthetic-{number:08d}"), None, content)
        yield sample, place(sample, shape.shards, shape.slices, shape.salt)


def _round(ledger: Path, copy: Path, ids: Sequence[str], mode: str) -> list[Any]:
    """Delete ids one by one from a fresh copy of the run over the ledger; the receipts."""
    from s3t import S3T

    shutil.copytree(RUN, copy, ignore=shutil.ignore_patterns("ledger.db*"))
    shutil.copyfile(ledger, copy / "ledger.db")
    os.sync()  # what the copy left to be written must not be written within a deletion
    try:
        with S3T.load(copy) as service:
            if mode != "ledger only":
                service.predict(_images(BATCH))
            service.deactivate(ids[:1], dry_run=True)  # warm-up: statements are compiled
            with _load(service, mode == "under load"):
                return [service.deactivate([one]) for one in ids]
    finally:
        shutil.rmtree(copy)


@contextmanager
def _load(service: S3T, wanted: bool) -> Iterator[None]:
    """A thread that predicts without a pause, if wanted; what it meets is raised at the end."""
    from s3t import ExhaustedError

    stop, failed = threading.Event(), []

    def predict() -> None:
        images = _images(BATCH)
        try:
            while not stop.is_set():
                service.predict(images)
        except ExhaustedError:
            pass  # every slice was hit: there is nothing left to predict with
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=predict)
    if wanted:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if wanted:
            thread.join()
    if failed:
        raise failed[0]


def _images(count: int) -> list[Any]:
    from sklearn.datasets import load_digits

    return [image / 16 for image in load_digits().images[:count]]


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _table(result: dict[str, Any]) -> str:
    retrain = result["retrain_shard"]
    rows = []
    for found in result["latency"]:
        seconds = found["seconds"]
        hits = [s for s, changed in zip(seconds, found["changed"], strict=True) if changed]
        p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
        rows.append(
            [
                f"{found['samples']:,}",
                found["mode"],
                f"{p50 * 1e3:.1f}",
                f"{p99 * 1e3:.1f}",
                f"{quantile(hits, 0.5) * 1e3:.1f}" if hits else "–",
                f"{retrain['seconds'] / p50:,.0f}",
                f"{retrain['seconds'] / p99:,.0f}",
            ]
        )
    header = ["samples", "run opened for", "p50, ms", "p99, ms", "p50 of hits, ms"]
    header += ["retraining / p50", "retraining / p99"]
    return (
        f"{table(header, rows)}\n\n{result['deletions']} deletions of one id a row, durable commit "
        "included; hits are those that switch nodes off. Retraining one shard "
        f"({retrain['nodes']} nodes, {retrain['workers']} workers): {retrain['seconds']:.1f} s, "
        f"{retrain['cpu_seconds']:.1f} s of processor time, "
        f"{'the same bytes' if retrain['same_bytes'] else 'OTHER BYTES'}"
    )


def _draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    styles = dict(
        zip(sorted({f["samples"] for f in result["latency"]}), ("-", "--", ":"), strict=False)
    )
    colours = dict(zip(MODES, ("tab:green", "tab:blue", "tab:orange"), strict=True))
    for found in result["latency"]:
        ranked = sorted(found["seconds"])
        shares = [(number + 1) / len(ranked) for number in range(len(ranked))]
        axes.step(
            [value * 1e3 for value in ranked],
            shares,
            where="post",
            color=colours[found["mode"]],
            linestyle=styles.get(found["samples"], "-."),
            label=f"{found['samples']:,} samples, {found['mode']}",
        )
    retrain = result["retrain_shard"]["seconds"]
    axes.axvline(retrain * 1e3, color="tab:red", label=f"retrain one shard, {retrain:.1f} s")
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("share of deletions done by then")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.42, 0.9))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
