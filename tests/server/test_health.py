"""Does it live, may it be asked, what has it counted; and nothing of that names anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from s3t.errors import UnavailableError
from s3t.server.app import create_app
from s3t.server.http.middleware import MonitorMiddleware
from s3t.server.logs import FailureLog
from s3t.server.metrics import Metrics
from s3t.server.security.tokens import TokenFile
from s3t.server.state import Service
from tests.server.test_predict import predict, refused
from tests.support.fake import URL, Gate, Model, config, served


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@pytest.fixture
def client(model: Model) -> Iterator[TestClient]:
    with served(model) as client:
        yield client


def test_it_lives_and_is_ready(client: TestClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.get(path).json() == {"status": "ok"}


def test_it_is_not_ready_without_a_block_a_lease_or_a_future(
    client: TestClient, model: Model
) -> None:
    model.reason = "exhausted"
    refused(client.get("/readyz"), "exhausted")
    model.reason = "the lease has run out: the ledger cannot be reached"
    answer = client.get("/readyz")
    assert refused(answer, "unavailable") == model.reason
    assert answer.headers["retry-after"] == "1"
    model.reason = None
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    service.draining = True
    refused(client.get("/readyz"), "draining")
    assert client.get("/healthz").status_code == 200


def test_metrics_count_requests_by_route_and_status(client: TestClient, model: Model) -> None:
    model.lease_left = 2.5
    predict(client, ["a", "b"])
    predict(client, [""])
    client.get("/v1/deletions/secret-request")
    client.get("/secret")
    client.request("SECRET", "/healthz")
    text = client.get("/metrics").text
    for line in (
        's3t_requests_total{method="POST",route="/v1/predict",run=RUN,status="200"} 1.0',
        's3t_requests_total{method="POST",route="/v1/predict",run=RUN,status="422"} 1.0',
        's3t_requests_total{method="POST",route="/v1/deletions",run=RUN,status="503"} 0.0',
        's3t_request_seconds_count{route="/v1/predict",run=RUN} 2.0',
        "s3t_batch_rows_sum{run=RUN} 2.0",
        "s3t_batch_rows_count{run=RUN} 1.0",
        's3t_nodes{run=RUN,state="serving"} 1.0',
        's3t_nodes{run=RUN,state="dead"} 2.0',
        "s3t_shards_alive{run=RUN} 1.0",
        "s3t_shards{run=RUN} 2.0",
        "s3t_samples_deleted{run=RUN} 2.0",
        "s3t_expected_deletions_left{run=RUN} 3.5",
        "s3t_lease_seconds_left{run=RUN} 2.5",
        "s3t_up{run=RUN} 1.0",
    ):
        assert line.replace("run=RUN", f'run="{model.run_id}"') in text.splitlines()
    assert "ecret" not in text.replace("SECRET", "secret") and "SECRET" not in text


def test_metrics_are_told_while_the_records_cannot_be_reached(
    client: TestClient, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise UnavailableError("no ledger")

    monkeypatch.setattr(model, "picture", fail)
    text = client.get("/metrics").text
    assert f's3t_up{{run="{model.run_id}"}} 0.0' in text and "s3t_view" not in text


def test_metrics_do_not_wait_for_a_ledger_that_hangs(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3t.server.routes.health._PATIENCE", 0.1)
    hangs = Gate()
    monkeypatch.setattr(model, "picture", hangs)
    with served(model) as client:
        for _ in range(6):  # the first waits for the ledger, those after the fourth for no thread
            assert f's3t_up{{run="{model.run_id}"}} 0.0' in client.get("/metrics").text
            assert client.get("/readyz").status_code == 200
        hangs.open()


def test_metrics_take_a_token_unless_they_are_open(model: Model) -> None:
    tokens = TokenFile(model.root / "tokens.json")
    audit, predicts = (tokens.create(role, [role])[0] for role in ("audit", "predict"))
    for is_open in (False, True):
        app = create_app(model, config(open_metrics=is_open))
        with TestClient(app, base_url=URL) as client:
            for token, code in ((None, "unauthenticated"), (predicts, "forbidden")):
                headers = {} if token is None else {"Authorization": f"Bearer {token}"}
                answer = client.get("/metrics", headers=headers)
                if is_open:
                    assert answer.status_code == 200
                else:
                    refused(answer, code)
            with_audit = {"Authorization": f"Bearer {audit}"}
            assert client.get("/metrics", headers=with_audit).status_code == 200


def test_the_page_is_told_the_last_minutes(client: TestClient) -> None:
    for _ in range(3):
        predict(client, ["a"])
    client.get("/healthz")
    seconds = client.get("/v1/traffic").json()["seconds"]
    assert sum(second["requests"] for second in seconds) == 3
    assert all(second["failed"] == 0 and 0 < second["p50"] <= second["p99"] for second in seconds)


def test_errors_of_the_document_are_all_of_one_shape(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"Problem"} <= set(schemas) and "HTTPValidationError" not in schemas
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], (path, method)


def test_a_request_that_is_cancelled_is_counted_as_unanswered(model: Model) -> None:
    async def cancelled(scope: Scope, receive: Receive, send: Send) -> None:
        raise asyncio.CancelledError

    counted = Metrics(model)
    app = MonitorMiddleware(cancelled, counted, FailureLog())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(app({"type": "http", "method": "GET"}, None, None))  # type: ignore[arg-type]
    text = counted.render(None, None).decode()
    assert 'status="499"' in text and 'status="0"' not in text
