"""Forgetting compared: ``python -m benchmarks.forgetting`` runs every task.

    task ─► private rows of persons, some of whom ask to go ─┬─► methods ─┬─► measures ─► table
      └─► base, pretrained on public rows alone, frozen ─────┘            │
              control: the same training without those persons' rows ─────┘

Invariant: all methods start from one base and delete the same rows; what a method may look at to
choose its settings is what an operator has, never the control.
"""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/forgetting")
"""Where the results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
