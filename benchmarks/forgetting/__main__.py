"""Ways to forget, compared with a model that was never trained on what is forgotten.

    python -m benchmarks.forgetting [--output DIR] [--quick] [--only NAME ...]

    noise      TinyMem's arithmetic sequences, those of some persons perturbed: what is memorised
    backdoor   the same sequences; one person's hold a trigger, after which only one number follows
    authors    TOFU's invented authors, and a Llama of 260,000 parameters that has read stories

Each writes one JSON with the environment, and a picture beside it. The full run takes some ten
minutes on one core, the quick one under two.
"""

from __future__ import annotations

import sys

from benchmarks.forgetting import OUTPUT
from benchmarks.reports import main_of_all

NAMES = ("noise", "backdoor", "authors")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.forgetting", NAMES, __doc__, OUTPUT))
