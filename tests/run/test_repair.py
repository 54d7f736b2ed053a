"""When a run is due for repair, and repairs from outside: the command line, the live object."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s3t.config import Config, dump_config
from s3t.errors import InputError
from s3t.run import RunDir
from s3t.run.opened import OpenRun
from s3t.run.repair import reason, replan_apart
from s3t.service import S3T
from s3t.training.retrain import from_scratch
from tests.support.commands import Run, here
from tests.support.small_runs import nodes, start

QUESTIONS = [{"text": "person 4 says 5"}]


@pytest.fixture
def run(small_run: RunDir) -> RunDir:
    return small_run


def under(run: RunDir, **policy: Any) -> None:
    tree = run.config().model_dump(mode="json") | {"repair": policy}
    run.config_path.write_text(dump_config(Config.model_validate(tree)), encoding="utf-8")


def due(run: RunDir, days: float = 0) -> str | None:
    forgetting = OpenRun(RunDir(run.root))
    try:
        return reason(forgetting, datetime.now(UTC) + timedelta(days=days))
    finally:
        forgetting.close()


def delete(run: RunDir, *people: str) -> None:
    with S3T.load(run.root) as service:
        for person in people:
            service.deactivate(subjects=[person])


def test_by_hand_it_is_never_due(run: RunDir) -> None:
    delete(run, "p03", "p04", "p05")
    assert due(run, days=1000) is None


def test_by_forecast(run: RunDir) -> None:
    under(run, when="forecast", below_requests=0.5)
    assert due(run) is None, "nothing was deleted"
    delete(run, "p03")
    assert due(run) is None
    under(run, when="forecast", below_requests=6)
    assert "first death is at most" in (due(run) or "")
    under(run, when="forecast", event="exhaustion", below_requests=0.5)
    assert due(run) is None
    under(run, when="forecast", event="exhaustion", below_days=1)
    delete(run, "p04")
    assert "exhaustion is at most" in (due(run, days=0.01) or "")


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ({"when": "forecast"}, "below_requests or below_days"),
        ({"when": "schedule"}, "every_days"),
        ({"when": "schedule", "every_days": 0}, "greater than 0"),
        ({"when": "never"}, "hand"),
    ],
)
def test_policies_that_say_nothing(run: RunDir, policy: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        under(run, **policy)


@pytest.fixture
def repaired_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command that the live object starts runs in this process, which has torch already."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == ["-m", "s3t"]
        said = here(*command[3:])
        return subprocess.CompletedProcess(command, said.code, said.out, said.err)

    monkeypatch.setattr("s3t.run.repair.subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("repaired_here")
def test_by_schedule(run: RunDir) -> None:
    under(run, when="schedule", every_days=7)
    assert due(run, days=8) is None, "nothing was deleted"
    delete(run, "p03")
    assert due(run, days=6) is None
    assert "8.0 days old" in (due(run, days=8) or "")
    replan_apart("repair", run.root)
    delete(run, "p04")
    assert due(run, days=6) is None, "the plan is new"


@pytest.mark.usefixtures("repaired_here")
def test_the_live_object_repairs_and_goes_on(run: RunDir, tmp_path: Path) -> None:
    with S3T.load(run.root) as service:
        service.predict(QUESTIONS)
        service.deactivate(subjects=["p03"], request_id="r")
        before = service.predict(QUESTIONS)[0]
        report = service.repair()
        assert report["trained"] > 0 and report["skipped"] == 0
        after = service.predict(QUESTIONS)[0]
        assert after.view > before.view
        assert service.receipt("r").purged_at is not None
    assert from_scratch(run, tmp_path / "scratch").equal


@pytest.mark.usefixtures("repaired_here")
def test_a_repair_that_fails_says_why(run: RunDir, tmp_path: Path) -> None:
    config = run.config()
    private = Path(str(config.data.private.files))
    gone = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={
                    "private": config.data.private.model_copy(
                        update={"files": str(tmp_path / private.name)}
                    )
                }
            )
        }
    )
    run.config_path.write_text(dump_config(gone), encoding="utf-8")
    before = nodes(config.model_copy(update={"output": str(run.root)}))
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"])
        with pytest.raises(InputError, match=r"(?s)the repair of .*private\.csv"):
            service.repair()
        assert service.predict(QUESTIONS)
    assert nodes(config.model_copy(update={"output": str(run.root)})) == before


def test_from_the_command_line(run: RunDir, s3t: Run, tmp_path: Path) -> None:
    told = s3t("repair", run.root, "--if-due", "--json")
    assert told.code == 0 and json.loads(told.out) == {"run": str(run.root), "due": None}
    delete(run, "p03")
    wrong = s3t("repair", run.root, "stage.epochs=3")
    assert wrong.code == 2 and "takes no 'stage.epochs=3'" in wrong.err
    assert s3t("repair", tmp_path / "nowhere").code == 2
    done = s3t("repair", run.root, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["trained"] > 0
    under(run, when="forecast", below_requests=100)
    delete(run, "p04")
    done = s3t("repair", run.root, "--if-due")
    assert done.code == 0 and "in 5 % of futures" in done.err
    assert "nodes trained" in done.out
    assert from_scratch(run, tmp_path / "scratch").equal


@pytest.mark.heavy
def test_two_processes_of_accelerate_repair_to_the_same_bytes(
    run: RunDir, command: Run, tmp_path: Path
) -> None:
    delete(run, "p03", "p09")
    done = command("repair", run.root, "--num_processes", "2", "--cpu")
    assert done.code == 0, done.err
    assert from_scratch(run, tmp_path / "scratch").equal


@pytest.mark.heavy
def test_watching_repairs_what_becomes_due(run: RunDir) -> None:
    under(run, when="forecast", below_requests=100)
    process = start("repair", str(run.root), "--watch", "1")
    try:
        delete(run, "p03")
        limit = datetime.now(UTC) + timedelta(seconds=90)
        while True:
            with run.ledger() as ledger:
                if any(entry.kind == "purge" for entry in ledger.log()):
                    break
            assert process.poll() is None, process.communicate()[1]
            assert datetime.now(UTC) < limit
    finally:
        process.kill()
        process.communicate()
    with run.ledger() as ledger:
        assert ledger.plans.in_force().generation == 1


def test_adding_from_the_command_line(run: RunDir, s3t: Run, tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text("id,who,text,label\nn0,n0,newcomer writes,good\n", encoding="utf-8")
    absent = s3t("add", run.root, tmp_path / "absent.csv")
    assert absent.code == 2 and "there is no file" in absent.err
    done = s3t("add", run.root, more, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["added"] == 1
    listed = s3t("samples", run.root).out
    assert "n0" in listed and len(listed.splitlines()) == 49
    assert json.loads(s3t("audit", run.root, "--json").out)["holds"] is True
    with run.ledger() as ledger:
        view = ledger.view()
    assert json.loads(s3t("add", run.root, "--json").out)["added"] == 0
    again = s3t("add", run.root, more)
    assert again.out.splitlines()[1].startswith("nothing was new: the run held every sample of its")
    with run.ledger() as ledger:
        assert ledger.view() == view, "nothing that serves has changed"
