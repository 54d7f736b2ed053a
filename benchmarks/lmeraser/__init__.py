"""LMEraser's headline on digits: ``python -m benchmarks.lmeraser [--quick]``.

LMEraser (arXiv 2404.11056) puts private samples into clusters, trains prompts and a head for each,
asks the nearest cluster alone, and retrains the clusters that a deletion hits. Its claim is that
this is a small share of all weights, and far cheaper than training anew, at no loss of accuracy.

    LMEraser               clusters, one slice each, prompts; a deletion retrains its cluster
    LMEraser + slices      the same with the slices of S3T: prefixes go on serving until a repair
    S3T, clusters          LoRA blocks in the place of prompts
    S3T, hash shards       the same without clusters; all shards answer
    SISA                   snapshots, one sequence
    one LoRA               all data in one adapter, trained anew: what all are held against

All of them train on one base, which has seen public images only turned. Prototypes are of public
data alone, which the authors' are not; prompts are vectors among the embeddings.
"""

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/lmeraser")
"""Where the results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
