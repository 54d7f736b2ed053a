"""Engines that serve a run's adapters, kept to what the run serves: s3t sync.

link (JSON over HTTP) ──► engine (vLLM's and SGLang's endpoints) ──► sync (forget, export, load,
probe, unload)
"""

from __future__ import annotations

from s3t.syncing.engine import ServingEngine, connect
from s3t.syncing.link import EngineError, Link
from s3t.syncing.sync import Sync, Synchroniser

__all__ = ["EngineError", "Link", "ServingEngine", "Sync", "Synchroniser", "connect"]
