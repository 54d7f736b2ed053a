"""Benchmarks of the deletion budget: ``python -m benchmarks.deletion_budget`` runs them all."""

from pathlib import Path

OUTPUT = Path("runs/benchmarks/deletion_budget")
"""Where their results go unless told otherwise."""
