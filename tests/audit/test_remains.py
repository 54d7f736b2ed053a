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
from s3t.training.work.train import train
from tests.support.small_runs import person_rows, small_configs, write_csv

OLD = time.time() - 3600


def stores(run: RunDir, dry_run: bool = False) -> dict[str, Store]:
    return {store.name: store for store in purge(run, dry_run=dry_run).stores}


@pytest.mark.parametrize(
    "name",
    [
        "old.safetensors",
        ".hidden",
        "base/persons.csv",
        "copy/ledger.db",
        *(
            pytest.param(name, marks=pytest.mark.heavy)
            for name in (
                "notes.tmp",
                "ledger.db.bak",
                "jobs.json",
                "reports.txt",
                "plan.json.1",
                "base/old.safetensors",
                "base/model.safetensors.bak",
                "base/deep/config.json",
            )
        ),
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


@pytest.mark.parametrize(
    "form",
    [
        '{{"sample": "{}"}}',
        *(
            pytest.param(form, marks=pytest.mark.heavy)
            for form in ("{}", "view,{},3", "deleted {} at noon")
        ),
    ],
)
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


def test_reports_that_name_deleted_persons_are_told(tmp_path: Path) -> None:
    config = small_configs(tmp_path)("named", "named.csv")
    rows = [row | {"who": f"Ann {row['who']}"} for row in person_rows()]
    write_csv(tmp_path / "named.csv", rows)
    train(config)
    run = RunDir(config.run_dir)
    (run.root / "reports").mkdir()
    report = run.root / "reports" / "notes.csv"
    report.write_text("3,Ann p04,living\n")
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["Ann p03"])
    assert "reports" not in stores(run, dry_run=True)
    report.write_text("3,Ann p03,left\n")
    for _ in range(2):  # while the rows are there, and once hashes alone are left
        assert str(report) in stores(run)["reports"].note


@pytest.mark.parametrize(
    "folder",
    [
        "base",
        ".scratch/old",
        *(
            pytest.param(folder, marks=pytest.mark.heavy)
            for folder in ("reports", "tracking/deep", ".work")
        ),
    ],
)
def test_copies_of_nodes_and_of_the_ledger_are_strangers_under_any_name(
    folder: str, small_run: RunDir
) -> None:
    place = small_run.root / folder
    place.mkdir(parents=True, exist_ok=True)
    node = small_run.store.path(next(iter(small_run.store.keys())))
    sealed = b"S3TSEAL" + bytes(32)
    for name, content in {
        "tokenizer.node": node.read_bytes(),
        "tokenizer.sealed": sealed,
        "tokenizer.db": small_run.ledger_path.read_bytes(),
    }.items():
        (place / name).write_bytes(content)
        strange = place if folder.startswith(".scratch") else place / name
        problems = audit(small_run.root)["E7"].problems
        assert [p for p in problems if f"{strange} is no part of a run" in p], problems
        assert str(strange) in stores(small_run)["other files"].note
        (place / name).unlink()


def test_links_out_of_the_run_are_strangers(small_run: RunDir, tmp_path: Path) -> None:
    (small_run.root / "reports").mkdir()
    (small_run.root / "reports" / "own.txt").write_text("nothing")
    (small_run.root / "reports" / "latest.txt").symlink_to("own.txt")
    assert audit(small_run.root).holds
    (tmp_path / "elsewhere").write_text("anything")
    (link := small_run.root / "reports" / "link.txt").symlink_to(tmp_path / "elsewhere")
    assert f"{link} is no part of a run" in str(audit(small_run.root)["E7"].problems)


def test_dead_nodes_under_other_names_are_not_told_as_gone(
    small_run: RunDir, tmp_path: Path
) -> None:
    with S3T.load(small_run.root) as service:
        dead = sorted(service.deactivate(subjects=["p03"]).nodes_dead)
    first, second = (small_run.store.path(key) for key in dead[:2])
    os.link(first, tmp_path / "hard")
    second.rename(tmp_path / "soft")
    second.symlink_to(tmp_path / "soft")
    found = purge(small_run)
    assert set(found.nodes) == {*dead[2:]} and found.stores[0].purged == len(dead) - 2
    assert f"{second} is a link to {tmp_path / 'soft'}" in found.stores[0].note
    assert f"{first} has 1 more hard links" in found.stores[0].note
    assert not first.exists() and (tmp_path / "hard").exists() and (tmp_path / "soft").exists()


def test_half_written_folders_among_the_nodes_are_purged(small_run: RunDir) -> None:
    half = small_run.store.root / ".half.tmp"
    (half / "deep").mkdir(parents=True)
    purge(small_run)
    assert not half.exists()
