"""Damage to a run, kind by kind, and whether ``s3t audit`` finds and names it.

victim ──► files (kinds: files), records (kinds: ledger) ──► table ──► __main__
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["OUTPUT"]

OUTPUT = Path("runs/benchmarks/damage")
