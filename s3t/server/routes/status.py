"""Routes that only read: status, forecast, replicas, picture and log of the run.

Invariants: nothing is changed, and samples are named by keyed hashes only. Reads run in a thread
pool of their own (``Service.lookups``), so they delay neither predictions nor deletions.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from s3t.ledger import LogEntry
from s3t.run.status import Status
from s3t.server.http.problems import refusals
from s3t.server.security.access import AuthorizedRoute, requires_role
from s3t.server.state import service_of

__all__ = ["router"]

router = APIRouter(
    route_class=AuthorizedRoute, tags=["audit"], dependencies=[requires_role("audit")]
)

_REFUSALS = refusals(
    *("unauthenticated", "forbidden", "rate_limited", "internal", "damaged"),
    *("overloaded", "unavailable", "draining"),
)


class Replica(BaseModel):
    """A process that answers by a lease."""

    name: str
    view: int = Field(description="it gives no answer of an older one")
    since: str


class Replicas(BaseModel):
    """All replicas, the oldest first."""

    replicas: list[Replica]


class LogQuery(BaseModel):
    """Which part of the log."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000)


class Log(BaseModel):
    """The end of the log, the latest entry first."""

    entries: list[LogEntry]


@router.get("/v1/status", summary="What serves", response_model=Status, responses=_REFUSALS)
async def status(request: Request) -> dict[str, Any]:
    """Shards, prefixes, and what is left, as `s3t status --json`."""
    service = service_of(request)
    found: dict[str, Any] = await service.lookups.run(lambda: service.model.status().to_dict())
    return found


@router.get("/v1/forecast", summary="Deletions until exhaustion", responses=_REFUSALS)
async def forecast(request: Request) -> dict[str, Any]:
    """Requests and days until the first shard dies and until exhaustion, as
    `s3t forecast --json`."""
    service = service_of(request)
    found: dict[str, Any] = await service.lookups.run(lambda: service.model.forecast().to_dict())
    return found


@router.get(
    "/v1/replicas", summary="Replicas of the run", response_model=Replicas, responses=_REFUSALS
)
async def replicas(request: Request) -> dict[str, Any]:
    """Processes that answer for the run by a lease. A process that reads the ledger for each answer
    is not listed."""
    service = service_of(request)
    found = await service.lookups.run(service.model.ledger.replicas.all)
    return {"replicas": [{"name": one.name, "view": one.view, "since": one.since} for one in found]}


@router.get("/v1/picture", summary="Every block of the run", responses=_REFUSALS)
async def picture(request: Request) -> dict[str, Any]:
    """Shards × slices, and the state of each node, as the page draws them."""
    service = service_of(request)
    return await service.lookups.run(service.model.picture)


@router.get(
    "/v1/log",
    summary="The log of the run",
    response_model=Log,
    responses=_REFUSALS | refusals("invalid_body"),
)
async def log(request: Request, asked: Annotated[LogQuery, Query()]) -> dict[str, Any]:
    """The latest entries of the chained log, the newest first, as `s3t log --json`."""
    service = service_of(request)
    entries = await service.lookups.run(lambda: service.model.ledger.recent(asked.limit))
    return {"entries": [asdict(entry) for entry in entries]}
