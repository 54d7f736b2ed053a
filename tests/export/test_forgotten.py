"""Exports are copies of nodes: purge takes the dead ones away, and the audit finds them (E7)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3t.audit.audit import audit
from s3t.run import RunDir
from s3t.run.files.exports import ExportFolder
from s3t.run.purge import Store, purge
from s3t.service import S3T
from tests.conftest import Run
from tests.support.deletions import emptied, shortened


@pytest.fixture
def service(language_run: RunDir) -> Iterator[S3T]:
    with S3T.load(language_run.root) as found:
        yield found


def exports(run: RunDir, dry_run: bool = False) -> list[Store]:
    return [one for one in purge(run, dry_run=dry_run).stores if one.name == "exports"]


def lying(folder: Path, name: str) -> list[str]:
    return ExportFolder(folder, name[4:12]).names()


def test_purge_removes_dead_adapters_wherever_they_are_known(
    service: S3T, language_run: RunDir, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first, second = service.export(one).names
    (merged,) = service.export(two, merge=True).names
    assert [store.found for store in exports(language_run)] == [0, 0]
    shortened(service, 0)
    (two / "mine.txt").write_text("mine")
    (half := one / f".{first}.1.ab.tmp").mkdir()
    assert "half-written" not in str(audit(language_run.root)["E7"].problems), "one may be at it"
    os.utime(half, (0, 0))
    assert f"{half} is half-written" in str(audit(language_run.root)["E7"].problems)
    assert [(s.found, s.purged) for s in exports(language_run, dry_run=True)] == [(1, 0), (1, 0)]
    assert lying(one, first) == [first, second]
    told = purge(language_run)
    found = [store for store in told.stores if store.name == "exports"]
    assert [(s.found, s.purged, s.where) for s in found] == [(1, 1, str(one)), (1, 1, str(two))]
    assert (lying(one, first), lying(two, merged)) == ([second], [])
    assert (two / "mine.txt").exists() and not list(one.glob(".*"))
    names = [x["name"] for x in json.loads((one / "s3t-export.json").read_bytes())["adapters"]]
    assert names == [second], "the manifest tells no lies"
    assert any("s3t sync" in place for place in told.out_of_reach)
    with language_run.ledger() as ledger:
        body = [entry.body for entry in ledger.log() if entry.kind == "purge"][-1]
        assert body["stores"]["exports"] == 2
    records = json.loads((language_run.root / "exports.json").read_bytes())["exports"]
    assert [*records[str(one)]] == [second] and records[str(two)] == {}
    assert audit(language_run.root)["E7"].status == "holds"


def test_purge_finds_what_a_killed_export_has_left(
    service: S3T, language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(
            "s3t.export.export.Exporter._close", lambda *_: (_ for _ in ()).throw(KeyError)
        )
        with pytest.raises(KeyError):
            service.export(out)
    (first, second) = sorted(path.name for path in out.glob("s3t-*-*"))
    (out / "s3t-export.json").write_text("{")  # nor does the folder say anything
    shortened(service, 0)
    assert [(s.found, s.purged) for s in exports(language_run)] == [(1, 1)]
    assert lying(out, first) == [second]


def test_a_folder_that_cannot_be_reached_is_named(
    service: S3T, language_run: RunDir, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, _ = service.export(out).names
    shutil.move(out, tmp_path / "away")
    assert exports(language_run)[0].note == ""
    shortened(service, 0)
    (store,) = exports(language_run)
    assert (store.found, store.purged) == (0, 0)
    assert first in store.note and "moved or is not mounted" in store.note
    found = audit(language_run.root)["E7"]
    assert found.status == "holds" and f"not there: {out}" in found.checked
    shutil.move(tmp_path / "away", out)
    found = audit(language_run.root)["E7"]
    assert found.status == "broken" and first in found.problems[0], "after the purge of that view"
    assert [(s.found, s.purged) for s in exports(language_run)] == [(1, 1)]
    assert audit(language_run.root)["E7"].status == "holds"


def test_purge_says_what_it_cannot_remove(
    service: S3T, language_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = service.export(tmp_path / "out").names
    shortened(service, 0)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("s3t.run.files.exports.os.rename", refused)
        (store,) = exports(language_run)
    assert (store.found, store.purged) == (1, 0)
    assert first in store.note and "Permission denied" in store.note


def test_the_audit_names_exports_that_hold_dead_nodes(
    service: S3T, language_run: RunDir, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, _ = service.export(out).names
    found = audit(language_run.root)["E7"]
    assert found.status == "holds" and "2 exported adapters in 1 folders" in found.checked
    shortened(service, 0)
    found = audit(language_run.root)["E7"]
    assert found.status == "pending"
    (problem,) = [one for one in found.problems if "adapter" in one]
    assert first in problem and "s3t purge" in problem and "s3t sync" in problem
    shutil.copytree(out / first, tmp_path / "backup")
    purge(language_run)
    assert audit(language_run.root)["E7"].status == "holds"
    shutil.copytree(tmp_path / "backup", out / first)
    found = audit(language_run.root)["E7"]
    assert found.status == "broken" and first in found.problems[0]


def test_the_audit_believes_no_record(service: S3T, language_run: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = service.export(out).names
    shutil.copy(
        out / second / "adapter_model.safetensors", out / first / "adapter_model.safetensors"
    )
    found = audit(language_run.root)["E7"]
    assert found.status == "broken" and "not what its name says" in found.problems[0]
    service.export(out)
    assert audit(language_run.root)["E7"].status == "holds"
    path = language_run.root / "exports.json"
    document = json.loads(path.read_bytes())
    held = document["exports"][str(out)]
    held[first], held[second] = held[second], held[first]
    path.write_text(json.dumps(document))
    assert audit(language_run.root)["E7"].status == "broken"
    path.write_text("{")
    found = audit(language_run.root)["E7"]
    assert found.status == "broken" and "copies of nodes cannot be found" in found.problems[0]


def test_a_repair_leaves_no_dead_adapter(
    service: S3T, language_run: RunDir, tmp_path: Path
) -> None:
    """A plan that is replaced takes its nodes, and what was exported of them, with it."""
    out = tmp_path / "out"
    names = service.export(out).names
    emptied(service, 0)
    from s3t.training.prepare.replan import Replan
    from s3t.training.work.train import train

    train(language_run.here(), replan=Replan(False, ()))
    assert names[0] not in lying(out, names[0]), "a repair ends with a purge"
    done = service.export(out)
    assert done.without == () and len(done.adapters) == 2
    assert audit(language_run.root).holds


def test_a_copy_of_a_run_leaves_the_exports_of_the_other_alone(
    service: S3T, language_run: RunDir, tmp_path: Path
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    first, _ = service.export(out).names
    copy = RunDir(shutil.copytree(language_run.root, tmp_path / "copy"))
    with S3T.load(copy.root) as other:
        shortened(other, 0)
        (store,) = exports(copy)
        assert (store.purged, "is a copy" in store.note) == (0, True) and (out / first).is_dir()
        found = audit(copy.root)["E7"]
        assert found.status == "holds" and "is a copy" in found.checked
        other.export(mine)
        assert [store.where for store in exports(copy)] == [str(mine)], "now it has its own"
    shortened(service, 0)
    service.close()
    moved = RunDir(shutil.move(language_run.root, tmp_path / "moved"))
    assert [(s.found, s.purged) for s in exports(moved)] == [(1, 1)], "a moved run is no copy"


def test_from_the_command_line(
    service: S3T, language_run: RunDir, tmp_path: Path, s3t: Run
) -> None:
    service.export(tmp_path / "out")
    shortened(service, 0)
    said = s3t("purge", language_run.root)
    assert said.code == 0 and f"1 purged  {tmp_path / 'out'}" in said.out
