"""Routes that only read: status, forecast, replicas, picture and log of the run.

Invariants: nothing is changed, and samples are named by keyed hashes only. Reads run in a thread
pool of their own (``Service.lookups``), so they delay neither predictions nor deletions.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

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


class ShardStatus(BaseModel):
    """What one shard serves, and what is left of it."""

    shard: int
    prefix: list[int] = Field(description="slices of the served prefix; empty if none is served")
    node: str | None
    nodes_alive: int
    nodes_dead: int
    nodes_missing: int
    slices_hit: list[int]
    score: float | None


class EnvironmentStatus(BaseModel):
    """A training environment, and how many of the living nodes were trained in it."""

    environment: str = Field(description="digest of all that identifies it")
    name: str
    nodes: int


class WeightStatus(BaseModel):
    """What shards and base count for in an answer, fitted on public validation rows."""

    fitted: bool = Field(description="false: uniform weights serve")
    shards: list[float | None] | None = Field(description="by shard; null if it serves nothing")
    base: float | None
    coefficient: float | None = Field(
        description="c, if the answer is base + c · mean of the shards' differences to it"
    )
    terms: int | None = Field(description="validation rows, or tokens of a language model")
    log_likelihood: float | None = Field(description="of these, nats each")
    base_log_likelihood: float | None = Field(description="the same of the base alone")
    accuracy: float | None = Field(description="on these rows")
    base_accuracy: float | None
    reason: str | None = Field(description="why this process gave its last fit up")
    failures: int = Field(description="fits that this process gave up")


class EvaluationStatus(BaseModel):
    """How what serves did on the public test rows, when it was last evaluated."""

    metric: str = Field(description="accuracy or perplexity")
    value: float
    base: float | None = Field(description="the same of the base alone; null without a head")
    samples: int = Field(description="test rows")


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
    weights: WeightStatus | None = Field(
        None, description="null unless aggregation.weights is public"
    )
    evaluation: EvaluationStatus | None = Field(
        None, description="null until s3t evaluate has looked at what serves"
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
