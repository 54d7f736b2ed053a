"""What the checks of the benchmarks share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the repository; the check skips without them."""
    root = Path(__file__).resolve().parents[2]
    folder = (root / os.environ.get("S3T_SHARED_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set S3T_SHARED_DATA to where the shared data lies")
    return folder
