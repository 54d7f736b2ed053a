"""The damage table; see ``benchmarks.damage.table``."""

from __future__ import annotations

from benchmarks.damage import OUTPUT, table
from benchmarks.reports import main

if __name__ == "__main__":
    main(table.run, table.__doc__, OUTPUT)
