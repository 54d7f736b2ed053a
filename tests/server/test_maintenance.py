"""Repair, purge, reload, and what can be looked at: as the library tells it, one at a time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest

from s3t import S3T
from s3t.errors import IntegrityError, S3TError
from s3t.run import RunDir
from s3t.server.work.evaluation import RegularEvaluation
from tests.server.test_deletions import Wrapped
from tests.support.asked import Asked, asked
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def site(small_run: RunDir) -> Iterator[Asked]:
    with asked(small_run.root) as found:
        yield found


def state_of(site: Asked) -> Any:
    return site.ask("GET", "/v1/repair", "audit").json()


def with_repair(repair: Callable[..., Any]) -> Callable[[S3T], Any]:
    return lambda model: Wrapped(model, repair=repair)


# ── evaluating ───────────────────────────────────────────────────────────────────────────────


def test_what_serves_is_evaluated_once_for_each_view(site: Asked) -> None:
    every = RegularEvaluation(site.model, 0.01)
    every.start()
    until(lambda: site.model.status().evaluation is not None)
    site.delete(sample_ids=["s000"], subject_request_id="r-1")
    until(lambda: site.model.status().evaluation is not None)
    every.close()
    told = site.ask("GET", "/v1/picture", "audit").json()["evaluations"]
    assert [(one["view"], one["deleted"]) for one in told] == [(0, 0), (1, 1)]


# ── looking ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_looked_at_is_what_the_library_tells(site: Asked) -> None:
    site.delete(sample_ids=["s000"], subject_request_id="r-1")
    told = {
        path: site.ask("GET", f"/v1/{path}", "audit").json()
        for path in ("status", "forecast", "picture", "log")
    }
    model = site.model
    assert told["status"] == json.loads(json.dumps(model.status().to_dict()))
    assert told["picture"] == json.loads(json.dumps(model.picture()))
    assert told["log"] == {"entries": [asdict(entry) for entry in model.ledger.recent(100)]}
    forecast = json.loads(json.dumps(model.forecast().to_dict()))
    assert told["forecast"].keys() == forecast.keys()
    assert told["forecast"]["first_death"]["requests"] == forecast["first_death"]["requests"]
    assert "s000" not in json.dumps(told)


def test_the_log_is_told_from_its_end(site: Asked) -> None:
    entries = site.ask("GET", "/v1/log?limit=2", "audit").json()["entries"]
    numbers = [entry["number"] for entry in entries]
    assert numbers == [len(site.model.ledger.recent(100)), len(site.model.ledger.recent(100)) - 1]
    for wrong in ("0", "-1", "1001", "x", "1e3", "9" * 400):
        assert site.ask("GET", f"/v1/log?limit={wrong}", "audit").status_code == 422


def test_looking_changes_nothing(site: Asked) -> None:
    before = site.state()
    for path in ("status", "forecast", "picture", "log", "repair", "deletions", "replicas"):
        assert site.ask("GET", f"/v1/{path}", "audit").status_code == 200
    assert site.state() == before


def test_looks_that_take_long_hold_up_no_deletion(small_run: RunDir) -> None:
    gate = threading.Event()

    def slow(model: S3T) -> Any:
        return Wrapped(model, forecast=lambda: gate.wait(10) and model.forecast())

    with asked(small_run.root, model=slow) as site:
        looks = [
            threading.Thread(target=site.ask, args=("GET", "/v1/forecast", "audit"))
            for _ in range(3)
        ]
        for one in looks:
            one.start()
        assert site.delete(sample_ids=["s000"]).status_code == 201
        assert site.ask("GET", "/healthz").status_code == 200
        gate.set()
        for one in looks:
            one.join()


# ── repair ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.heavy
def test_a_repair_brings_back_what_a_deletion_took(site: Asked) -> None:
    assert state_of(site)["state"] == "none"
    dead = site.delete(sample_ids=["s000"]).json()["receipt"]["nodes_dead"]
    said = site.ask("POST", "/v1/repair", "repair")
    assert said.status_code == 202 and said.json()["state"] == "running"
    again = site.ask("POST", "/v1/repair", "repair")
    assert (again.status_code, again.json()["code"]) == (409, "busy")
    limit = time.monotonic() + 90
    while state_of(site)["state"] == "running":
        assert time.monotonic() < limit
        time.sleep(0.1)
    found = state_of(site)
    assert found["state"] == "done", found
    assert found["report"]["trained"] == len(dead) and found["started"] < found["ended"]
    site.ask("POST", "/v1/reload", "repair")
    status = site.ask("GET", "/v1/status", "audit").json()
    assert all(shard["nodes_dead"] == 0 for shard in status["shards"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (S3TError("another process trains /secret/run"), "internal"),
        (IntegrityError("/secret/run/plan.json is damaged"), "damaged"),
        (RuntimeError("row 'secret'"), "internal"),
    ],
)
def test_a_repair_that_fails_is_told_and_can_be_begun_again(
    small_run: RunDir, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [error]

    def repair(launch: Any = ()) -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return {"trained": 0}

    caplog.set_level(logging.DEBUG)
    with asked(small_run.root, model=with_repair(repair)) as site:
        site.ask("POST", "/v1/repair", "repair")
        until(lambda: state_of(site)["state"] == "failed")
        found = state_of(site)
        assert found["problem"]["code"] == code
        assert "secret" not in json.dumps(found) and "secret" not in caplog.text
        site.ask("POST", "/v1/repair", "repair")
        until(lambda: state_of(site)["state"] == "done")
        assert state_of(site)["problem"] is None


def test_nothing_of_a_repair_comes_from_the_network(small_run: RunDir) -> None:
    calls: list[Any] = []

    def repair(*given: Any, **more: Any) -> dict[str, Any]:
        calls.append((given, more))
        return {}

    with asked(small_run.root, model=with_repair(repair)) as site:
        body = {"launch": ["--module", "os"], "run": "/etc"}
        said = site.ask("POST", "/v1/repair?launch=--module&run=/etc", "repair", json=body)
        assert said.status_code == 202
        until(lambda: state_of(site)["state"] == "done")
    assert calls == [((), {})]


def test_a_repair_under_way_holds_up_nothing(small_run: RunDir) -> None:
    gate = threading.Event()

    def repair() -> dict[str, Any]:
        gate.wait(10)
        return {}

    with asked(small_run.root, model=with_repair(repair)) as site:
        site.ask("POST", "/v1/repair", "repair")
        assert site.delete(sample_ids=["s000"]).status_code == 201
        assert site.ask("GET", "/v1/status", "audit").status_code == 200
        assert state_of(site)["state"] == "running"
        gate.set()
        until(lambda: state_of(site)["state"] == "done")


# ── purge and reload ─────────────────────────────────────────────────────────────────────────


def test_a_purge_removes_what_is_dead(site: Asked) -> None:
    dead = site.delete(sample_ids=["s000"], subject_request_id="r-1").json()["receipt"]
    files = {path.stem for path in (site.model.root / "nodes").glob("*.safetensors")}
    assert set(dead["nodes_dead"]) <= files
    said = site.ask("POST", "/v1/purge", "repair")
    body = said.json()
    assert said.status_code == 200 and sorted(body["nodes"]) == sorted(dead["nodes_dead"])
    assert body["out_of_reach"] and [rows for _, rows in body["own_files"]] == [1]
    files = {path.stem for path in (site.model.root / "nodes").glob("*.safetensors")}
    assert not set(dead["nodes_dead"]) & files and "s000" not in said.text
    assert site.ask("GET", "/v1/deletions/r-1", "delete").json()["receipt"]["purged_at"]
    assert site.delete(sample_ids=["s000"]).status_code == 201  # it is still known as deleted


def test_why_a_file_of_the_user_cannot_be_read_is_not_told(small_run: RunDir) -> None:
    def purge() -> Any:
        found = S3T.load(small_run.root).purge(dry_run=True)
        from dataclasses import replace

        return replace(found, own_files=(("a.csv (cannot be read: id 'secret' twice)", 0),))

    with asked(small_run.root, model=lambda model: Wrapped(model, purge=purge)) as site:
        said = site.ask("POST", "/v1/purge", "repair")
        assert said.json()["own_files"] == [["a.csv", 0]] and "secret" not in said.text


def test_a_reload_looks_at_tokens_and_run(
    small_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def watched(model: S3T) -> Any:
        return Wrapped(model, serving=Wrapped(model.serving, reload=lambda: looked.append("run")))

    with asked(small_run.root, model=watched) as site:
        monkeypatch.setattr(site.service.access, "reload", lambda: looked.append("tokens"))
        said = site.ask("POST", "/v1/reload", "repair")
        assert said.status_code == 204 and said.content == b""
        assert looked == ["run", "tokens"]


def test_a_reload_that_fails_changes_nothing(small_run: RunDir) -> None:
    def fail() -> None:
        raise IntegrityError(f"{small_run.root}/plan.json is damaged")

    with asked(
        small_run.root,
        model=lambda model: Wrapped(model, serving=Wrapped(model.serving, reload=fail)),
    ) as site:
        said = site.ask("POST", "/v1/reload", "repair")
        assert (said.status_code, said.json()["code"]) == (500, "damaged")
        assert str(small_run.root) not in said.text
        assert site.ask("GET", "/v1/status", "audit").status_code == 200
