"""Worth by isolation: what the planner predicts against what trained models do, on digits.

    python -m benchmarks.deletion_budget.isolations [--output DIR] [--quick]

For each isolation that ``s3t budget --target`` compares: the cyclic plan of 4 shards × 4 slices
over the weak base, trained on the same partition and base. Worth is accuracy on the public test
data as a fraction of one LoRA's on all private data; members are weighted by the data that they
have seen.

    prefixes    all shards at k = 1 … 4 slices, a mean over the rotations
    start, along, end    along the same streams of 24 random deletions, nothing retrained

Figures of this kind are the source of the tables in ``s3t/plan/budget/stages.py``. A killed run
goes on where it was: nodes are kept below ``runs``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from benchmarks.adoption import on_base_of, trained
from benchmarks.deletion_budget import OUTPUT
from benchmarks.deletion_budget.accuracy import CONFIG, FULL, QUICK
from benchmarks.deletion_budget.along import Scorer, requests, trace
from benchmarks.environment import table
from benchmarks.reports import Report, main
from s3t import load_config
from s3t.config import Config
from s3t.plan.budget.candidates import candidates
from s3t.plan.budget.question import Question
from s3t.plan.budget.stages import KINDS, Stages, one_lora_curve
from s3t.plan.budget.target import worths

__all__ = ["run"]

SHARDS, SLICES, DELETIONS, EPOCHS = 4, 4, 24, 10
WEAK = ("model.adapt.rotations=true", "stage.head=fresh")
PLAN = (
    f"sequences={{strategy: cyclic, budget: {SLICES}}}",
    "aggregation={weights: data, on_exhausted: base}",
)


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Train, forget, compare; returns what the JSON holds."""
    report = Report("isolations", output)
    words = (*WEAK, *PLAN, *((*QUICK, "model.adapt.steps=100") if quick else ()))
    folder = output / "runs" / ("isolations-quick" if quick else "isolations")
    full = trained(_placed((*words, *FULL), folder / "one-lora")).run
    one_lora = Scorer(full, {}).of(tuple(Scorer(full, {}).plan.forest))
    base = on_base_of(full)
    layers = int(load_config(CONFIG).model.make.layers)
    entries = []
    for kind in _distinct(layers):
        section = yaml.safe_load(f"{{{kind.section(layers, SLICES, 1 if quick else EPOCHS)}}}")
        stage = [f"stage.{key}={value}" for key, value in section.items()]
        name = str(kind).replace(", ", "-")
        done = trained(_placed((*words, *base, *stage), folder / name))
        measured = _measured(Scorer(done.run, {}), 1 if quick else 20, one_lora)
        samples = sum(map(sum, done.run.plan().sizes))
        entries.append({"stages": str(kind), **measured, **_predicted(kind, samples, layers)})
        print(f"{kind}: {done.trained} nodes trained in {done.seconds:.0f} s", flush=True)
    print(_table(entries))
    return report.finish({"one_lora": one_lora, "entries": entries})


def _placed(words: Sequence[str], where: Path) -> Config:
    return load_config(CONFIG, (*words, f"output={where}"))


def _distinct(layers: int) -> list[Stages]:
    """The isolations that train something of their own: with few layers "wide" is nested."""
    found: dict[str, Stages] = {}
    for kind in KINDS:
        plain = replace(kind, wider=0)
        same = plain.held(layers, SLICES).tolist() == kind.held(layers, SLICES).tolist()
        found.setdefault(str(plain if same else kind), kind)
    return list(found.values())


def _measured(scorer: Scorer, streams: int, one_lora: float) -> dict[str, Any]:
    """What was measured, as fractions of one LoRA's accuracy."""
    forest, shards = scorer.plan.forest, scorer.plan.shards
    prefixes = []
    for stage in range(1, SLICES + 1):
        of = [[n for n in forest.of_shard(shard) if n.stage == stage] for shard in range(shards)]
        prefixes.append(fmean(scorer.of(nodes) for nodes in zip(*of, strict=True)) / one_lora)
    traces = [
        trace(scorer, requests(scorer.run, DELETIONS, f"isolations {number}")).values
        for number in range(streams)
    ]
    mean = np.mean(traces, axis=0) / one_lora
    ends = {"start": float(mean[0]), "along": float(mean.mean()), "end": float(mean[-1])}
    return {"prefixes": prefixes, "measured": ends}


def _predicted(kind: Stages, samples: int, layers: int) -> dict[str, Any]:
    """What the planner expects of the same plan."""
    curve = one_lora_curve(samples)
    question = Question(samples, layers, DELETIONS, curve=curve, stages=kind)
    found = candidates(question)
    cell = (found.shards == SHARDS) & (found.slices == SLICES) & found.kinds("cyclic")
    row = int(np.flatnonzero(cell)[0])
    ends = zip(("start", "along", "end"), worths(found), strict=True)
    return {
        "predicted_prefixes": question.worth(SHARDS, SLICES)[1:].tolist(),
        "predicted": {name: float(column[row]) for name, column in ends},
        "cost": float(found.cost[row]),
    }


def _table(entries: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            entry["stages"],
            f"{entry['cost']:.2f}",
            *(
                f"{one:.3f} ({other:.3f})"
                for one, other in (
                    *zip(entry["prefixes"], entry["predicted_prefixes"], strict=True),
                    *((entry["measured"][at], entry["predicted"][at]) for at in entry["measured"]),
                )
            ),
        ]
        for entry in entries
    ]
    prefixes = [f"{k} of {SLICES} slices" for k in range(1, SLICES + 1)]
    header = ["measured (predicted)", "cost", *prefixes, "start", "along", f"after {DELETIONS}"]
    return table(header, rows)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
