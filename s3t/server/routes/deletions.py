"""``/v1/deletions``: request a deletion, ask for its outcome, list deletions.

The schemas are in ``deletions.opendsr``, since jobs and callbacks make them as well.

Invariant: responses name samples by keyed hashes only, and are signed if the run has a key.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, StringConstraints
from starlette.responses import Response

from s3t.server.deletions.opendsr import (
    REQUEST_ID,
    Answer,
    DeletionRequest,
    DryRun,
    Page,
    PageQuery,
)
from s3t.server.http.problems import Problem, refusals
from s3t.server.security.access import AuthorizedRoute, caller_of, requires_role
from s3t.server.state import Service, service_of

__all__ = ["router"]

router = APIRouter(route_class=AuthorizedRoute, tags=["deletions"])

_REFUSALS = ("unauthenticated", "forbidden", "rate_limited", "internal", "damaged")
_SIGNED: dict[str, Any] = {
    "X-OpenDSR-Processor-Domain": {
        "description": "whose signature it is; if the run has a signing key",
        "schema": {"type": "string"},
    },
    "X-OpenDSR-Signature": {
        "description": "Ed25519 over the body, base64; if the run has a signing key",
        "schema": {"type": "string"},
    },
}
_LOCATED: dict[str, Any] = {
    **_SIGNED,
    "Location": {"description": "as `results_url`", "schema": {"type": "string"}},
}
_Key = Annotated[str, StringConstraints(pattern=REQUEST_ID)]


@router.post(
    "/v1/deletions",
    summary="Forget samples and persons",
    status_code=201,
    dependencies=[requires_role("delete")],
    responses={
        200: {"description": "dry run", "model": DryRun, "headers": _SIGNED},
        201: {"description": "done", "model": Answer, "headers": _LOCATED},
        202: {"description": "accepted", "model": Answer, "headers": _LOCATED},
        **refusals(
            *("invalid_json", "unknown_sample", "public_sample", "timeout"),
            *("request_conflict", "body_too_large"),
            *("unsupported_media_type", "invalid_body", "overloaded", "unavailable", "draining"),
            *_REFUSALS,
        ),
    },
)
async def delete(
    request: Request,
    body: DeletionRequest,
    idempotency_key: Annotated[_Key | None, Header()] = None,
) -> Response:
    """201: the deletion is durable, and no replica answers any more from a block that has seen the
    samples. 202: it is accepted and will be done; ask at `results_url`."""
    service = service_of(request)
    if service.draining:
        raise Problem("draining", "the service is about to end: repeat it", retry_after=5)
    names = {name for name in (body.subject_request_id, idempotency_key) if name is not None}
    if len(names) > 1:
        raise Problem("invalid_body", "subject_request_id and Idempotency-Key differ")
    if body.dry_run:
        receipt = await service.deletions.preview(body)
        return _signed(service, 200, DryRun(receipt=receipt))
    controller = caller_of(request).name
    status, answer = await service.deletions.take(body, next(iter(names), None), controller)
    return _signed(service, status, answer, {"Location": answer.results_url})


@router.get(
    "/v1/deletions",
    summary="List deletions",
    dependencies=[requires_role("audit")],
    responses={
        200: {"model": Page, "headers": _SIGNED},
        **refusals("invalid_body", "overloaded", "unavailable", *_REFUSALS),
    },
)
async def deletions(request: Request, asked: Annotated[PageQuery, Query()]) -> Response:
    """Receipts, the latest first."""
    service = service_of(request)
    found, following = await service.deletions.recent(asked.limit, asked.before)
    return _signed(service, 200, Page(deletions=found, next=following))


@router.get(
    "/v1/deletions/{subject_request_id}",
    summary="Outcome of a deletion",
    dependencies=[requires_role("delete", "audit")],
    responses={
        200: {"model": Answer, "headers": _SIGNED},
        **refusals("not_found", "overloaded", "unavailable", *_REFUSALS),
    },
)
async def deletion(request: Request, subject_request_id: str) -> Response:
    """Its status, and its receipt as the ledger holds it."""
    service = service_of(request)
    return _signed(service, 200, await service.deletions.find(subject_request_id))


def _signed(
    service: Service, status: int, answer: BaseModel, headers: dict[str, str] | None = None
) -> Response:
    body = answer.model_dump_json().encode()
    sealed = service.deletions.seal.headers(body)
    return Response(body, status, {**(headers or {}), **sealed}, "application/json")
