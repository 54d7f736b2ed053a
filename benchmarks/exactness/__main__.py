"""Every benchmark of exactness, one after another.

    python -m benchmarks.exactness [--output DIR] [--quick] [--only NAME ...]

    equality  runs deleted from and repaired, against runs that never saw the samples: all bytes
    repair    what a repair trains after 1, 5 and 20 deletions, against training all of it again
    machines  every width alone, in groups and without a row, here and on emulated machines; runs
              that are repaired elsewhere; what portable arithmetic costs
    kills     kill -9 at random moments of every command, and an audit after each

Each writes one JSON with the environment.
"""

from __future__ import annotations

import sys

from benchmarks.exactness import OUTPUT
from benchmarks.reports import main_of_all

NAMES = ("equality", "repair", "machines", "kills")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.exactness", NAMES, __doc__, OUTPUT))
