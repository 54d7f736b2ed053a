"""Damage to runs: what is found, what is harmless, and that nothing dead is served.

    python -m benchmarks.damage [--output DIR] [--quick] [--only NAME ...]

    table  kinds of damage by who knows s3t well, and whether ``s3t audit`` finds and names each
    flips  bits of a small run, one at a time: 100,000 and more, or some thousands
    kills  kill -9 among processes that write to one ledger, and a fault at every sync and rename

Each writes one JSON with the environment.
"""

from __future__ import annotations

import sys

from benchmarks.damage import OUTPUT
from benchmarks.reports import main_of_all

NAMES = ("table", "flips", "kills", "crashes")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.damage", NAMES, __doc__, OUTPUT))
