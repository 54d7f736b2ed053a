"""Who may do what: every route, every role, every way of getting it wrong."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi.routing import APIRoute

from s3t.run import RunDir
from s3t.server.security import tokens
from s3t.server.security.access import AuthorizedRoute, RequiredRole
from s3t.server.security.tokens import ROLES, TokenFile
from tests.harness.routes import ROUTES
from tests.support.asked import Asked, asked

pytestmark = pytest.mark.slow

OPEN = {"/", "/healthz", "/readyz", "/openapi.json", "/page/{name}"}

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def site(small_run: RunDir) -> Iterator[Asked]:
    with asked(small_run.root) as found:
        yield found


def test_every_route_is_open_on_purpose_or_has_its_roles(site: Asked) -> None:
    documented = {
        (method.upper(), path)
        for path, methods in site.ask("GET", "/openapi.json").json()["paths"].items()
        for method in methods
    }
    named = {(m, p.replace("/r1", "/{subject_request_id}")) for m, p, _ in ROUTES}
    assert {one for one in documented if one[1] not in OPEN} == named


def test_only_its_roles_may_use_a_route(site: Asked) -> None:
    before = site.state()
    for method, path, roles in ROUTES:
        for role in {None, *ROLES, "s3t_delete_" + "0" * 48} - roles:
            said = site.ask(method, path, role, content=b"not JSON, and not to be read")
            expected = 403 if role in ROLES else 401
            assert said.status_code == expected, (method, path, role, said.text)
            assert said.headers["content-type"] == "application/problem+json"
            assert said.headers["www-authenticate"].startswith('Bearer realm="s3t"')
            assert said.json()["code"] == ("forbidden" if role in ROLES else "unauthenticated")
            if role in ROLES:
                assert any(one in said.json()["detail"] for one in roles)
            assert site.state() == before, (method, path, role)


def test_its_roles_get_past_the_gate(site: Asked) -> None:
    for method, path, roles in ROUTES:
        if path in ("/v1/repair", "/v1/purge", "/v1/reload") and method == "POST":
            continue  # test_maintenance does
        for role in roles:
            said = site.ask(method, path, role, json={})
            assert said.status_code not in (401, 403, 429), (method, path, role)


def test_a_token_may_hold_several_roles(site: Asked) -> None:
    file = TokenFile(site.model.root / "tokens.json")
    both, _ = file.create("both", ["delete", "audit"])
    site.service.access.reload()
    assert site.ask("GET", "/v1/status", both).status_code == 200
    assert site.delete(both, sample_ids=["s000"], dry_run=True).status_code == 200
    assert site.ask("POST", "/v1/predict", both).status_code == 403


NO_TOKENS = [
    "",
    "Bearer",
    "Bearer ",
    "Basic {}",
    "Token {}",
    "{}",
    "Bearer {}x",
    "Bearer x{}",
    "Bearer {0} {0}",
    "Bearer,{}",
    'Bearer "{}"',
]


def test_other_headers_are_no_token(site: Asked) -> None:
    for header in NO_TOKENS:
        given = {"Authorization": header.format(site.tokens["audit"])}
        said = site.ask("GET", "/v1/status", headers=given)
        assert (said.status_code, said.json()["code"]) == (401, "unauthenticated"), header


def test_the_scheme_has_no_case_and_blanks_do_not_count(site: Asked) -> None:
    given = {"Authorization": f"bEaReR   {site.tokens['audit']}  "}
    assert site.ask("GET", "/v1/status", headers=given).status_code == 200


def test_two_headers_are_none(site: Asked) -> None:
    token = site.tokens["audit"].encode()
    twice = [(b"authorization", b"Bearer " + token)] * 2
    assert site.client.get("/v1/status", headers=twice).status_code == 401


def test_a_token_in_the_address_or_a_cookie_is_none(site: Asked) -> None:
    token = site.tokens["audit"]
    assert site.ask("GET", f"/v1/status?access_token={token}&token={token}").status_code == 401
    cookie = {"Cookie": f"Authorization=Bearer {token}; token={token}"}
    assert site.ask("GET", "/v1/status", headers=cookie).status_code == 401


def test_the_body_of_a_stranger_is_not_read(site: Asked) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"sample_ids": ['
        raise AssertionError("it was read")

    said = site.ask("POST", "/v1/deletions", content=endless())
    assert said.status_code == 401


def test_wrong_tokens_have_to_wait_and_right_ones_do_not(small_run: RunDir) -> None:
    with asked(small_run.root, refusals=5) as site:
        said = [site.ask("GET", "/v1/status", f"wrong{n}") for n in range(8)]
        assert [one.status_code for one in said] == [401] * 5 + [429] * 3
        assert 1 <= int(said[-1].headers["retry-after"]) <= 60
        assert said[-1].json()["code"] == "rate_limited"
        assert site.ask("GET", "/v1/status", "audit").status_code == 200
        assert site.ask("GET", "/v1/status").status_code == 401  # none is no guess


def test_rates_are_of_each_token(small_run: RunDir) -> None:
    with asked(small_run.root, delete_rate=2.0, predict_rate=1.0) as site:
        dry = [site.delete(sample_ids=["s000"], dry_run=True) for _ in range(4)]
        assert [one.status_code for one in dry].count(429) >= 1
        assert dry[-1].headers["retry-after"] == "1"
        asks = [site.ask("POST", "/v1/predict", "predict", json={}) for _ in range(3)]
        assert [one.status_code for one in asks][-1] == 429
        other, _ = TokenFile(site.model.root / "tokens.json").create("other", ["delete"])
        site.service.access.reload()
        assert site.delete(other, sample_ids=["s000"], dry_run=True).status_code == 200


def test_expired_and_revoked_tokens_are_wrong(site: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_LOOK", 0.0)
    file = TokenFile(site.model.root / "tokens.json")
    short, _ = file.create("short", ["audit"], timedelta(microseconds=1))
    long, kept = file.create("long", ["audit"])
    assert site.ask("GET", "/v1/status", short).status_code == 401
    assert site.ask("GET", "/v1/status", long).status_code == 200
    file.revoke(kept.id)
    assert site.ask("GET", "/v1/status", long).status_code == 401


def test_without_a_file_nobody_gets_in_and_with_a_broken_one_neither(
    site: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_LOOK", 0.0)
    file = site.model.root / "tokens.json"
    good = file.read_bytes()
    file.unlink()
    assert site.ask("GET", "/v1/status", "audit").status_code == 401
    file.write_bytes(b"{")
    said = site.ask("GET", "/v1/status", "audit")
    assert (said.status_code, said.json()["code"]) == (503, "unavailable")
    assert str(site.model.root) not in said.text
    file.write_bytes(good)
    file.chmod(0o600)
    assert site.ask("GET", "/v1/status", "audit").status_code == 200


# ── insecure ─────────────────────────────────────────────────────────────────────────────────


def test_insecure_lets_everyone_on_this_machine_do_everything(small_run: RunDir) -> None:
    with asked(small_run.root, insecure=True) as site:
        for host in ("127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "LOCALHOST"):
            assert site.ask("GET", "/v1/status", headers={"Host": host}).status_code == 200
        assert site.delete(None, sample_ids=["s000"]).status_code == 201


@pytest.fixture
def insecure(small_run: RunDir) -> Iterator[Asked]:
    with asked(small_run.root, insecure=True) as found:
        yield found


def test_insecure_refuses_dns_rebinding(insecure: Asked) -> None:
    before, body = insecure.state(), {"sample_ids": ["s000"]}
    elsewhere = ("evil.example", "127.0.0.1.evil.example", "192.0.2.1:8000", "")
    for host in ("evil.example:8000", *elsewhere):
        said = insecure.ask("POST", "/v1/deletions", json=body, headers={"Host": host})
        assert (said.status_code, said.json()["code"]) == (403, "forbidden"), host
        assert insecure.state() == before, host


def test_insecure_refuses_pages_of_other_sites(insecure: Asked) -> None:
    before = insecure.state()
    others = ("https://evil.example", "http://localhost:3000", "http://127.0.0.1.evil.example")
    for origin in (*others, "null", ""):
        for path in ("/v1/purge", "/v1/reload", "/v1/repair"):
            said = insecure.ask("POST", path, headers={"Host": "localhost:8000", "Origin": origin})
            assert (said.status_code, said.json()["code"]) == (403, "forbidden"), (origin, path)
            assert insecure.state() == before, (origin, path)


def test_insecure_answers_its_own_page(insecure: Asked) -> None:
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        own = {"Host": host, "Origin": f"http://{host}"}
        assert insecure.ask("POST", "/v1/reload", headers=own).status_code == 204, host


# ── fail closed, and keep quiet ──────────────────────────────────────────────────────────────


def test_a_route_of_another_class_is_judged_all_the_same(site: Asked) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from s3t.server.http.problems import handle_problems
    from s3t.server.security.access import requires_role

    app = FastAPI()
    app.state.service, app.state.access = site.service, site.service.access
    handle_problems(app)

    @app.get("/x", dependencies=[requires_role("audit")])
    async def plain() -> str:
        return "told"

    with TestClient(app) as client:
        assert client.get("/x").status_code == 401
        given = {"Authorization": f"Bearer {site.tokens['audit']}"}
        assert client.get("/x", headers=given).status_code == 200
        given = {"Authorization": f"Bearer {site.tokens['delete']}"}
        assert client.get("/x", headers=given).status_code == 403


def test_routes_that_need_a_role_judge_before_they_read(site: Asked) -> None:
    from s3t.server.routes import deletions, repair, status

    for router in (status.router, deletions.router, repair.router):
        routes = [route for route in router.routes if isinstance(route, APIRoute)]
        assert routes
        for route in routes:
            assert isinstance(route, AuthorizedRoute)
            assert any(isinstance(one.dependency, RequiredRole) for one in route.dependencies)


def test_no_log_holds_an_id_a_subject_a_body_or_a_token(small_run: RunDir) -> None:
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    handler.addFilter(lambda record: not record.name.startswith("httpx"))  # the client's own
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", "s3t")}
    root.addHandler(handler)
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        with asked(small_run.root, refusals=3, job_samples=2) as site:
            _provoke(site)
            secrets = [*site.tokens.values(), "s000", "p01", "needle"]
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert "/v1/deletions" in told.getvalue()  # something is logged at all
    for secret in secrets:
        assert secret not in told.getvalue()


def _provoke(site: Asked) -> None:
    site.delete(sample_ids=["s000"])
    site.delete(subjects=["p01"], dry_run=True)
    site.delete(sample_ids=["needle"])
    site.delete(sample_ids=["needle", "needle2", "needle3"], subject_request_id="large")
    site.delete(sample_ids=["needle\nneedle"], extra="needle")
    site.delete(sample_ids=["needle"], status_callback_urls=["https://needle.example/"])
    for number in range(6):
        site.ask("GET", "/v1/status", f"needle{number}")
    site.ask("GET", "/v1/deletions/needle?needle=needle", "delete")
    site.ask("GET", "/needle", "audit", headers={"X-Needle": "needle"})
    body: Any = b'{"sample_ids": ["needle"'
    site.ask("POST", "/v1/deletions", "delete", content=body, headers=JSON)
    site.ask("POST", "/v1/predict", "predict", json={"rows": [{"needle": "needle"}, "needle"]})
    for error in (RuntimeError("needle"), OSError(28, "needle"), KeyError("needle")):
        _failing(site, error)


def _failing(site: Asked, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(site.model), "deactivate", fail)
        said = site.delete(sample_ids=["s001"])
    expected = 503 if isinstance(error, OSError) else 500
    assert said.status_code == expected and "needle" not in json.dumps(said.json())
