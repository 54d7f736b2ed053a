"""How long a deletion takes, from the call to the durable commit and the new view in force.

    python -m benchmarks.engine.deletion [--output DIR] [--quick]

What is real: the run. configs/digits.yaml is trained in full (4 × 4 slices, 800 private images),
and deletions go through ``S3T.load`` and ``deactivate`` on it throughout: scheduler, SQLite commit
with synchronous FULL, receipt, view swap. What is not: samples beyond the 800 (``ledgers.py``). All
ledgers, of 10⁴ to 10⁷ samples, are made first; what is compared then takes turns.

    one id     rounds of 25 deletions, each from a fresh copy, because a run whose slices are all
               hit has nothing left to switch off; the run opened in each of three ways:
                   ledger only   no model loaded: what ``s3t deactivate`` pays
                   serving       the model has answered, so a deletion also swaps the view
                   under load    a thread keeps predicting 16 images; the deletion waits for the
                                 answer under way
    many ids   one request of 1 to 10,000 ids, ledger only
    opening    ``S3T.load`` and ``status``, then the first answer: seconds and memory
    retraining the other side: the nodes of one shard trained again
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import OUTPUT
from benchmarks.engine.ledgers import alone, images, made_id
from benchmarks.environment import load_average, median, quantile, table
from benchmarks.prepared_data import ROOT
from benchmarks.reports import Report, main
from s3t import S3T, ExhaustedError, S3TError, load_config
from s3t.ledger import Ledger

__all__ = ["run"]

ROUND = 25
"""Deletions from one copy."""

BATCH = 16
"""Images that the thread under load predicts at a time."""

MODES = ("ledger only", "serving", "under load")


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        samples: of the ledgers.
        rounds: of deletions of one id, of each kind.
        batches: ids in one request.
        requests: of each number of ids.
    """

    samples: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    rounds: int = 8
    batches: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    requests: int = 7


QUICK = Size((10_000, 100_000), 2, (1, 10, 100, 1_000), 3)


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure all of it, and write ``deletion.json`` and ``deletion.png``."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    size, report = QUICK if quick else Size(), Report("deletion", output)
    trained = (output / "digits").resolve()
    _train(trained)
    with tempfile.TemporaryDirectory(dir=trained.parent) as name:
        folder = Path(name)
        ledgers, made = _ledgers(trained, folder, size.samples)
        result = {
            "ledgers": made,
            "one": _one(trained, folder, ledgers, size),
            "many": _many(trained, folder, ledgers, size),
            "opening": _opening(trained, folder, ledgers),
            "retrain_shard": _retrained(trained, folder / "retrain"),
        }
    result["flat"] = _flat(result)
    print(_told(result))
    return report.finish(result, lambda figure: _draw(figure, result), (15, 4.5))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# ── the run, its ledgers, and one shard again ────────────────────────────────────────────────


def _train(run_dir: Path) -> Any:
    """Train the digits, or what is missing of them."""
    from s3t.training.work.train import train

    _say(f"training {run_dir.name}")
    os.chdir(ROOT)
    try:
        return train(load_config("configs/digits.yaml", [f"output={run_dir}"]))
    except S3TError as error:
        sys.exit(f"deletion: {error} (a run of an older config: remove {run_dir})")


def _ledgers(
    trained: Path, folder: Path, sizes: Sequence[int]
) -> tuple[dict[int, Path], list[dict[str, Any]]]:
    """A ledger of each size, and what it took to make it."""
    ledgers, made = {}, []
    for size in sizes:
        _say(f"registering {size:,} samples")
        ledgers[size] = folder / f"{size}.db"
        made.append({"samples": size, **alone("build", trained, ledgers[size], size)})
    return ledgers, made


def _retrained(trained: Path, copy: Path) -> dict[str, Any]:
    """Seconds to train the nodes of shard 0, the plain alternative to switching blocks off."""
    shutil.copytree(trained, copy)
    plan = json.loads((copy / "plan.json").read_text(encoding="utf-8"))
    gone = [f"nodes/{node['key']}.safetensors" for node in plan["nodes"] if node["shard"] == 0]
    for node in gone:
        (copy / node).unlink()
    load, before = load_average(), os.times()
    report = _train(copy)
    cpu = sum(os.times()[:4]) - sum(before[:4])  # the workers' too: they have been waited for
    assert report.trained == len(gone)
    return {
        "seconds": report.seconds,
        "cpu_seconds": round(cpu, 2),
        "nodes": report.trained,
        "workers": report.workers,
        "same_bytes": all((copy / n).read_bytes() == (trained / n).read_bytes() for n in gone),
        "load_average": [load, load_average()],
    }


@contextmanager
def _copy(trained: Path, ledger: Path, folder: Path) -> Iterator[Path]:
    """The run over another ledger."""
    copy = folder / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("ledger.db*"))
    shutil.copyfile(ledger, copy / "ledger.db")
    os.sync()  # what the copy left to be written must not be written within a deletion
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


# ── one id ───────────────────────────────────────────────────────────────────────────────────


def _one(trained: Path, folder: Path, ledgers: dict[int, Path], size: Size) -> list[dict[str, Any]]:
    """Seconds of every deletion of one id, by ledger and way of opening; they take turns."""
    own, draw = _own_ids(trained), random.Random(4)
    found = {
        (samples, mode): {"samples": samples, "mode": mode, "seconds": [], "changed": []}
        for mode in MODES
        for samples in ledgers
    }
    load = load_average()
    for number in range(size.rounds):
        _say(f"one id: round {number + 1} of {size.rounds}")
        for (samples, mode), entry in draw.sample(list(found.items()), len(found)):
            ids = [_drawn(own, samples, draw) for _ in range(ROUND)]
            with _copy(trained, ledgers[samples], folder) as copy, S3T.load(copy) as service:
                if mode != "ledger only":
                    service.predict(images(BATCH))
                service.deactivate(ids[:1], dry_run=True)  # warm-up: statements are compiled
                with _load(service, mode == "under load"):
                    receipts = [service.deactivate([one]) for one in ids]
            entry["seconds"] += [receipt.seconds for receipt in receipts]
            entry["changed"] += [bool(receipt.nodes_dead) for receipt in receipts]
    for entry in found.values():
        entry["load_average"] = [load, load_average()]
    return list(found.values())


def _own_ids(trained: Path) -> list[str]:
    with Ledger.open(trained / "ledger.db") as ledger:
        return [entry.sample_id for entry in ledger.samples()]


def _drawn(own: Sequence[str], samples: int, draw: random.Random) -> str:
    number = draw.randrange(samples)
    return own[number] if number < len(own) else made_id(number)


@contextmanager
def _load(service: S3T, wanted: bool) -> Iterator[None]:
    """A thread that predicts without a pause, if wanted; what it meets is raised at the end."""
    stop, failed = threading.Event(), list[Exception]()

    def predict() -> None:
        rows = images(BATCH)
        try:
            while not stop.is_set():
                service.predict(rows)
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


# ── many ids, and opening ────────────────────────────────────────────────────────────────────


def _many(
    trained: Path, folder: Path, ledgers: dict[int, Path], size: Size
) -> list[dict[str, Any]]:
    """Seconds of one request of many ids, by ledger and number of ids; ledgers take turns."""
    own, draw = _own_ids(trained), random.Random(5)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number in range(size.requests):
        _say(f"many ids: round {number + 1} of {size.requests}")
        for samples, ledger in ledgers.items():
            with _copy(trained, ledger, folder) as copy, S3T.load(copy) as service:
                service.deactivate([own[0]])  # warm-up; and the same request again:
                for ids in (n for n in size.batches if n <= samples // 4):
                    entry = found.setdefault(
                        (samples, ids),
                        {"samples": samples, "ids": ids, "seconds": [], "replayed": []},
                    )
                    names = sorted({_drawn(own, samples, draw) for _ in range(2 * ids)})
                    names = draw.sample(names, ids)
                    for kind in ("seconds", "replayed"):
                        receipt = service.deactivate(names, request_id=f"{ids} ids")
                        entry[kind].append(receipt.seconds)
    return list(found.values())


def _opening(trained: Path, folder: Path, ledgers: dict[int, Path]) -> list[dict[str, Any]]:
    """What a fresh process takes to open the run over each ledger."""
    found = []
    for samples, ledger in ledgers.items():
        _say(f"opening {samples:,} samples")
        with _copy(trained, ledger, folder) as copy:
            found.append({"samples": samples, **alone("opened", copy)})
    return found


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    """The two figures that are asked for: p50 at the largest ledger, over that at the smallest."""
    lightly = [entry for entry in result["one"] if entry["mode"] == "ledger only"]
    small, large = quantile(lightly[0]["seconds"], 0.5), quantile(lightly[-1]["seconds"], 0.5)
    return {
        "samples": [lightly[0]["samples"], lightly[-1]["samples"]],
        "p50_ms": round(large * 1e3, 3),
        "ratio": round(large / small, 3),
    }


def _told(result: dict[str, Any]) -> str:
    retrain = result["retrain_shard"]
    one = []
    for entry in result["one"]:
        seconds = entry["seconds"]
        hits = [s for s, changed in zip(seconds, entry["changed"], strict=True) if changed]
        p50 = quantile(seconds, 0.5)
        cells = f"{p50 * 1e3:.2f}", f"{quantile(seconds, 0.99) * 1e3:.1f}"
        hit = f"{quantile(hits, 0.5) * 1e3:.2f}" if hits else "–"
        ratio = f"{retrain['seconds'] / p50:,.0f}"
        one.append([f"{entry['samples']:,}", entry["mode"], *cells, hit, ratio])
    header = ["samples", "run opened for", "p50, ms", "p99, ms", "p50 of hits", "retraining / p50"]
    many = []
    for entry in result["many"]:
        seconds, replayed = median(entry["seconds"]), median(entry["replayed"])
        each = f"{seconds / entry['ids'] * 1e6:,.0f}"
        cells = f"{seconds * 1e3:.1f}", f"{replayed * 1e3:.1f}", each
        many.append([f"{entry['samples']:,}", f"{entry['ids']:,}", *cells])
    rows = []
    for made, opening in zip(result["ledgers"], result["opening"], strict=True):
        status = round((opening["load_seconds"] + opening["status_seconds"]) * 1e3, 1)
        row = [f"{made['samples']:,}", made["register_seconds"], made["register_mib"]]
        row += [made["bytes_per_sample"], status, opening["status_mib"]]
        rows.append([*row, opening["first_answer_seconds"], opening["service_mib"]])
    heads = ["samples", "register, s", "MiB for it", "bytes a sample", "load + status, ms"]
    heads += ["MiB", "first answer, s", "MiB"]
    same = "the same bytes" if retrain["same_bytes"] else "OTHER BYTES"
    flat = result["flat"]
    return "\n\n".join(
        [
            table(header, one),
            table(["samples", "ids", "median, ms", "told again, ms", "µs an id"], many),
            table(heads, rows),
            f"p50 at {flat['samples'][1]:,} samples {flat['p50_ms']} ms, {flat['ratio']} times "
            f"that at {flat['samples'][0]:,}. Retraining one shard ({retrain['nodes']} nodes, "
            f"{retrain['workers']} workers): {retrain['seconds']:.1f} s, {same}",
        ]
    )


def _draw(figure: Any, result: dict[str, Any]) -> None:
    size, ids, shares = figure.subplots(1, 3)
    colours = dict(zip(MODES, ("tab:green", "tab:blue", "tab:orange"), strict=True))
    for mode, colour in colours.items():
        entries = [entry for entry in result["one"] if entry["mode"] == mode]
        samples = [entry["samples"] for entry in entries]
        for share, style in ((0.5, "-o"), (0.99, ":")):
            ms = [quantile(entry["seconds"], share) * 1e3 for entry in entries]
            size.plot(samples, ms, style, color=colour, label=f"{mode}, p{share * 100:.0f}")
        for entry, style in ((entries[0], "--"), (entries[-1], "-")):
            ranked = sorted(second * 1e3 for second in entry["seconds"])
            height = [(number + 1) / len(ranked) for number in range(len(ranked))]
            label = f"{mode}, {entry['samples']:,} samples"
            shares.step(ranked, height, style, where="post", color=colour, label=label)
    for samples in sorted({entry["samples"] for entry in result["many"]}):
        entries = [entry for entry in result["many"] if entry["samples"] == samples]
        ms = [median(entry["seconds"]) * 1e3 for entry in entries]
        ids.plot([entry["ids"] for entry in entries], ms, "-o", label=f"{samples:,} samples")
    retrain = result["retrain_shard"]["seconds"] * 1e3
    shares.axvline(retrain, color="tab:red", label=f"retrain one shard, {retrain / 1e3:.0f} s")
    for axes, title, below in (
        (size, "one id", "samples in the ledger"),
        (ids, "many ids in one transaction", "ids"),
        (shares, "one id: share of deletions done by then", "milliseconds"),
    ):
        axes.set(title=title, xlabel=below, xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in (size, ids):
        axes.set(ylabel="milliseconds", yscale="log")


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
