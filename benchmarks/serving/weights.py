"""How long it takes to fit the weights of shards and base, on one core.

    python -m benchmarks.serving.weights [--output DIR] [--quick]

16 shards and the base, on 100,000 terms: tokens of a language model, or rows of a classifier by
classes. Members differ in skill, and the base is worse than most. What is timed is ``fit``, from
log probabilities in memory to rounded weights with their floor checked: the processor's time, so
that other work on the machine counts less.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import table
from benchmarks.reports import Report, main, shown, spread
from benchmarks.serving import OUTPUT
from s3t.serving.ensemble.mixture import fit

MEMBERS, TERMS, CLASSES = 16, 100_000, 10
REPEATS, QUICK = 20, 3


def run(output: Path, quick: bool = False) -> dict[str, Any]:
    """Measure both and print the table."""
    report, found, rows = Report("weights", output), {}, []
    torch.set_num_threads(1)
    for name, (members, base, labels) in {"tokens": _tokens(), "classes": _rows()}.items():
        fit(members, base, labels)  # warm
        seconds = []
        for _ in range(QUICK if quick else REPEATS):
            started = time.thread_time()
            mixture = fit(members, base, labels)
            seconds.append(time.thread_time() - started)
        found[name] = spread(seconds)
        rows.append((name, mixture.terms, mixture.method, shown(found[name], ".0f", 1000)))
    print(table(("of", "terms", "served as", "ms"), rows))
    return report.finish({"seconds": found})


def _tokens() -> tuple[Tensor, Tensor, None]:
    drawn = torch.Generator().manual_seed(0)
    hard = torch.randn(TERMS, generator=drawn).abs() * -2
    skill = torch.linspace(-0.3, 0.3, MEMBERS)[:, None]
    noise = torch.randn(MEMBERS, TERMS, generator=drawn) * 0.3
    base = hard - 0.5 + torch.randn(TERMS, generator=drawn) * 0.3
    return (hard + skill + noise).clamp(max=-1e-4), base.clamp(max=-1e-4), None


def _rows() -> tuple[Tensor, Tensor, Tensor]:
    drawn, rows = torch.Generator().manual_seed(0), TERMS // CLASSES
    labels = torch.randint(0, CLASSES, (rows,), generator=drawn)
    logits = torch.randn(MEMBERS + 1, rows, CLASSES, generator=drawn)
    skill = torch.linspace(0.5, 3.0, MEMBERS + 1).flip(0)[:, None]
    logits[:, torch.arange(rows), labels] += skill
    logs = logits.log_softmax(dim=2)
    return logs[:-1], logs[-1], labels


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
