"""Error responses: every error has one shape and a stable code (RFC 9457).

    S3TError    ─┐
    HTTP error  ─┼─► Problem(code, detail) ─► application/problem+json
    wrong body  ─┤      {"type", "title", "status", "code", "detail"}
    unexpected  ─┘

Invariants: a response never holds internals of the service (paths, SQL, stack traces), and a code
never changes its meaning. ``detail`` may hold ids that the client sent, so it is never logged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from s3t.errors import (
    ExhaustedError,
    InputError,
    IntegrityError,
    PublicSampleError,
    RequestConflictError,
    S3TError,
    UnavailableError,
    UnknownSampleError,
    named,
    unavailable,
)

__all__ = [
    "CODES",
    "MEDIA_TYPE",
    "Problem",
    "ProblemBody",
    "Refusal",
    "failure_of",
    "handle_problems",
    "problem_of",
    "refusals",
    "sentences",
]

MEDIA_TYPE = "application/problem+json"


class Refusal(NamedTuple):
    """What a code stands for.

    Attributes:
        status: of HTTP.
        title: a sentence that is the same in every response with the code.
    """

    status: int
    title: str


CODES: Mapping[str, Refusal] = {
    "invalid_json": Refusal(400, "The body is not JSON that can be read"),
    "bad_request": Refusal(400, "The request cannot be read"),
    "unauthenticated": Refusal(401, "A valid token is needed"),
    "forbidden": Refusal(403, "The token lacks the role for this"),
    "not_found": Refusal(404, "There is no such thing"),
    "unknown_sample": Refusal(404, "The run does not hold a sample or subject that was named"),
    "public_sample": Refusal(409, "A sample or subject that was named is public, not forgettable"),
    "method_not_allowed": Refusal(405, "The address does not take this method"),
    "slow_request": Refusal(408, "The request took too long to arrive"),
    "request_conflict": Refusal(409, "The request id stands for another request"),
    "busy": Refusal(409, "Another one is under way"),
    "body_too_large": Refusal(413, "The body is larger than the service takes"),
    "unsupported_media_type": Refusal(415, "The body must be application/json"),
    "invalid_body": Refusal(422, "The body is not what is expected"),
    "too_many_rows": Refusal(422, "More rows than one request may hold"),
    "wrong_task": Refusal(422, "The run is of another task"),
    "rate_limited": Refusal(429, "Too many requests"),
    "headers_too_large": Refusal(431, "The headers are larger than the service takes"),
    "internal": Refusal(500, "The service failed"),
    "damaged": Refusal(500, "A block or record of the run is damaged"),
    "overloaded": Refusal(503, "More is waiting than can be answered in time"),
    "exhausted": Refusal(503, "No block is left that may answer"),
    "unavailable": Refusal(503, "The service cannot answer now"),
    "disk_full": Refusal(503, "There is no room left on a disk of the service"),
    "ledger_locked": Refusal(503, "Another process keeps the ledger locked"),
    "run_gone": Refusal(503, "The run is not where it was"),
    "storage_denied": Refusal(503, "The service may not read or write what it needs"),
    "store_unreachable": Refusal(503, "The store of the blocks cannot be reached"),
    "out_of_files": Refusal(503, "The service has no file descriptor left"),
    "text_hit": Refusal(503, "A deletion hit blocks that wrote a part of the text"),
    "draining": Refusal(503, "The service is about to end"),
    "timeout": Refusal(504, "The answer took too long"),
}
"""Code → its status and title. Codes are never renamed; new ones may be added."""

_UNAVAILABLE: Mapping[str, tuple[str, float]] = {
    "unavailable": (
        "the service cannot reach its ledger, and gives no answer rather than an outdated one: "
        "repeat the request",
        1,
    ),
    "disk_full": ("nothing was changed: repeat the request once there is room", 30),
    "ledger_locked": ("nothing was changed: repeat the request", 5),
    "run_gone": ("nothing was changed: repeat the request once the run is back", 30),
    "storage_denied": ("nothing was changed: repeat it once the service has its rights again", 30),
    "store_unreachable": ("nothing was changed: repeat the request", 5),
    "out_of_files": ("nothing was changed: repeat the request", 5),
    "text_hit": ("drop what has come of the text, and ask for it again", 1),
}
"""Code of an ``UnavailableError`` → ``detail`` and ``Retry-After`` in seconds."""


class Problem(Exception):
    """An error response, raised by routes and by what they call.

    Args:
        code: one of ``CODES``.
        detail: a sentence for the client.
        retry_after: seconds after which the client may repeat the request.
        headers: more headers of the response.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code)  # not the detail: it may hold ids, and errors end up in logs
        self.code, self.detail = code, detail
        self.status, self.title = CODES[code]
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self, instance: str | None = None) -> dict[str, Any]:
        """The response's body as JSON values.

        Args:
            instance: name of the log entry with more about this error.
        """
        body = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        return body if instance is None else body | {"instance": instance}

    def response(self, instance: str | None = None) -> Response:
        """The HTTP response.

        Args:
            instance: name of the log entry with more about this error.
        """
        content = json.dumps(self.body(instance), ensure_ascii=True).encode()
        return Response(content, self.status, self.headers, MEDIA_TYPE)


class ProblemBody(BaseModel):
    """Every error of the service has this shape (RFC 9457)."""

    type: str = Field("about:blank", description="always about:blank: see `code`")
    title: str = Field(description="what the code means")
    status: int = Field(description="the status of the answer")
    code: str = Field(description="stable, to be handled by programs")
    detail: str = Field(description="what is wrong with this request")
    instance: str | None = Field(
        None, description="name of the log entry with more about this error"
    )


def problem_of(error: Exception) -> Problem:
    """The error response to an exception; ``internal`` for an unexpected one."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PublicSampleError):
        return Problem("public_sample", str(error))
    if isinstance(error, UnknownSampleError):
        parts = [
            f"{what} {named(ids)}"
            for what, ids in (("sample ids", error.sample_ids), ("subjects", error.subjects))
            if ids
        ]
        return Problem("unknown_sample", f"unknown {' and '.join(parts)}: nothing was deleted")
    if isinstance(error, OSError):
        error = unavailable(error) or error
    if isinstance(error, UnavailableError):
        advice, wait = _UNAVAILABLE[error.code]
        return Problem(error.code, advice, retry_after=wait)
    for kind, code, detail, retry_after in _ERRORS:
        if isinstance(error, kind):
            return Problem(code, detail or str(error), retry_after=retry_after)
    return Problem("internal", "the service failed; its operator finds the reason in its log")


def failure_of(error: Exception) -> S3TError | None:
    """The failure of the service behind an exception, whose message ``logs.FailureLog`` logs. None
    for errors of the client, and for errors whose message may hold an id."""
    known = unavailable(error) if isinstance(error, OSError) else error
    return known if isinstance(known, _OF_SERVICE) else None


_ERRORS: tuple[tuple[type[S3TError], str, str | None, float | None], ...] = (
    (RequestConflictError, "request_conflict", None, None),
    (InputError, "invalid_body", None, None),
    (
        ExhaustedError,
        "exhausted",
        "deletions have switched off the last block; answers come again after a repair",
        60,
    ),
    (
        IntegrityError,
        "damaged",
        "the operator of the service finds in its log what is damaged",
        None,
    ),
)
"""Type, code, detail (None: the error's own message, about the request), seconds of Retry-After."""

_OF_SERVICE = (ExhaustedError, IntegrityError, UnavailableError)


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route that may answer with these codes, for the OpenAPI document.

    ``unavailable`` adds the codes of all ``UnavailableError``s, but ``text_hit``.
    """
    found: dict[int | str, dict[str, Any]] = {}
    if "unavailable" in codes:
        codes = (*codes, *(one for one in _UNAVAILABLE if one not in (*codes, "text_hit")))
    for code in codes:
        status, title = CODES[code]
        entry = found.setdefault(status, {"description": "", "content": {MEDIA_TYPE: {}}})
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{code}`: {title}"]))
        media = entry["content"][MEDIA_TYPE]
        media["schema"] = {"$ref": "#/components/schemas/Problem"}
        example = Problem(code, "what is wrong with this request").body()
        media.setdefault("examples", {})[code] = {"value": example}
        if status in (429, 503):
            description = "seconds after which to repeat the request"
            entry["headers"] = {
                "Retry-After": {"description": description, "schema": {"type": "integer"}}
            }
    return found


def handle_problems(app: FastAPI) -> None:
    """Register handlers that turn every exception of a route and of FastAPI into a ``Problem``."""

    async def refuse(request: Request, error: Exception) -> Response:
        failure = failure_of(error)
        if failure is not None:
            request.app.state.service.failures.report(failure)
        elif isinstance(error, S3TError) and not isinstance(error, InputError):
            raise error  # unexpected: the middleware logs its type and stack
        return problem_of(error).response()

    async def refuse_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _http_problem(error).response()

    async def refuse_body(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Problem("invalid_body", sentences(error.errors())).response()

    app.add_exception_handler(Problem, refuse)
    app.add_exception_handler(S3TError, refuse)
    app.add_exception_handler(HTTPException, refuse_http)
    app.add_exception_handler(RequestValidationError, refuse_body)


def _http_problem(error: HTTPException) -> Problem:
    """FastAPI's own errors: unknown address, wrong method, unreadable body."""
    if isinstance(error.__cause__, Problem):
        return error.__cause__  # ours, raised while FastAPI read the body
    codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
    code = codes.get(error.status_code, "bad_request")
    detail = {
        "not_found": "there is nothing at this address; /openapi.json lists those that there are",
        "method_not_allowed": "the address takes other methods; /openapi.json lists them",
    }.get(code, "the request cannot be read")
    return Problem(code, detail, headers=error.headers)


def sentences(errors: Sequence[Any]) -> str:
    """Where a body is wrong, and why, in up to ten sentences; without the values, which may be long
    or private.

    Args:
        errors: ``ValidationError.errors()`` of pydantic.
    """
    found = [
        f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"[:300]
        for error in errors[:10]
    ]
    rest = len(errors) - 10
    return "; ".join(found) + (f"; and {rest} more" if rest > 0 else "")
