"""A folder of small files, in which commands are run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tables import TABLES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small csv files, which is also the working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name, rows in TABLES.items():
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "binary.bin").write_bytes(bytes(range(128, 256)))
    (folder / "folder").mkdir()
    return folder
