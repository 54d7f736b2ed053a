"""The app: what a request passes on its way to a route, and which routes there are.

    request ─► Traffic   counts, times and logs it; no error leaves it unshaped
            ─► Limits    bytes of the body, seconds until it is here
            ─► routes    POST /v1/predict           batcher ─► one thread ─► model.predict
                         POST /v1/completions       threads ─► model.generate, model.stream
                         POST /v1/deletions …       a pool of their own, so that questions go on
                         GET  /v1/status, /v1/forecast, /v1/picture, /v1/log …
                         GET  /healthz, /readyz, /metrics, /, /openapi.json
               each behind access.needs(role)
            ─► answer    sent while the view that gave it is held (``answers``)

Invariants: whatever happens, an error has the shape of ``problems``; the event loop never computes
or waits for the ledger; nothing that is logged holds an id, a body or a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from s3t.config.serve import ServeConfig
from s3t.server.deletions.service import DeletionService
from s3t.server.http.middleware import Traffic
from s3t.server.http.problems import MEDIA_TYPE, ProblemBody, handle_problems, refusals
from s3t.server.logs import Causes
from s3t.server.metrics import Metrics
from s3t.server.routes import completions, deletions, health, page, predict, repair, status
from s3t.server.security.access import Access
from s3t.server.security.limits import Limits
from s3t.server.security.tokens import TokenFile, token_path
from s3t.server.state import Service
from s3t.server.work.batcher import Batcher
from s3t.server.work.maintenance import Maintenance
from s3t.server.work.streams import Streams
from s3t.server.work.threads import ThreadPool
from s3t.version import __version__

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["create_app"]


def create_app(model: S3T, config: ServeConfig, *, insecure: bool = False) -> FastAPI:
    """The app over one model.

    Args:
        model: loaded, and joined as a replica; the caller closes it.
        config: limits and waits.
        insecure: requests need no token; the caller makes sure of a loopback address.
    """
    metrics, streams, causes = Metrics(model), Streams(config.streams), Causes()
    metrics.streams.set_function(lambda: streams.count)
    tokens = TokenFile(token_path(model.root, config))
    service = Service(
        model,
        config,
        Access(tokens, config, insecure),
        metrics,
        Batcher(model, config, metrics),
        streams,
        DeletionService(model, config, insecure),
        Maintenance(model),
        ThreadPool("lookups", 2, 32),
        ThreadPool("probes", 1, 4),
        causes,
    )
    service.reloads.append(service.access.reload)
    app = FastAPI(
        title="s3t",
        version=__version__,
        description="A fine-tuned model that forgets without stopping.",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.service, app.state.access = service, service.access
    handle_problems(app)
    for part in (predict, completions, deletions, repair, status, health, page):
        app.include_router(part.router)
    app.add_middleware(Limits, config=config)
    app.add_middleware(Traffic, metrics=metrics, causes=causes)  # the outermost
    _describe(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.deletions.start()
    try:
        yield
    finally:
        service.draining = True
        for end in (
            service.batcher.close,
            service.streams.threads.close,
            service.deletions.close,
            service.maintenance.close,
            service.lookups.close,
            service.probes.close,
        ):
            await asyncio.to_thread(end)


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI document: the one shape of errors, also where the framework has put its
    own in for parameters that it checks."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            schemas["Problem"] = ProblemBody.model_json_schema() | {"title": "Problem"}
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            invalid = refusals("invalid_body")[422]
            for operation in (o for path in document["paths"].values() for o in path.values()):
                told = operation["responses"].get("422", invalid)
                if MEDIA_TYPE not in told["content"]:
                    operation["responses"]["422"] = invalid
        return document

    app.openapi = openapi  # type: ignore[method-assign]
