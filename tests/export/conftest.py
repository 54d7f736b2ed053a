"""Exports of small runs: fewer rows beside a probe tell their adapters apart as well."""

from __future__ import annotations

import pytest

from s3t.export import questions


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that an export keeps beside a probe."""
    monkeypatch.setattr(questions, "_ROWS", 4)
