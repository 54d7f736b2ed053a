"""Benchmarks of the engine: ``python -m benchmarks.engine`` runs them all."""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/engine")
"""Where their results go unless told otherwise."""

# read once, when torch and transformers are loaded: sides that use more threads say so themselves
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
