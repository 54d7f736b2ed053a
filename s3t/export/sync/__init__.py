"""Engines that serve a run's adapters, kept to what the run serves: s3t sync.

link (JSON over HTTP) ──► engine (vLLM's and SGLang's endpoints; metrics) ──► ending (what is dead)
and probing (what lives) ──► sync (forget, export, load, probe, unload)
"""

from __future__ import annotations

from s3t.export.sync.ending import Forgotten
from s3t.export.sync.engine import ServingEngine, connect
from s3t.export.sync.http import EngineError, Link
from s3t.export.sync.sync import Sync, Synchroniser, Told, Watching

__all__ = [
    "EngineError",
    "Forgotten",
    "Link",
    "ServingEngine",
    "Sync",
    "Synchroniser",
    "Told",
    "Watching",
    "connect",
]
