"""What survival is compared with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from s3t.plan.survival.stream import Stream
from tests.harness.courses import Courses
from tests.harness.courses import courses as all_courses


@pytest.fixture(scope="session")
def courses() -> Callable[[Stream, int], Courses]:
    """``courses(stream, horizon)``, see ``tests.harness.courses``."""
    return all_courses
