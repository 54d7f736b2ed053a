"""The whole OpenAPI document, tried by schemathesis: with right tokens, wrong ones, and none.

What is refused must change nothing, and nothing may fail in a way that the document does not tell.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from s3t import S3T
from s3t.server.security.tokens import ROLES, TokenFile
from tests.server.test_access import OPEN, ROUTES
from tests.server.test_deletions import Wrapped

schemathesis = pytest.importorskip("schemathesis")

from schemathesis.checks import positive_data_acceptance  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.heavy]

OPERATIONS = [
    *((method, path.replace("/r1", "/{subject_request_id}")) for method, path, _ in ROUTES),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
]
JUDGED_BY_THE_RUN = ("/v1/predict", "/v1/completions")
"""Rows that the document allows and this run does not: it knows texts, and no completions."""
WRONG = "s3t_audit_" + "0" * 48
NEVER_ROUTED = (404, 405)
"""A path parameter with a slash in it is another address."""


class Tried:
    """The app, its model, and its tokens."""

    def __init__(self, folder: Path) -> None:
        from s3t.server.app import create_app

        loaded = S3T.load(folder)
        loaded.join()
        self.model: Any = Wrapped(loaded, repair=lambda: {"trained": 0})
        file = TokenFile(folder / "tokens.json")
        self.all = file.create("all", ROLES)[0]
        self.tokens = {role: file.create(role, [role])[0] for role in ROLES}
        config = loaded.config.serve.model_copy(update={"refusals": 10**6, "delete_rate": None})
        self.service = create_app(self.model, config)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The service, begun once however often it is told to."""
        if scope["type"] != "lifespan":
            await self.service(scope, receive, send)
            return
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})

    def version(self) -> tuple[Any, ...]:
        """What changes whenever anything does."""
        return self.model.status(), self.model.log(1)[0]["number"]


@pytest.fixture(scope="module")
def tried(small_training: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    found = Tried(Path(shutil.copytree(small_training, tmp_path_factory.mktemp("api") / "run")))
    yield found
    found.model.close()


@pytest.fixture(scope="module")
def document(tried: Tried) -> Any:
    found = schemathesis.openapi.from_asgi("/openapi.json", tried.app)
    found.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    return found


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_with_the_right_token(document: Any, tried: Tried, method: str, path: str) -> None:
    def one(case: Any) -> None:
        _sensible(case)
        before = tried.version()
        said = case.call(headers={"Authorization": f"Bearer {tried.all}"})
        left_out = [positive_data_acceptance] if path in JUDGED_BY_THE_RUN else []
        case.validate_response(said, excluded_checks=left_out)
        if said.status_code >= 400:
            assert tried.version() == before

    # some that the document allows, and others that it does not
    operation = document[path][method]
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    refused = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    _each_case(allowed | refused, 12, one)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_with_wrong_tokens(document: Any, tried: Tried, method: str, path: str) -> None:
    operation = document[path][method]
    security = operation.definition.raw.get("security") or [{}]
    roles = next(iter(security[0].values()), [])
    assert bool(roles) == (path not in OPEN)

    def one(case: Any) -> None:
        before = tried.version()
        for name, token in {**tried.tokens, "none": None, "wrong": WRONG}.items():
            if name in roles or not roles:
                continue
            given = {} if token is None else {"Authorization": f"Bearer {token}"}
            said = case.call(headers=given)
            expected = {403 if name in ROLES else 401, *NEVER_ROUTED}
            assert said.status_code in expected, (name, said.text)
            assert said.headers["content-type"][0].startswith("application/problem+json")
        assert tried.version() == before

    # cases that the document refuses may leave the token out themselves
    _each_case(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), 3, one)


def _each_case(cases: Any, examples: int, one: Callable[[Any], None]) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def all_of_them(case: Any) -> None:
        one(case)

    all_of_them()


def _sensible(case: Any) -> None:
    """Leave out what the document cannot say: callback hosts, and one name in two places."""
    if case.path == "/v1/deletions" and case.method == "POST":
        case.headers.pop("Idempotency-Key", None)
        if isinstance(case.body, dict):
            case.body.pop("status_callback_urls", None)
