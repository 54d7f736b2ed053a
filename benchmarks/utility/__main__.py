"""What each side serves along deletions, against the goals that it is held to.

    python -m benchmarks.utility [--task NAME …] [--seeds N] [--quick] [--out DIR] [KEY=VALUE …]

Each task writes one JSON with all points and the environment, a table in Markdown, and a picture
beside them. All but digits need ../shared/data (S3T_SHARED_DATA), and are skipped without it.
``--quick`` is one seed and fewer points; of the tasks with data of their own also less data. A
killed benchmark goes on where it was. Several processes may run, one task each.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from functools import partial
from pathlib import Path

import benchmarks.utility
from benchmarks.reports import Report
from benchmarks.utility.found import Found
from benchmarks.utility.measuring import measure
from benchmarks.utility.picture import draw
from benchmarks.utility.tables import tables
from benchmarks.utility.tasks import TASKS, Task


def main() -> int:
    """Run the tasks that are asked for; returns the exit code."""
    options = _parser().parse_intermixed_args()
    if wrong := [word for word in options.words if "=" not in word]:
        _parser().error(f"overrides are KEY=VALUE, got {wrong}")
    logging.disable(logging.WARNING)
    for name in options.task:
        task = TASKS[name]
        if missing := task.missing():
            print(f"{name}: skipped, {missing}", flush=True)
            continue
        _run(task, 1 if options.quick else options.seeds, options)
    return 0


def _run(task: Task, seeds: int, options: argparse.Namespace) -> None:
    report, started = Report(task.name, options.out), time.monotonic()
    points = list(task.few if options.quick else task.points)
    result = {
        "task": task.name,
        "metric": task.metric,
        "quick": options.quick,
        "overrides": options.words,
        "points": points,
        "seeds": [
            measure(
                task,
                seed,
                options.out,
                quick=options.quick,
                words=options.words,
                say=partial(_say, task.name, started),
            )
            for seed in range(seeds)
        ],
    }
    shown = tables(result)
    print(f"\n{shown}\n", flush=True)
    found = Found(result)
    size = (6.5 * len(found.weights), 4.8 * len(found.tests))
    report.finish(result, lambda figure: draw(figure, result), size)
    (options.out / f"{task.name}.md").write_text(shown + "\n", encoding="utf-8")


def _say(task: str, started: float, what: str) -> None:
    print(f"{task}: {time.monotonic() - started:.0f} s: {what}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.utility",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides for all sides")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer points")
    parser.add_argument("--out", type=Path, default=benchmarks.utility.OUTPUT)
    return parser


if __name__ == "__main__":
    sys.exit(main())
