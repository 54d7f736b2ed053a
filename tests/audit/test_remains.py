"""Whatever lies in a run directory or in its ledger's database is known by its kind, or told of."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from s3t.audit.audit import audit
from s3t.run import RunDir
from s3t.run.purge import Store, purge
from s3t.service import S3T

OLD = time.time() - 3600


def stores(run: RunDir, dry_run: bool = False) -> dict[str, Store]:
    return {store.name: store for store in purge(run, dry_run=dry_run).stores}


@pytest.mark.parametrize(
    "name",
    [
        "old.safetensors",
        "notes.tmp",
        "ledger.db.bak",
        "jobs.json",
        "reports.txt",
        "plan.json.1",
        ".hidden",
        "base/old.safetensors",
        "base/model.safetensors.bak",
        "base/persons.csv",
        "copy/ledger.db",
        "base/deep/config.json",
    ],
)
def test_strangers_are_told_and_left(name: str, small_run: RunDir) -> None:
    path = small_run.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("anything")
    first = small_run.root.joinpath(*Path(name).parts[: 2 if name.startswith("base") else 1])
    found = audit(small_run.root)["E7"]
    assert [p for p in found.problems if f"{first} is no part of a run" in p], found.problems
    told = stores(small_run)["other files"]
    assert (told.found, told.purged) == (1, 0) and str(first) in told.note
    assert path.read_text() == "anything"


def test_a_folder_in_the_place_of_a_file_is_a_stranger(small_run: RunDir) -> None:
    (small_run.root / "exports.json").mkdir()
    (small_run.root / "tracking").write_text("a file")
    problems = audit(small_run.root)["E7"].problems
    assert sum("is no part of a run" in problem for problem in problems) == 2


def test_half_written_files_of_all_folders_are_purged(small_run: RunDir) -> None:
    names = [
        ".plan.json.1.aa.tmp",
        "base/.model.safetensors.7.tmp",
        "reports/.some.html.1.ff.tmp",
        "tracking/deep/.events.tmp",
        ".work/claims/.x.1.tmp",
        "nodes/.half.1.tmp",
    ]
    for name in names:
        path = small_run.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (OLD, OLD))
    (small_run.root / "reports/.young.tmp").write_bytes(b"being written")
    problems = audit(small_run.root)["E7"].problems
    told = [name for name in names if any(f"/{name} is half-written" in p for p in problems)]
    assert told == names and len(problems) == len(names)
    assert stores(small_run)["half-written files"].purged == len(names)
    assert [path.name for path in small_run.root.rglob("*.tmp")] == [".young.tmp"]
    assert audit(small_run.root).holds


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("CREATE TABLE old (sample_id TEXT)", "the table old"),
        ("CREATE VIEW seen AS SELECT * FROM samples", "the view seen"),
        ("ALTER TABLE samples ADD COLUMN note TEXT", "the column samples.note"),
        (
            "CREATE TRIGGER back AFTER UPDATE ON samples BEGIN SELECT 1; END",
            "the trigger back",
        ),
    ],
)
def test_what_lies_beside_the_ledger_is_told(statement: str, what: str, small_run: RunDir) -> None:
    with closing(sqlite3.connect(small_run.ledger_path)) as connection:
        connection.execute(statement)
        connection.commit()
    problems = audit(small_run.root)["E7"].problems
    assert any(f"holds {what}, which is no part of it" in problem for problem in problems)
    assert f"{what} in " in stores(small_run)["other files"].note


@pytest.mark.parametrize("form", ["{}", '{{"sample": "{}"}}', "view,{},3", "deleted {} at noon"])
def test_reports_that_name_deleted_samples_are_told(form: str, small_run: RunDir) -> None:
    (small_run.root / "reports").mkdir()
    report = small_run.root / "reports" / "notes.txt"
    report.write_text(form.format("s030"))
    with S3T.load(small_run.root) as service:
        service.deactivate(subjects=["p03"])
    for _ in range(2):  # while the row is there, and once hashes alone are left
        told = stores(small_run)["reports"]
        assert (told.found, told.purged) == (1, 0) and str(report) in told.note
        problems = audit(small_run.root)["E5"].problems
        assert [p for p in problems if f"{report} holds the id of a sample or person" in p]
    assert "that was purged" in problems[-1]
    report.write_text(json.dumps({"left": "s040x"}))
    assert "reports" not in stores(small_run)
    assert audit(small_run.root).holds
