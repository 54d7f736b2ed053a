"""Every engine benchmark, one after another.

    python -m benchmarks.engine [--output DIR] [--quick] [--only NAME ...]

    same_plan        Trainer + peft, one model per node, against the engine: the same plan
    same_protection  the authors' sequences, each trained apart, against the default set tree
    limit            the operations that a plan needs at least, against what the machine reaches
    inference        latency and throughput of all shards: sequential, mixed, stacked, merged
    deletion         latency of deactivate against ledger size and batch size
    scaling          nodes per hour for 1 and 2 processes, and GPUs where there are some

Each writes one JSON with the environment, and a picture beside it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks.engine import OUTPUT

NAMES = ("same_plan", "same_protection", "limit", "inference", "deletion", "scaling")


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
        importlib.import_module(f"benchmarks.engine.{name}").run(options.output, options.quick)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
