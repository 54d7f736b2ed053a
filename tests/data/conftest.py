"""A folder for small sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sources import PUBLIC, write


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("public.jsonl", PUBLIC)
