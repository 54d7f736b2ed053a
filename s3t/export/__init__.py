"""A run's adapters as files: for peft, and for engines that serve them.

engine_limits (what an engine takes), probe (rows and answers), merging (all shards in one adapter)
    └──► adapter (files, name) ──► assembly (all of a view) ──► export (a folder of that view)
"""

from __future__ import annotations

from s3t.export.engine_limits import ENGINE_LIMITS, EngineLimits, engine_limits
from s3t.export.export import Exporter, remove_dead
from s3t.export.options import Export, ExportOptions, Merge
from s3t.export.probe import Checked, check_folder

__all__ = [
    "ENGINE_LIMITS",
    "Checked",
    "EngineLimits",
    "Export",
    "ExportOptions",
    "Exporter",
    "Merge",
    "check_folder",
    "engine_limits",
    "remove_dead",
]
