"""Damage to a run, kind by kind and bit by bit, and processes that are killed while they write.

victim ──► files (kinds: files), records (kinds: ledger) ──► table ──► __main__
       └─► opening ──► flips ────────────────────────────────────────────┤
made ──► writers ──► kills ──────────────────────────────────────────────┘
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["OUTPUT"]

OUTPUT = Path("runs/benchmarks/damage")
