"""Damage to a run, kind by kind and bit by bit, and processes that are killed while they write.

table (kinds of damage), flips (bits), kills and crashes (writers): what
``tests.harness.damage`` does, counted.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["OUTPUT"]

OUTPUT = Path("runs/benchmarks/damage")
