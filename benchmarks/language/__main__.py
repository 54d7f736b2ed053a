"""Language models that forget, beside one fine-tune that is trained again.

    python -m benchmarks.language [--output DIR] [--quick] [--only tofu|shakespeare|lengths ...]

Each task writes one JSON with the environment, and a picture beside it. All need ../shared/data
(S3T_SHARED_DATA), and are skipped without it.
"""

from __future__ import annotations

import sys

from benchmarks.language import OUTPUT
from benchmarks.reports import main_of_all

NAMES = ("tofu", "shakespeare", "lengths")

if __name__ == "__main__":
    sys.exit(main_of_all("benchmarks.language", NAMES, __doc__, OUTPUT))
