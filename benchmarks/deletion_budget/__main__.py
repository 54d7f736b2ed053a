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
    isolations worth by isolation: predicted against trained

Each writes one JSON with the environment, and a picture beside it.
"""

from __future__ import annotations

import sys

from benchmarks.deletion_budget import OUTPUT
from benchmarks.reports import main_of_all

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
    "isolations",
)

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.deletion_budget", NAMES, __doc__, OUTPUT))
