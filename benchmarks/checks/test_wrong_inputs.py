"""Each wrong input has its message and exit code, and changes no file."""

from __future__ import annotations

from pathlib import Path

from benchmarks.wrong_inputs import CASES, outcomes


def test_each_is_told_and_changes_nothing(tmp_path: Path) -> None:
    found = list(outcomes(tmp_path))
    assert len(found) == len(CASES) >= 80
    assert [one for one in found if not one.right] == []
