"""What can be looked at: the state of the run, what is ahead of it, and its log.

Invariant: nothing here changes anything, and nothing names a sample but by its keyed hash. Looking
takes threads of its own, so that it holds up neither answers nor deletions.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from s3t.server.http.problems import refusals
from s3t.server.security.access import Guarded, needs
from s3t.server.state import service_of

__all__ = ["router"]

router = APIRouter(route_class=Guarded, tags=["audit"], dependencies=[needs("audit")])

_REFUSALS = refusals(
    *("unauthenticated", "forbidden", "rate_limited", "internal", "damaged"),
    *("overloaded", "unavailable", "draining"),
)


class ShardStatus(BaseModel):
    """What one shard serves, and what of it is left."""

    shard: int
    prefix: list[int] = Field(description="slice numbers of what serves; empty if nothing does")
    node: str | None
    nodes_alive: int
    nodes_dead: int
    nodes_missing: int
    slices_hit: list[int]
    score: float | None


class EnvironmentStatus(BaseModel):
    """An environment, and how many of the nodes that can serve were trained in it."""

    environment: str = Field(description="digest of all that it is named by")
    name: str
    nodes: int


class Status(BaseModel):
    """The state of the run at one view."""

    view: int
    samples: int
    deleted: int
    exhausted: bool
    expected_deletions_left: float
    slices: int
    shards: list[ShardStatus]
    environments: list[EnvironmentStatus]
    database: str = Field(description="what the ledger is kept in, and its version")
    jobs: int = Field(description="large deletions that were accepted and are not done")
    callbacks: int = Field(description="URLs that are still to be told of a deletion")
    untold: str | None = Field(
        None, description="why the store does not know of every deletion yet; null if it does"
    )


class Replica(BaseModel):
    """A process that answers by a lease."""

    name: str
    view: int = Field(description="no answer of it comes from an older one")
    since: str


class Replicas(BaseModel):
    """All of them, the oldest first."""

    replicas: list[Replica]


class LogQuery(BaseModel):
    """Which part of the log."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000)


class LogEntry(BaseModel):
    """One entry of the run's log; each holds the digest of the one before."""

    number: int
    kind: str
    at: str
    body: dict[str, Any]
    previous: str
    digest: str
    signer: str | None
    signature: str | None


class Log(BaseModel):
    """The end of the log, the latest entry first."""

    entries: list[LogEntry]


@router.get("/v1/status", summary="What serves", response_model=Status, responses=_REFUSALS)
async def status(request: Request) -> dict[str, Any]:
    """Shards, prefixes, and what is left, as `s3t status --json`."""
    service = service_of(request)
    found: dict[str, Any] = await service.lookups.run(lambda: service.model.status().to_dict())
    return found


@router.get("/v1/forecast", summary="What is ahead", responses=_REFUSALS)
async def forecast(request: Request) -> dict[str, Any]:
    """Requests and days until the first shard dies and until exhaustion, as
    `s3t forecast --json`."""
    service = service_of(request)
    found: dict[str, Any] = await service.lookups.run(lambda: service.model.forecast().to_dict())
    return found


@router.get("/v1/replicas", summary="Who answers", response_model=Replicas, responses=_REFUSALS)
async def replicas(request: Request) -> dict[str, Any]:
    """Processes that answer for the run by leases; none where each answer looks at the ledger."""
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
    summary="All that was done",
    response_model=Log,
    responses=_REFUSALS | refusals("invalid_body"),
)
async def log(request: Request, asked: Annotated[LogQuery, Query()]) -> dict[str, Any]:
    """The latest entries of the chained log, the newest first, as `s3t log --json`."""
    service = service_of(request)
    entries = await service.lookups.run(lambda: service.model.ledger.recent(asked.limit))
    return {"entries": [asdict(entry) for entry in entries]}
