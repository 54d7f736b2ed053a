"""Accuracy against deletions, on trained models: does a cheaper tree serve as well?

    python -m benchmarks.deletion_budget.accuracy [CONFIG] [KEY=VALUE …]
        [--output DIR] [--quick] [--salts A B …] [--streams N] [--steps R R …]

All methods train on the same partition and the same base, and the same deletions come to each of
them, one after another, without retraining. S3T (isolation by layers):

    cyclic            the paper's plan, one rotation per slice, B = L: the reference
    tree, same sets   the set tree within L sequences: protects what cyclic does
    tree at 60 %      the set tree at 60 % of cyclic's slice passes, planned as a config does that
                      says no more: data is worth its share, protection counts over one request
                      per slice
    measured tree     the same cost, planned for the worth of prefixes as measured in the first
                      partition and for as many requests as come
    rotations at 60 % as many evenly spaced rotations as the same 60 % pay for
    one sequence      B = 1

and SISA (snapshots of the whole adapter): one sequence, cyclic, and the tree at 60 %, the same
trees as S3T trains. Beside them one LoRA fine-tune on all private data, and the base alone, which
answers where no shard serves any more.

Nodes with the same key are trained once and copied. What is served after each deletion follows from
the scheduler alone, so streams cost little; one stream per method also goes through the public
service, and must give the same prefixes and the same accuracy.

Writes accuracy.json (with the environment), accuracy.png and curve.csv, the measured utility of a
single prefix of snapshots against its samples, which ``s3t budget --curve`` reads. Runs are kept
beside them; a killed benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers have one thread each; so do small models

from torch import Tensor

from benchmarks.adoption import Trained, on_base_of, trained
from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.accuracy_report import contrasts, draw, figures, show
from benchmarks.deletion_budget.along import Scorer, Trace, checked, requests, trace
from benchmarks.deletion_budget.worth import (
    Prefix,
    curve,
    nothing_of,
    planned_for,
    prefixes_of,
    write_curve,
)
from benchmarks.reports import Report
from s3t import load_config
from s3t.config import Config
from s3t.run import RunDir
from s3t.types import NodeKey, digest

__all__ = ["main", "run"]

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"
SALTS = tuple("abcdefghij")
STREAMS = 20
SHARE = 0.6
REFERENCE = "S3T, cyclic"
MEASURED = "S3T, measured tree at 60 %"
CONTRASTS = {
    "tree at 60 % − cyclic, S3T": ("S3T, tree at 60 %", "S3T, cyclic"),
    "measured tree at 60 % − cyclic, S3T": (MEASURED, "S3T, cyclic"),
    "measured tree − tree, both at 60 %": (MEASURED, "S3T, tree at 60 %"),
    "tree at 60 % − cyclic, SISA": ("SISA, tree at 60 %", "SISA, cyclic"),
    "tree − rotations, both at 60 %": ("S3T, tree at 60 %", "S3T, rotations at 60 %"),
    "cyclic − one sequence, S3T": ("S3T, cyclic", "S3T, one sequence"),
    "cyclic − one sequence, SISA": ("SISA, cyclic", "SISA, one sequence"),
    "layers − snapshots, cyclic": ("S3T, cyclic", "SISA, cyclic"),
    "layers − snapshots, tree at 60 %": ("S3T, tree at 60 %", "SISA, tree at 60 %"),
    "layers − snapshots, one sequence": ("S3T, one sequence", "SISA, one sequence"),
}
"""What each choice brings: mean differences along the stream, the first less the second."""
STEPS = (0, 0.125, 0.25, 0.5, 0.75, 1, 1.5)
"""Requests per slice: at the last, about half of the shards of a cyclic plan are still served."""
QUICK = ("stage.epochs=1",)
FULL = (
    "partition.shards=1",
    "partition.slices=1",
    "partition.risk=null",
    "stage.isolation=snapshot",
    "sequences={strategy: cyclic, budget: 1}",
)


@dataclass(frozen=True)
class Asked:
    """What one call of the benchmark measures.

    Attributes:
        config: path of the config.
        words: overrides of it.
        output: where runs and figures go.
        salts: one partition each.
        streams: of deletions, per partition.
        steps: numbers of deletions that the table shows, ascending from 0.
    """

    config: Path
    words: tuple[str, ...]
    output: Path
    salts: tuple[str, ...]
    streams: int
    steps: tuple[int, ...]


def main() -> int:
    """Run the benchmark; returns 0 only if the service agreed wherever it was asked."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.deletion_budget.accuracy", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("words", nargs="*", metavar="CONFIG | KEY=VALUE")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="one short training, one stream")
    parser.add_argument("--salts", nargs="+")
    parser.add_argument("--streams", type=int)
    parser.add_argument("--steps", type=int, nargs="+")
    options = parser.parse_intermixed_args()
    configs = [word for word in options.words if "=" not in word]
    if len(configs) > 1:
        parser.error(f"one config at most, got {configs}")
    asked = _asked(
        Path(configs[0]) if configs else CONFIG,
        tuple(word for word in options.words if "=" in word),
        options.output,
        options.quick,
    )
    asked = replace(
        asked,
        salts=tuple(dict.fromkeys(options.salts or asked.salts)),
        streams=options.streams or asked.streams,
        steps=tuple(sorted({0, *(options.steps or asked.steps)})),
    )
    result = measure(asked)
    return 0 if not result["service"]["different"] else 1


def run(output: Path, quick: bool) -> dict[str, Any]:
    """The benchmark on digits, for a collector: its figures as JSON values.

    Args:
        output: where runs, JSON, picture and curve go.
        quick: one partition, one stream, one epoch: shows that it works, not how well.
    """
    return measure(_asked(CONFIG, (), output, quick))


def _asked(config: Path, words: tuple[str, ...], output: Path, quick: bool) -> Asked:
    if quick:
        adapt = load_config(config, words).model.adapt
        words = (*words, *QUICK, *(("model.adapt.steps=100",) if adapt else ()))
    shape = load_config(config, words).partition
    steps = tuple(round(step * shape.shards * shape.slices) for step in STEPS)
    salts, streams = (SALTS[:1], 1) if quick else (SALTS, STREAMS)
    return Asked(config, words, output, salts, streams, steps)


def methods(config: Config, worth: str = "") -> dict[str, tuple[str, ...]]:
    """Overrides by method; the reference first, so that the others find its nodes.

    Args:
        config: the config.
        worth: keys of ``sequences`` for the tree that is planned by what was measured.
    """
    slices = config.partition.slices
    cumulative = config.stage.slices == "cumulative"
    passes = slices * sum(stage if cumulative else 1 for stage in range(1, slices + 1))
    cut = f"unit: slice-passes, budget: {max(1, round(SHARE * passes))}"
    kept = f"horizon: {config.sequences.horizon}"
    if config.sequences.utility is not None:
        kept += f", utility: {list(config.sequences.utility)}"
    plans = {
        "cyclic": f"strategy: cyclic, budget: {slices}",
        "tree, same sets": f"strategy: tree, budget: {slices}, {kept}",
        "tree at 60 %": f"strategy: tree, {cut}, {kept}",
        "rotations at 60 %": f"strategy: even, {cut}",
        "one sequence": "strategy: cyclic, budget: 1",
    }
    s3t = {f"S3T, {name}": ("layers", plan) for name, plan in plans.items()}
    sisa = {
        f"SISA, {name}": ("snapshot", plans[name])
        for name in ("cyclic", "tree at 60 %", "one sequence")
    }
    measured = {MEASURED: ("layers", f"strategy: tree, {cut}, {worth}")}
    return {
        name: (f"stage.isolation={isolation}", f"sequences={{{plan}}}")
        for name, (isolation, plan) in {**s3t, **sisa, **measured}.items()
    }


@dataclass
class Gathered:
    """What the partitions have given so far, by method where it is a mapping."""

    traces: dict[str, dict[str, list[Trace]]]
    costs: dict[str, list[dict[str, Any]]]
    prefixes: list[Prefix]
    alone: dict[str, float]
    different: list[str]


def measure(asked: Asked) -> dict[str, Any]:
    """Train, forget, compare; write JSON, picture and curve, and print the tables."""
    started, report = time.perf_counter(), Report("accuracy", asked.output)
    config = load_config(asked.config, asked.words)
    folder = asked.output / "runs" / f"{asked.config.stem}-{digest(list(asked.words))[:8]}"
    plans = methods(config)
    found = Gathered({method: {} for method in plans}, {m: [] for m in plans}, [], {}, [])
    base: tuple[str, ...] = ()
    worth, nothing = "", 0.0
    for salt in asked.salts:
        runs: dict[str, RunDir] = {}
        for number, method in enumerate(plans):
            where = folder / f"{salt}-{number}"
            words = (*asked.words, f"partition.salt={salt}", *methods(config, worth)[method])
            done = trained(_placed(asked.config, words, base, where), runs.values())
            runs[method] = done.run
            base = base or on_base_of(done.run)
            if not worth:
                scorer = Scorer(done.run, {})
                nothing, worth = nothing_of(scorer), planned_for(scorer, max(asked.steps))
            _say(f"{salt}, {method}: {_sentence(done)}")
        _forget(asked, salt, runs, found)
        if not found.alone:
            everything = (*asked.words, *FULL)
            full = trained(_placed(asked.config, everything, base, folder / "full"))
            found.alone = _alone(full.run, runs[REFERENCE])
        _say(f"{salt}: {asked.streams} streams, {time.perf_counter() - started:.0f} s so far")
    result: dict[str, Any] = {
        "config": asked.config.name,
        "overrides": list(asked.words),
        "metric": "accuracy" if config.task != "causal-lm" else "perplexity",
        "salts": list(asked.salts),
        "streams": asked.streams,
        "steps": list(asked.steps),
        "reference": REFERENCE,
        **found.alone,
        "methods": figures(found.traces, found.costs, asked.steps, REFERENCE),
        "worth": worth,
        "contrasts": contrasts(found.traces, CONTRASTS),
        "service": {"streams": len(plans), "different": found.different},
        "curve": curve(found.prefixes, nothing),
        "seconds": round(time.perf_counter() - started, 1),
    }
    show(result)
    write_curve(asked.output / "curve.csv", result["curve"])
    return report.finish(result, lambda figure: draw(figure, result), size=(12, 4.6))


def _forget(asked: Asked, salt: str, runs: Mapping[str, RunDir], found: Gathered) -> None:
    """All streams of one partition, for every method; the first of all through the service too."""
    known: dict[NodeKey, Tensor] = {}
    scorers = {method: Scorer(run, known) for method, run in runs.items()}
    longest = max(asked.steps)
    streams = [
        requests(runs[REFERENCE], longest, f"{salt} {number}") for number in range(asked.streams)
    ]
    if len(streams[0]) < longest:
        sys.exit(f"accuracy: only {len(streams[0])} can ask to be forgotten: give --steps")
    for method, scorer in scorers.items():
        traces = [trace(scorer, stream) for stream in streams]
        found.traces[method][salt] = traces
        found.costs[method].append(scorer.plan.summary())
        if salt == asked.salts[0]:
            found.different += checked(scorer, streams[0], traces[0], asked.steps)
    for scorer in scorers.values():
        found.prefixes += prefixes_of(scorer) if scorer.by_samples else ()


def _placed(path: Path, words: Sequence[str], base: Sequence[str], where: Path) -> Config:
    fixed = ("aggregation.on_exhausted=base", f"output={where}")
    return load_config(path, (*words, *base, *fixed))


def _alone(full: RunDir, run: RunDir) -> dict[str, float]:
    """What frames the figure: one fine-tune on all private data, and the base with a public head.

    Neither depends on the partition.
    """
    tuned, scorer = Scorer(full, {}), Scorer(run, {})
    (node,) = tuned.plan.forest
    nobody = (None,) * scorer.plan.shards
    return {
        "base": scorer.of(nobody),
        "base_utility": scorer.utility(nobody),
        "full_lora": tuned.of((node,)),
    }


def _sentence(found: Trained) -> str:
    return (
        f"{found.nodes} nodes, {found.adopted} taken over, {found.trained} trained, "
        f"{found.seconds:.1f} s"
    )


def _say(what: str) -> None:
    print(f"accuracy: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
