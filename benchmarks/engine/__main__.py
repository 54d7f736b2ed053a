"""Every engine benchmark, one after another.

    python -m benchmarks.engine [--output DIR] [--quick] [--only NAME ...]

    same_plan        Trainer + peft, one model per node, against the engine: the same plan
    same_protection  the authors' sequences, each trained apart, against the default set tree
    limit            the operations that a plan needs at least, against what the machine reaches
    inference        latency and throughput of all shards: sequential, mixed, stacked, merged
    deletion         latency of deactivate against ledger size and batch size
    startup          seconds to the first step, what is loaded for it, and memory
    scaling          nodes per hour for 1 and 2 processes, and GPUs where there are some

Each writes one JSON with the environment, and a picture beside it.
"""

from __future__ import annotations

import sys

from benchmarks.engine import OUTPUT
from benchmarks.reports import main_of_all

NAMES = ("same_plan", "same_protection", "limit", "inference", "deletion", "startup", "scaling")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.engine", NAMES, __doc__, OUTPUT))
