"""Benchmarks of the service: ``python -m benchmarks.serving`` runs them all."""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/serving")
"""Where their results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
