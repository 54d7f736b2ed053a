"""``python -m s3t``: the same as the command ``s3t``."""

from __future__ import annotations

import sys

from s3t.cli import main

if __name__ == "__main__":
    sys.exit(main())
