"""All kinds of damage."""

from __future__ import annotations

from tests.harness.damage import files, records

__all__ = ["KINDS"]

KINDS = (*files.KINDS, *records.KINDS)
