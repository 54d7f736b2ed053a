"""Language models that forget: ``python -m benchmarks.language`` runs every task.

    tofu         questions about invented authors, one author deleted at a time
    shakespeare  speeches by speaker, very uneven, the largest speakers deleted one by one
    lengths      what padding costs: to the longest of all, of a batch, of a batch of like length

Invariant: what a method is compared with is trained in the same run, by the same engine, on the
same rows; a control never saw what was deleted.
"""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/language")
"""Where the results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
