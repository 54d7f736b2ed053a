"""``/v1/repair``, ``/v1/purge``, ``/v1/reload``: maintenance of a run while it is served.

    POST /v1/repair ─► a thread ─► S3T.repair, in a process of its own
    GET  /v1/repair ─► state of the latest one

What they do is in ``work.maintenance``.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from s3t.server.http.problems import Problem, refusals
from s3t.server.security.access import AuthorizedRoute, requires_role
from s3t.server.state import service_of
from s3t.server.work.maintenance import RepairState

__all__ = ["router"]

router = APIRouter(route_class=AuthorizedRoute, tags=["operation"])

_REFUSALS = ("unauthenticated", "forbidden", "rate_limited", "internal", "damaged", "unavailable")


class Purged(BaseModel):
    """What a purge removed, and what it could not reach, as `s3t purge --json` prints it."""

    view: int
    nodes: list[str] = Field(description="keys of the dead nodes that were removed")
    stores: list[dict[str, Any]]
    own_files: list[list[str | int]] = Field(
        description="the user's own files that still hold such rows, each with how many"
    )
    out_of_reach: list[str]


@router.post(
    "/v1/repair",
    summary="Train again what deletions switched off",
    status_code=202,
    dependencies=[requires_role("repair")],
    response_model=RepairState,
    responses=refusals("busy", "draining", *_REFUSALS),
)
async def repair(request: Request) -> RepairState:
    """Begins a repair, in a process of its own. The service goes on, and serves new nodes as they
    are published."""
    service = service_of(request)
    if service.draining:
        raise Problem("draining", "the service is about to end", retry_after=5)
    return service.maintenance.start()


@router.get(
    "/v1/repair",
    summary="How the latest repair goes",
    dependencies=[requires_role("repair", "audit")],
    response_model=RepairState,
    responses=refusals(*_REFUSALS),
)
async def repair_state(request: Request) -> RepairState:
    """Only repairs that this process began are known here."""
    return service_of(request).maintenance.state


@router.post(
    "/v1/purge",
    summary="Remove what is dead from the disk",
    dependencies=[requires_role("repair")],
    response_model=Purged,
    responses=refusals("overloaded", "draining", *_REFUSALS),
)
async def purge(request: Request) -> dict[str, Any]:
    """Removes dead nodes, caches, and rows of deleted samples; reports what is out of reach."""
    return await service_of(request).maintenance.purge()


@router.post(
    "/v1/reload",
    summary="Read store, ledger and tokens again",
    status_code=204,
    response_class=Response,
    dependencies=[requires_role("repair")],
    responses=refusals("overloaded", "draining", *_REFUSALS),
)
async def reload(request: Request) -> Response:
    """The same as the signal SIGHUP."""
    service = service_of(request)
    await service.maintenance.reload()
    service.access.reload()
    return Response(status_code=204)
