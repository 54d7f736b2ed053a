"""The benchmark's command line: ``python -m benchmarks.lmeraser [--quick] [--output DIR]``."""

from benchmarks import lmeraser
from benchmarks.lmeraser.comparison import run
from benchmarks.reports import main

if __name__ == "__main__":
    main(run, lmeraser.__doc__, lmeraser.OUTPUT)
