"""banking77 on MiniLM: what shards by likeness, a router and merged shards cost and bring.

    python -m benchmarks.banking [--quick] [--output DIR]

All methods train from one config on the same private questions, with the public head to start from:

    full LoRA            one fine-tune on all of them, which nothing can be deleted from
    S3T, L = 3           4 shards by keyed hash, 3 slices; the mean of the shards answers
    S3T, L = 6           6 slices, as many as the base has layers, for 1.5 times the sample passes
    SISA, L = 3          the plan of S3T, L = 3, with snapshots of the whole adapter
    clusters             4 shards by likeness, 3 slices; features after the last layer
    clusters, layer 0    the same; features are the embeddings, so that routing costs no layer

and each is served in the ways that its shards allow: the mean of the shards' probabilities
(ensemble), one adapter averaged over the shards (merged), and, of clusters, the nearest shard alone
(router). The same samples are forgotten everywhere, one after another, and nothing is retrained;
where no shard is left the base answers with its public head.

Cut, so that all of it fits into 20 minutes of two cores: a fifth of the private questions, one
epoch, a quarter of the test questions, half of those by which prefixes are chosen. ``--quick`` cuts
more.
"""

from __future__ import annotations

import os
from pathlib import Path

OUTPUT = Path("runs/benchmarks/banking")
"""Where the results go unless told otherwise."""

# read once, when torch and transformers are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
