"""What attacks learn about deleted samples: ``python -m benchmarks.leakage`` runs every task.

    a run that memorises ─► delete ─► attacked ─► purge ─► repair ─► attacked again
                                        └─ before, after, control   └─ before, repaired

    digits      a small ViT on few images, many epochs
    persons     a tiny GPT-2 on made rows with a number that only memory gives
    authors     stories260k, a pretrained Llama, on TOFU's invented authors
    isolations  nested and residual stages with public weights, at least 400 rows deleted, audited

Invariant: each run memorises so much that the attacks tell its members before the deletion; else
that they do not afterwards would show nothing.
"""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/leakage")
"""Where the results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
