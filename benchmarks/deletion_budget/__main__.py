"""Every deletion-budget benchmark, one after another.

    python -m benchmarks.deletion_budget [--output DIR] [--quick] [--only NAME ...]

    rates      deletion rates against the exact ones: SISA, S3T, all permutations; by B, m, L
    curves     what still serves after each number of deletions
    quality    every strategy against the bound and the optimum; the cost of the set tree
    tiers      what risk tiers bring
    planner    time of a 64-cell grid, and its front
    forecast   whether forecasts hold what they say
    speed      the simulation against a plain loop
    scale      m = 1,000, L = 64, B = 256, 10⁸ requests; how far exact goes
    accuracy   accuracy along deletions, trained

Each writes one JSON with the environment, and a picture beside it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.deletion_budget import OUTPUT

NAMES = (
    "rates",
    "curves",
    "quality",
    "tiers",
    "planner",
    "forecast",
    "speed",
    "scale",
    "accuracy",
)


def main() -> int:
    """Run them; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    options = parser.parse_args()
    for name in options.only:
        started = time.monotonic()
        print(f"\n── {name} ──", flush=True)
        importlib.import_module(f"benchmarks.deletion_budget.{name}").run(
            options.output, options.quick
        )
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
