"""What the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_runs import Make, small_configs


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes configs of small runs whose data lie in the test's folder."""
    return small_configs(tmp_path)
