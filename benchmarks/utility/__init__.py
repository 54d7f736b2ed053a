"""Accuracy along deletions, by isolation of stages and weights: ``python -m benchmarks.utility``.

    task × seed ─► base ─► each side trains: wall and CPU seconds, bytes of its nodes
                     └───► the same deletions on a copy of each run ─► metric at each point

Sides train on the same base, partition, seeds and batches, from one config. What is kept below the
output folder is not done again: a training goes on where it was killed, and a point that was
measured stays.

Invariant: a figure belongs to the digest of engine number and overrides of its side, so
others never find it. After a change of what serves, give another output folder.
"""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/utility")
"""Where runs and results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
