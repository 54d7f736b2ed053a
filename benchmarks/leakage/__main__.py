"""All leakage benchmarks, one after another: ``python -m benchmarks.leakage [--quick]``."""

from __future__ import annotations

import sys

from benchmarks.leakage import OUTPUT
from benchmarks.reports import main_of_all

if __name__ == "__main__":
    names = ("digits", "persons", "authors", "isolations")
    sys.exit(main_of_all("benchmarks.leakage", names, __doc__, OUTPUT))
