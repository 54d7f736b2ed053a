"""What is done to a run while it serves: repair it, purge it, look at it anew.

    POST /v1/repair ─► one thread ─► S3T.repair, in a process of its own
    GET  /v1/repair ─► how it goes

Invariant: one repair at a time; nothing of how it is launched comes from the network.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from s3t.server.http.problems import Problem, refusals
from s3t.server.security.access import Guarded, needs
from s3t.server.state import service_of
from s3t.server.work.maintenance import RepairProgress

__all__ = ["router"]

router = APIRouter(route_class=Guarded, tags=["operation"])

_REFUSALS = ("unauthenticated", "forbidden", "rate_limited", "internal", "damaged", "unavailable")


class Failure(BaseModel):
    """Why a repair failed."""

    code: str = Field(description="as errors have it")
    title: str


class RepairState(BaseModel):
    """How the latest repair that this process began goes."""

    state: Literal["none", "running", "done", "failed"]
    started: str | None = None
    ended: str | None = None
    report: dict[str, Any] | None = Field(None, description="as `s3t repair --json` prints it")
    problem: Failure | None = None


class Purged(BaseModel):
    """What a purge removed, and what it could not reach, as `s3t purge --json` prints it."""

    view: int
    nodes: list[str] = Field(description="keys of the dead nodes that were there")
    stores: list[dict[str, Any]]
    own_files: list[list[str | int]] = Field(
        description="the user's own files that still hold such rows, each with how many"
    )
    out_of_reach: list[str]


@router.post(
    "/v1/repair",
    summary="Train anew what deletions took",
    status_code=202,
    dependencies=[needs("repair")],
    response_model=RepairState,
    responses=refusals("busy", "draining", *_REFUSALS),
)
async def repair(request: Request) -> RepairState:
    """Begins one, in a process of its own; the service goes on, and takes new nodes up as they
    come."""
    service = service_of(request)
    if service.draining:
        raise Problem("draining", "the service is about to end", retry_after=5)
    return _told(service.maintenance.start())


@router.get(
    "/v1/repair",
    summary="How the latest repair goes",
    dependencies=[needs("repair", "audit")],
    response_model=RepairState,
    responses=refusals(*_REFUSALS),
)
async def repair_state(request: Request) -> RepairState:
    """Of those that this process began."""
    return _told(service_of(request).maintenance.state)


@router.post(
    "/v1/purge",
    summary="Remove what is dead from the disk",
    dependencies=[needs("repair")],
    response_model=Purged,
    responses=refusals("overloaded", "draining", *_REFUSALS),
)
async def purge(request: Request) -> dict[str, Any]:
    """Removes dead nodes, caches, and rows of deleted samples; reports what is out of reach."""
    return await service_of(request).maintenance.purge()


@router.post(
    "/v1/reload",
    summary="Look at store, ledger and tokens anew",
    status_code=204,
    response_class=Response,
    dependencies=[needs("repair")],
    responses=refusals("overloaded", "draining", *_REFUSALS),
)
async def reload(request: Request) -> Response:
    """What SIGHUP does."""
    service = service_of(request)
    await service.maintenance.reload()
    for one in service.reloads:
        one()
    return Response(status_code=204)


def _told(state: RepairProgress) -> RepairState:
    problem = state.problem
    return RepairState(
        state=state.state,
        started=state.started,
        ended=state.ended,
        report=state.report,
        problem=None if problem is None else Failure(code=problem.code, title=problem.title),
    )
