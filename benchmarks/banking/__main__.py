"""``python -m benchmarks.banking [--quick]``."""

from __future__ import annotations

import benchmarks.banking
from benchmarks.banking.comparison import run
from benchmarks.reports import main

if __name__ == "__main__":
    main(run, benchmarks.banking.__doc__, benchmarks.banking.OUTPUT)
