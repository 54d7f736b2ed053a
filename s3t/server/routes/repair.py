"""What is done to a run while it serves: repair it, purge it, look at it anew.

    POST /v1/repair ─► one thread ─► S3T.repair, in a process of its own
    GET  /v1/repair ─► how it goes

Invariant: one repair at a time; nothing of how it is launched comes from the network.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from s3t.server.deletions.jobs import moment
from s3t.server.http.problems import Problem, problem_of, refusals
from s3t.server.model import service_of
from s3t.server.security.access import Guarded, needs
from s3t.server.work.threads import Lane

if TYPE_CHECKING:
    from s3t.server.model import Model

__all__ = ["Repairs", "router"]

_log = logging.getLogger(__name__)

router = APIRouter(route_class=Guarded, tags=["operation"])

_REFUSALS = ("unauthenticated", "forbidden", "rate_limited", "internal", "damaged", "unavailable")


@dataclass(frozen=True, slots=True)
class State:
    """How the latest repair of this process goes.

    Attributes:
        state: ``none`` if there was none.
        started, ended: ISO 8601 in UTC.
        report: of the training, where it is done.
        problem: what it failed with.
    """

    state: Literal["none", "running", "done", "failed"] = "none"
    started: str | None = None
    ended: str | None = None
    report: dict[str, Any] | None = None
    problem: Problem | None = None


class Repairs:
    """Repairs, purges and reloads, one of each at a time.

    Args:
        model: what is repaired.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._state = State()
        self._lane = Lane("purges and reloads", 1, 2)

    @property
    def state(self) -> State:
        """How the latest repair goes."""
        return self._state

    def start(self) -> State:
        """Begin one.

        Raises:
            Problem: ``busy``.
        """
        with self._lock:
            if self._state.state == "running":
                raise Problem("busy", "a repair is under way: GET /v1/repair tells how it goes")
            self._state = State("running", moment(datetime.now(UTC)))
        # a daemon: the repair is a process of its own, and goes on where it was if it is killed
        threading.Thread(target=self._run, name="s3t-repair", daemon=True).start()
        return self._state

    async def purge(self) -> dict[str, Any]:
        """Remove what is dead from the disk."""
        found: dict[str, Any] = await self._lane.run(lambda: self._model.purge().to_dict())
        # why a file cannot be read may name its rows
        own = [[name.partition(" (cannot be read")[0], rows] for name, rows in found["own_files"]]
        return {**found, "own_files": own}

    async def reload(self) -> None:
        """Look at the store and the ledger anew."""
        await self._lane.run(self._model.reload)

    def close(self) -> None:
        """Wait for a purge or reload under way."""
        self._lane.close()

    def _run(self) -> None:
        try:
            report = self._model.repair()
        except Exception as error:
            # the kind alone: a message about data may name their rows
            _log.error("the repair failed: %s; s3t repair RUN tells why", type(error).__name__)
            ended = replace(self._state, state="failed", problem=problem_of(error))
        else:
            ended = replace(self._state, state="done", report=report)
        self._state = replace(ended, ended=moment(datetime.now(UTC)))


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
    return _told(service.repairs.start())


@router.get(
    "/v1/repair",
    summary="How the latest repair goes",
    dependencies=[needs("repair", "audit")],
    response_model=RepairState,
    responses=refusals(*_REFUSALS),
)
async def repair_state(request: Request) -> RepairState:
    """Of those that this process began."""
    return _told(service_of(request).repairs.state)


@router.post(
    "/v1/purge",
    summary="Remove what is dead from the disk",
    dependencies=[needs("repair")],
    response_model=Purged,
    responses=refusals("overloaded", "draining", *_REFUSALS),
)
async def purge(request: Request) -> dict[str, Any]:
    """Removes dead nodes, caches, and rows of deleted samples; reports what is out of reach."""
    return await service_of(request).repairs.purge()


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
    await service.repairs.reload()
    for one in service.reloads:
        one()
    return Response(status_code=204)


def _told(state: State) -> RepairState:
    problem = state.problem
    return RepairState(
        state=state.state,
        started=state.started,
        ended=state.ended,
        report=state.report,
        problem=None if problem is None else Failure(code=problem.code, title=problem.title),
    )
