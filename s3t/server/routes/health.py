"""Health, readiness, metrics, and the traffic of the last minutes.

Invariant: the model and the ledger cannot block these routes. ``/healthz`` and ``/readyz`` read the
memory of this process; ``/metrics`` reads the ledger in a thread of its own, and answers without it
after ``_PATIENCE`` seconds.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from s3t.errors import S3TError
from s3t.server.http.problems import Problem, refusals
from s3t.server.metrics import CONTENT_TYPE
from s3t.server.security.access import AuthorizedRoute, requires_role
from s3t.server.state import Service, service_of

__all__ = ["router"]

router = APIRouter(route_class=AuthorizedRoute, tags=["operation"])

_AUDIT = requires_role("audit")
_PATIENCE = 3.0
"""Seconds to wait for the ledger. Prometheus waits for 10 by default."""


class Lives(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Second(BaseModel):
    """Predictions and completions that ended within one second."""

    at: int = Field(description="Unix time")
    requests: int
    failed: int = Field(description="of them with a status of 500 and above")
    p50: float = Field(description="seconds")
    p99: float = Field(description="seconds")


class Recent(BaseModel):
    """The last minutes, without the seconds in which nothing ended."""

    replica: str = Field(description="random name of this process, a new one at each start")
    now: int = Field(description="Unix time")
    seconds: list[Second]


@router.get("/healthz", summary="Does the process live?", response_model=Lives)
async def healthz() -> Lives:
    """Always 200: restart the process if there is no answer."""
    return Lives()


@router.get(
    "/readyz",
    summary="May it be asked?",
    response_model=Lives,
    responses=refusals("unavailable", "exhausted", "draining"),
)
async def readyz(request: Request) -> Lives:
    """503 and the reason while it cannot answer: send requests to other replicas."""
    service = service_of(request)
    if service.draining:
        raise Problem("draining", "the service is about to end")
    reason = service.model.readiness()
    if reason == "exhausted":
        raise Problem("exhausted", "no block is left that may answer; a repair trains new ones")
    if reason is not None:
        raise Problem("unavailable", reason, retry_after=1)
    return Lives()


@router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    openapi_extra={"security": [{"token": ["audit"]}]},
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **refusals("unauthenticated", "forbidden", "rate_limited"),
    },
)
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format, without any id. Takes the role audit, unless
    `serve.open_metrics` is set."""
    service = service_of(request)
    if not service.config.open_metrics:
        _AUDIT.dependency.admit(request)
    text = service.metrics.render(await _picture(service), service.model.lease_left)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def _picture(service: Service) -> dict[str, Any] | None:
    """The run's state from the ledger; None if it cannot be read in time."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await service.probes.run(service.model.picture)
    except S3TError as error:
        service.failures.report(error)
    except (TimeoutError, Problem):  # the ledger is slow, or several probes wait already
        pass
    return None


@router.get(
    "/v1/traffic",
    summary="Requests of the last minutes",
    dependencies=[_AUDIT],
    response_model=Recent,
    responses=refusals("unauthenticated", "forbidden", "rate_limited"),
)
async def traffic(request: Request) -> dict[str, Any]:
    """Requests, failures and latency of this process, second by second, as the page draws them."""
    return service_of(request).metrics.traffic.to_dict()
