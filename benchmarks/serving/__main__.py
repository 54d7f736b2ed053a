"""Every benchmark of the service, one after another.

    python -m benchmarks.serving [--output DIR] [--quick] [--only NAME ...]

    load      32 users while 200 deletions arrive and a repair runs, beside one plain peft model
    latency   deletions accepted and effective: one replica on SQLite, three on PostgreSQL
    faults    killed replicas and databases, partitions, clocks, full disks, damaged nodes
    weights   fitting the weights of 16 shards on 100,000 public terms
    security  bad and hostile input, and what each got

Each writes one JSON with the environment.
"""

from __future__ import annotations

import sys

from benchmarks.reports import main_of_all
from benchmarks.serving import OUTPUT

NAMES = ("load", "latency", "faults", "weights", "security")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.serving", NAMES, __doc__, OUTPUT))
