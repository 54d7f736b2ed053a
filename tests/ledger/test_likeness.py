"""Names that look alike: told of, never deleted, and gone with a purge."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.errors import RequestConflictError, UnknownSampleError
from s3t.ledger import Deletion, Ledger
from s3t.ledger.samples.look_alikes import plain
from s3t.run import RunDir
from s3t.service import S3T
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train
from s3t.types import Digest, Sample, SampleId, Slot, Subject
from tests.conftest import Run
from tests.support.small_runs import person_rows, small_configs, write_csv

NFC, NFD = (unicodedata.normalize(form, "Jos\u00e9") for form in ("NFC", "NFD"))
PEOPLE = [NFC, NFD, "p99", "p99 ", "P99", "\u00a0p99", "p 99", "p\u200b99", "p98", None]


def rows(people: list[str | None], prefix: str = "s") -> list[tuple[Sample, Slot]]:
    return [
        (
            Sample(SampleId(f"{prefix}{n}"), Subject(one) if one else None, Digest(f"{prefix}{n}")),
            (0, n % 2),
        )
        for n, one in enumerate(people)
    ]


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return str(request.getfixturevalue("database_url"))


@pytest.fixture
def ledger(where: str) -> Iterator[Ledger]:
    with Ledger.open(where, create=True) as opened:
        opened.register(rows(PEOPLE))
        yield opened


def delete(ledger: Ledger, ids: list[str], people: list[str], **more: Any) -> Any:
    return ledger.delete(Deletion(ids, people, **more), lambda receipt, state: receipt)


@pytest.mark.parametrize(
    ("person", "deleted", "alike"),
    [
        (NFC, "s0", 1),
        (NFD, "s1", 1),
        ("p99", "s2", 5),
        ("P99", "s4", 5),
        ("p 99", "s6", 5),
        ("p98", "s8", 0),
    ],
)
def test_those_that_stay_are_counted(person: str, deleted: str, alike: int, ledger: Ledger) -> None:
    done = delete(ledger, [], [person], request_id="r")
    assert (done.deleted, done.look_alikes) == ((deleted,), alike)
    assert ledger.receipt("r").look_alikes == alike


def test_the_deleted_and_the_named_are_not_counted(ledger: Ledger) -> None:
    assert delete(ledger, [], ["p99", "P99", "p99 "]).look_alikes == 3
    assert delete(ledger, ["s5"], ["p 99"]).look_alikes == 1
    assert delete(ledger, [], ["p\u200b99"]).look_alikes == 0


def test_ids_look_alike_too(where: str) -> None:
    with Ledger.open(where, create=True) as ledger:
        ids = ["u003", "u003 ", "U003", "u004"]
        ledger.register((Sample(SampleId(one), None, Digest(one)), (0, 0)) for one in ids)
        assert delete(ledger, ["u003"], []).look_alikes == 2
        with pytest.raises(
            UnknownSampleError, match="2 samples have names that look alike"
        ) as told:
            delete(ledger, ["U 003"], [])
        assert told.value.alike == 2
        with pytest.raises(UnknownSampleError) as told:
            delete(ledger, ["u005"], [])
        assert told.value.alike == 0 and "look alike" not in str(told.value)


def test_samples_added_later_are_counted(ledger: Ledger) -> None:
    delete(ledger, [], ["p99"])
    ledger.add([*rows(PEOPLE), *rows(["p99\t"], "t")])
    assert delete(ledger, [], ["p99"]).look_alikes == 6


def test_a_request_told_again_after_an_addition_is_a_conflict(ledger: Ledger) -> None:
    first = delete(ledger, [], ["p98"], request_id="r")
    assert delete(ledger, [], ["p98"], request_id="r") == replace(first, replayed=True)
    ledger.add([*rows(PEOPLE), *rows(["p98"], "t")])
    with pytest.raises(RequestConflictError, match="1 samples that it names were taken in since"):
        delete(ledger, [], ["p98"], request_id="r")
    again = delete(ledger, [], ["p98"], request_id="r2")
    assert (again.deleted, again.already_deleted) == (("t0",), ("s8",))
    assert delete(ledger, [], ["p98"], request_id="r").deleted == ("s8",)


def test_a_purge_removes_the_names(ledger: Ledger, where: str) -> None:
    ledger.add([*rows(PEOPLE), *rows(["P99"], "t")])
    delete(ledger, ["s4"], ["p99 ", NFD])
    assert {"p99 ", "P99", NFD} <= names(ledger)
    ledger.deleted.purge(ledger.view(), [], {})
    assert names(ledger) & {"p99 ", "P99", NFD} == {"P99"}, "t0 is P99's and stays"
    assert delete(ledger, [], [NFC]).look_alikes == 0
    if "://" not in where:
        for path in Path(where).parent.glob("ledger.db*"):
            assert NFD.encode() not in path.read_bytes()


def names(ledger: Ledger) -> set[str]:
    with ledger._database.transaction() as connection:
        return {row[0] for row in connection.exec_driver_sql("SELECT name FROM lookalikes")}


@given(st.text())
def test_plain_forms(name: str) -> None:
    form = plain(name)
    for other in (name.upper().lower(), f" {name}\t", unicodedata.normalize("NFD", name)):
        if other.casefold() == name.casefold() or other.strip() == name.strip():
            assert plain(other) == form
    assert plain(form) == form


def test_over_a_run(tmp_path: Path, s3t: Run) -> None:
    people = person_rows(6)
    people[0]["who"], people[1]["who"] = NFC, NFD
    make = small_configs(tmp_path)
    write_csv(tmp_path / "odd.csv", people)
    config = make(private="odd.csv", partition={"shards": 1}, stage={"epochs": 1})
    train(config)
    with S3T.load(config.run_dir) as service:
        done = service.deactivate(subjects=[NFC], request_id="r")
        assert (done.deleted, done.look_alikes, done.to_dict()["look_alikes"]) == (("s000",), 1, 1)
    said = s3t("deactivate", config.run_dir, "--subjects", NFC)
    assert "1 samples stay whose id or person looks like one named" in said.out
    write_csv(tmp_path / "more.csv", [{**people[0], "id": "w1", "text": "later"}])
    train(RunDir(config.run_dir).config(), replan=Replan(True, (str(tmp_path / "more.csv"),)))
    again = s3t("deactivate", config.run_dir, "--subjects", NFC, "--request-id", "r")
    assert again.code == 2 and "1 samples that it names were taken in since" in again.err
    done = s3t("deactivate", config.run_dir, "--subjects", NFC, "--request-id", "r2")
    assert "request r2: deleted 1 samples" in done.out
    with closing(sqlite3.connect(RunDir(config.run_dir).ledger_path)) as connection:
        living = connection.execute("SELECT subject FROM samples WHERE deleted_view IS NULL")
        assert NFC not in {row[0] for row in living}
