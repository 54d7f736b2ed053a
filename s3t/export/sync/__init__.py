"""Engines that serve a run's adapters, kept to what the run serves: s3t sync.

http      JSON over HTTP                            ─┐
metrics   what an engine's /metrics tell            ─┴─► engine    the endpoints of both engines
ending    ends the use of dead adapters             ─┐
probing   whether a living one answers as it should ─┼─► sync      forget, export, load, unload
report    what a sync did                           ─┘
"""

from __future__ import annotations

from s3t.export.sync.ending import EndedAdapter
from s3t.export.sync.engine import ServingEngine, connect
from s3t.export.sync.http import EngineClient, EngineError
from s3t.export.sync.report import Sync, Told, Watching
from s3t.export.sync.sync import Synchroniser

__all__ = [
    "EndedAdapter",
    "EngineClient",
    "EngineError",
    "ServingEngine",
    "Sync",
    "Synchroniser",
    "Told",
    "Watching",
    "connect",
]
