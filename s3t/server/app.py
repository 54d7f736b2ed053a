"""The app: what a request passes on its way to a route, and which routes there are.

    request ─► MonitorMiddleware  counts, times and logs it; turns every error into a response
            ─► LimitMiddleware    limits the body's size and the requests at work
            ─► AuthorizedRoute    token, role, rate (``security.access``)
            ─► routes             POST /v1/predict        batcher ─► one thread ─► S3T.predict
                                  POST /v1/completions    thread pool ─► S3T.generate, S3T.stream
                                  /v1/deletions …         thread pool of its own ─► S3T.deactivate
                                  /v1/repair, /v1/purge, /v1/reload
                                  /v1/status, /v1/forecast, /v1/picture, /v1/log …
                                  /healthz, /readyz, /metrics, /, /openapi.json
            ─► response           answers are sent while their view is held (``held_response``)

To add a route: write it in a file of ``routes/``, with its schemas, and add a new file's router to
``_ROUTES``.

Invariants: every error has the shape of ``http.problems``. The event loop neither computes nor
waits for the ledger. The log holds no id, body or token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from s3t.config.serve import ServeConfig
from s3t.server.http.middleware import MonitorMiddleware
from s3t.server.http.problems import MEDIA_TYPE, ProblemBody, handle_problems, refusals
from s3t.server.routes import completions, deletions, health, page, predict, repair, status
from s3t.server.security.limits import LimitMiddleware
from s3t.server.state import Service
from s3t.version import __version__

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["create_app"]

_ROUTES = (predict, completions, deletions, repair, status, health, page)


def create_app(model: S3T, config: ServeConfig, *, insecure: bool = False) -> FastAPI:
    """The app over one model.

    Args:
        model: loaded, and joined as a replica; the caller closes it.
        config: limits and timeouts.
        insecure: requests need no token; the caller makes sure that the address is a loopback one.
    """
    service = Service(model, config, insecure)
    app = FastAPI(
        title="s3t",
        version=__version__,
        description="A fine-tuned model that forgets without stopping.",
        docs_url=None,  # these pages would load scripts from other hosts
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service, app.state.access = service, service.access
    handle_problems(app)
    for module in _ROUTES:
        app.include_router(module.router)
    app.add_middleware(LimitMiddleware, config=config)
    app.add_middleware(  # the outermost
        MonitorMiddleware, metrics=service.metrics, failures=service.failures
    )
    _describe(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.close)


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI document: errors have the shape of ``ProblemBody``, also where FastAPI
    describes its own for parameters that it checks."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schemas["Problem"] = ProblemBody.model_json_schema() | {"title": "Problem"}
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            invalid = refusals("invalid_body")[422]
            for operation in (o for path in document["paths"].values() for o in path.values()):
                described = operation["responses"].get("422", invalid)
                if MEDIA_TYPE not in described["content"]:
                    operation["responses"]["422"] = invalid
        return document

    app.openapi = openapi  # type: ignore[method-assign]
