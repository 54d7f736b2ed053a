"""The tiny run that the damage table is made with, trained once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.damage.victim import Victim, make_victim


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """Two deletions and a purge behind it; not to be damaged."""
    return make_victim(tmp_path_factory.mktemp("victim"))


@pytest.fixture
def victim(sound: Victim, tmp_path: Path) -> Victim:
    """A copy of it to do with as a test likes."""
    return sound.copy(tmp_path / "run")
