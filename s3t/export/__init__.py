"""Adapters of a run for others: for peft, and for engines that serve it.

engines (what they take), probe (rows and answers), merging (all shards in one)
    └──► adapter (files, name) ──► assembly (of a view) ──► export (a folder, brought to that view)
"""

from __future__ import annotations

from s3t.export.engine_limits import ENGINES, Engine, engine_named
from s3t.export.export import Exporter, remove_dead
from s3t.export.options import Export, Merge, Wanted
from s3t.export.probe import Checked, check_folder

__all__ = [
    "ENGINES",
    "Checked",
    "Engine",
    "Export",
    "Exporter",
    "Merge",
    "Wanted",
    "check_folder",
    "engine_named",
    "remove_dead",
]
