"""Purge: what is dead is gone, from files, from the ledger, and from backups of sealed runs."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from s3t.audit.audit import audit
from s3t.config import Config, anchored
from s3t.data import private_origins
from s3t.errors import DamagedNodeError, InputError, IntegrityError, S3TError
from s3t.ledger import Deletion, Gone
from s3t.ledger.samples.deleted import DeletedSamples
from s3t.ledger.samples.purging import hashed
from s3t.run import RunDir
from s3t.run.leftovers import own_files
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.work.train import train
from s3t.types import NodeKey
from tests.conftest import Run
from tests.support.small_runs import (
    Make,
    dead_keys,
    forget,
    nodes,
    person_rows,
    small_configs,
    write_csv,
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return small_configs(tmp_path)


@pytest.fixture
def run(small_run: RunDir) -> RunDir:
    return small_run


def holds(folder: Path, text: str) -> list[str]:
    """Files that hold a text in their bytes."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def delete(run: RunDir, *people: str, request_id: str | None = None) -> Any:
    with S3T.load(run.root) as service:
        return service.deactivate(subjects=people, request_id=request_id)


def test_what_is_dead_is_gone_and_told(run: RunDir) -> None:
    delete(run, "p03", request_id="r")
    dead = {node.key for node in run.plan().forest} - living(run)
    assert 0 < len(dead) < 8
    (run.root / "trunk").mkdir()
    (run.root / "trunk" / "rows").write_bytes(b"hidden states")
    (run.root / ".plan.json.1.aa.tmp").write_bytes(b"half")
    (run.root / ".base.1.tmp").mkdir()
    seen = purge(run, dry_run=True)
    assert set(seen.nodes) == dead and seen.dry_run
    assert {s.name: (s.found, s.purged) for s in seen.stores} == {
        "nodes": (len(dead), 0),
        "activations": (1, 0),
        "half-written files": (2, 0),
        "temporary runs": (0, 0),
        "ledger": (3, 0),
        "accepted deletions": (0, 0),
    }
    assert dead <= run.store.keys(), "a dry run removes nothing"
    found = purge(run)
    assert set(found.nodes) == dead
    assert all(store.found == store.purged for store in found.stores)
    assert run.store.keys() == run.store.traces() == living(run)
    assert not (run.root / "trunk").exists() and not list(run.root.glob(".*.tmp"))
    assert [rows for _, rows in found.own_files] == [3] and "private.csv" in found.own_files[0][0]
    with run.ledger() as ledger:
        assert set(ledger.plans.nodes()) == living(run)
        kinds = [entry.kind for entry in ledger.log()]
        assert kinds == [
            "samples",
            "plan",
            "force",
            "nodes",
            "deletion",
            "effective",
            "purge",
            "nodes",
        ]
        assert ledger.receipt("r").purged_at is not None
    again = purge(run)
    assert not again.nodes and not any(store.found for store in again.stores)
    with run.ledger() as ledger:
        assert len(list(ledger.log())) == 8, "a purge of nothing leaves no trace"


def test_an_accepted_deletion_goes_once_it_is_done(run: RunDir) -> None:
    def seen() -> tuple[int, int, str]:
        (found,) = (one for one in purge(run).stores if one.name == "accepted deletions")
        return found.found, found.purged, found.note

    with run.ledger() as ledger:
        ledger.outbox.accept(Deletion([], ["p03"], "r"), limit=9)
        assert seen()[:2] == (1, 0) and "s3t serve" in seen()[2]
        delete(run, "p03", request_id="r")  # and then the service is killed
        assert holds(run.root, "p03")
        assert seen() == (1, 1, "") and seen() == (0, 0, "")
        assert not holds(run.root, "p03")


def living(run: RunDir) -> set[NodeKey]:
    with run.ledger() as ledger:
        hits = set(ledger.plans.in_force().hits)
    return {
        node.key
        for node in run.plan().forest
        if not any((node.shard, part) in hits for part in node.prefix)
    }


def test_no_id_of_a_purged_sample_is_left_in_any_byte_of_the_run(run: RunDir) -> None:
    delete(run, "p03")
    names = ["s030", "s031", "s032", "p03"]
    assert any(holds(run.root, name) for name in names)
    purge(run)
    for name in names:
        assert holds(run.root, name) == [], "not in free pages, not in the write-ahead log"
    assert holds(run.root, "s040"), "others stay"


def test_a_reader_that_holds_the_ledger_open_does_not_hinder(run: RunDir) -> None:
    with S3T.load(run.root) as service:
        service.predict([{"text": "person 4 says 5"}])
        service.deactivate(subjects=["p03"])
        service.purge()
        assert service.predict([{"text": "person 4 says 5"}])
        assert not [name for name in ("s030", "p03") if holds(run.root, name)]
        assert not dead_in_memory(service)


def dead_in_memory(service: S3T) -> set[str]:
    model = service.serving._model
    assert model is not None
    return {key for key in model._tensors if not service._opened.is_alive(key)}


def test_purged_samples_stay_known_as_deleted(run: RunDir) -> None:
    first = delete(run, "p03", request_id="r")
    purge(run)
    with S3T.load(run.root) as service:
        view = service.status().view
        assert service.status().samples == 48 and service.status().deleted == 3
        again = service.deactivate(["s030"], ["p03"])
        assert (again.deleted, again.already_deleted, again.view) == ((), ("s030",), view)
        replayed = service.deactivate(subjects=["p03"], request_id="r")
        assert (replayed.view, replayed.nodes_dead) == (first.view, first.nodes_dead)
        with pytest.raises(InputError, match="s033"):
            service.deactivate(["s033"])


def test_the_data_may_still_hold_purged_rows(make: Make, tmp_path: Path) -> None:
    config = make()
    train(config)
    run = RunDir(config.run_dir)
    forget(config, "p03")
    purge(run)
    key = next(iter(run.store.keys()))
    before = nodes(config)
    run.store.path(key).unlink()
    assert train(config).trained == 1
    assert nodes(config) == before
    write_csv(tmp_path / "private.csv", [row for row in person_rows() if row["who"] != "p03"])
    run.store.path(key).unlink()
    assert train(config).trained == 1
    assert nodes(config) == before
    assert purge(run).own_files == ()


def told_of(config: Config, *deleted: str) -> dict[str, int]:
    """What a purge tells of the user's own files, with the ids of the samples deleted."""
    secret = b"of a test"
    gone = Gone(secret, frozenset(hashed(one, secret) for one in deleted))
    return {name.removeprefix(f"{Path.cwd()}/"): n for name, n in own_files(config, gone)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_files_are_all_that_the_data_are_read_from(make: Make, here: Path) -> None:
    rows = person_rows(4)
    for name in ("top.csv", "c/one.csv", "a/b/two.csv"):
        (here / "g" / name).parent.mkdir(parents=True, exist_ok=True)
    write_csv(here / "g/top.csv", rows[:4])
    write_csv(here / "g/c/one.csv", rows[4:8])
    write_csv(here / "g/a/b/two.csv", rows[8:])
    (here / "g/c/packed.csv.gz").write_bytes(gzip.compress((here / "g/top.csv").read_bytes()))
    files = ["g/**/*.csv", "g/c/*.gz", "gone.csv"]
    config = make()
    private = {"format": "csv", "files": files, "split": "train[:50%]"}
    data = config.data.model_dump() | {"private": private}
    config = anchored(Config.model_validate(config.model_dump() | {"data": data}))
    found = told_of(config, *(rows[n]["id"] for n in (0, 1, 5, 11)))
    missing = [name for name in found if name.startswith("gone.csv (cannot be read")]
    assert len(missing) == 1 and found.pop(missing[0]) == 0
    assert found == {
        "g/top.csv": 2,
        "g/c/packed.csv.gz": 2,
        "g/c/one.csv": 1,
        "g/a/b/two.csv": 1,
    }


def test_own_images_are_named_with_their_copies_and_metadata(make: Make, here: Path) -> None:
    for n in range(4):
        path = here / "images" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 10 * n).save(path)
    shutil.copy(here / "images/a/0.png", here / "images/a/copy.png")
    public = {"format": "imagefolder", "files": "images"}
    data = {"private": public, "public": {"validation": public, "test": public}}
    task = {"task": "image-classification", "model": {"base": "make:vit"}}
    config = anchored(Config.model_validate({**task, "data": data}))
    origins = dict.fromkeys(one for one, _ in private_origins(config))
    assert len(origins) == 4 and len(private_origins(config)) == 5
    everything = told_of(config, *origins)
    assert everything == {str(p.relative_to(here)): 1 for p in here.rglob("*.png")}
    named = [f"{'ab'[n % 2]}/{n}.png" for n in range(4)] + ["a/copy.png"]
    write_csv(here / "images/metadata.csv", [{"file_name": n, "key": n} for n in named])
    with_ids = {**data, "columns": {"id": "key"}}
    config = anchored(Config.model_validate({**task, "data": with_ids}))
    found = told_of(config, "a/copy.png", "b/1.png")
    assert found == {"images/a/copy.png": 1, "images/b/1.png": 1, "images/metadata.csv": 2}
    write_csv(here / "list.csv", [{"image": f"images/{n}", "label": "a", "key": n} for n in named])
    listed = {**with_ids, "private": {"format": "csv", "files": "list.csv"}}
    config = anchored(Config.model_validate({**task, "data": listed}))
    assert told_of(config, "b/1.png") == {"list.csv": 1, "images/b/1.png": 1}


def test_counters_hold_after_a_purge_and_an_addition(run: RunDir) -> None:
    delete(run, "p03")
    with run.ledger() as ledger:
        before = ledger.counts.persons(), ledger.counts.totals()
    purge(run)
    with run.ledger() as ledger:
        assert (ledger.counts.persons(), ledger.counts.totals()) == before


def test_a_training_at_work_keeps_its_caches(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others have scratch folders too
    delete(run, "p03")
    (run.root / "trunk").mkdir()
    (run.root / "trunk" / "rows").write_bytes(b"hidden states")
    with RunDir(run.root).training_lock():
        found = purge(run)
        assert found.nodes and (run.root / "trunk" / "rows").exists()
        store = next(store for store in found.stores if store.name == "activations")
        assert (store.found, store.purged) == (1, 0) and "a training is at work" in store.note
    assert not any(store.found - store.purged for store in purge(run).stores)


def test_files_that_are_not_ours_are_named_and_left(run: RunDir) -> None:
    delete(run, "p03")
    (run.store.root / "notes.txt").write_text("mine")
    store = purge(run).stores[0]
    assert "notes.txt" in store.note and (run.store.root / "notes.txt").exists()


def test_a_node_of_no_plan_is_purged(run: RunDir) -> None:
    key = next(iter(run.store.keys()))
    stranger = run.store.root / f"{'ab' * 32}.safetensors"
    shutil.copy(run.store.path(key), stranger)
    assert purge(run).nodes == ("ab" * 32,)
    assert not stranger.exists()


def sealed(make: Make, tmp_path: Path) -> Config:
    return make(store={"encrypt": True, "keys": str(tmp_path / "ring" / "run.keys")})


def test_a_backup_of_a_sealed_run_forgets_too(make: Make, tmp_path: Path) -> None:
    config = sealed(make, tmp_path)
    train(config)
    run = RunDir(config.run_dir)
    forget(config, "p03")
    dead, alive = dead_keys(config), living(run)
    backup = tmp_path / "backup"
    shutil.copytree(run.root, backup)
    assert all(RunDir(backup).store.read(key) for key in dead), "before the purge it can be read"
    found = purge(run)
    assert "data keys are destroyed" in found.stores[0].note
    shutil.rmtree(run.root)
    shutil.copytree(backup, run.root)  # restored: the dead nodes lie there again
    assert dead <= run.store.keys()
    for key in dead:
        with pytest.raises(DamagedNodeError, match="data key"):
            RunDir(run.root).store.read(key)
    assert all(RunDir(run.root).store.read(key) for key in alive)
    with S3T.load(run.root) as service:
        assert service.predict([{"text": "person 4 says 5"}])


def test_a_plain_backup_does_not_forget(run: RunDir, tmp_path: Path) -> None:
    """Why there is encryption: what purge says of backups is so."""
    config = run.here()
    forget(config, "p03")
    dead = dead_keys(config)
    backup = shutil.copytree(config.run_dir, tmp_path / "backup")
    found = purge(RunDir(config.run_dir))
    assert any("backups" in place for place in found.out_of_reach)
    assert all(RunDir(backup).store.read(key) for key in dead)


@pytest.mark.parametrize("step", ["nodes", "ledger"])
def test_killed_between_two_steps_it_is_finished_by_the_next(
    run: RunDir, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete(run, "p03")

    def die(*arguments: Any, **more: Any) -> None:
        raise S3TError("killed")

    with monkeypatch.context() as patched:
        if step == "nodes":
            patched.setattr("s3t.run.purge._caches", die)
        else:
            patched.setattr(DeletedSamples, "purge", die)
        with pytest.raises(S3TError, match="killed"):
            purge(run)
    assert run.store.keys() == living(run)
    with run.ledger() as ledger:
        assert ledger.deleted.unpurged(1) == 3 and len(ledger.plans.nodes()) == 8, (
            "not told as done"
        )
    purge(run)
    with run.ledger() as ledger:
        assert ledger.deleted.unpurged(1) == 0 and set(ledger.plans.nodes()) == living(run)
        told = [entry.body for entry in ledger.log() if entry.kind == "purge"]
        assert len(told) == 1 and set(told[0]["nodes"]) == {
            n.key for n in run.plan().forest
        } - living(run)


def test_a_ledger_that_contradicts_itself_is_not_purged(run: RunDir) -> None:
    delete(run, "p03")
    there = run.store.keys()
    with closing(sqlite3.connect(run.ledger_path)) as connection:
        connection.execute("UPDATE samples SET subject = 'p05' WHERE sample_id = 's040'")
        connection.commit()
    with pytest.raises(IntegrityError, match="samples are not those that the log commits to"):
        purge(run)
    assert run.store.keys() == there
    assert not audit(run.root).holds, "the log does not commit to what was changed"


def test_from_the_command_line(run: RunDir, s3t: Run) -> None:
    delete(run, "p03", request_id="r")
    told = s3t("purge", run.root, "--dry-run", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["dry_run"] is True
    done = s3t("purge", run.root)
    assert done.code == 0, done.err
    assert "holds 3 rows of deleted samples" in done.out and "out of reach" in done.out
    shown = s3t("receipt", run.root, "r")
    assert shown.code == 0 and "purged     20" in shown.out
    receipt = json.loads(s3t("receipt", run.root, "r", "--json").out)
    assert all(len(one) == 64 for one in receipt["deleted"]) and len(receipt["deleted"]) == 3
    unknown = s3t("receipt", run.root, "nobody")
    assert unknown.code == 2 and "no request 'nobody'" in unknown.err
    lines = s3t("log", run.root).out.splitlines()
    assert [line.split()[2] for line in lines][-3:] == ["effective", "purge", "nodes"]
    entries = [json.loads(line) for line in s3t("log", run.root, "--json").out.splitlines()]
    assert [entry["number"] for entry in entries] == list(range(1, 9))


def test_the_ledger_is_smaller_by_the_rows(run: RunDir) -> None:
    delete(run, "p03")
    purge(run)
    with sqlite3.connect(run.ledger_path) as connection:
        left = connection.execute("SELECT COUNT(*) FROM samples").fetchone()
        gone = connection.execute("SELECT sample, subject FROM forgotten").fetchall()
    connection.close()
    assert left == (45,) and len(gone) == 3
    assert (
        all(len(one) == len(two) == 64 for one, two in gone) and len({two for _, two in gone}) == 1
    )


def test_a_deletion_meanwhile_is_left_to_the_next_purge(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.run import purge as purging

    delete(run, "p03", request_id="before")
    dead = purging.removable_nodes

    def and_then(*arguments: Any) -> Any:
        found = dead(*arguments)
        delete(run, "p04", request_id="meanwhile")
        return found

    monkeypatch.setattr(purging, "removable_nodes", and_then)
    purge(run)
    monkeypatch.undo()
    with run.ledger() as ledger:
        assert ledger.receipt("before").purged_at is not None
        assert ledger.receipt("meanwhile").purged_at is None
        assert ledger.deleted.unpurged(ledger.view()) == 3
    assert audit(run.root)["E7"].status == "pending"
    purge(run)
    with run.ledger() as ledger:
        assert ledger.receipt("meanwhile").purged_at is not None
    assert audit(run.root).holds
