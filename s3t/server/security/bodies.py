"""Strict reading of request bodies: JSON that two programs could read in two ways is refused.

Invariant: a route gets JSON in valid UTF-8, without NaN or infinities, without a key twice in one
object, and not nested too deeply. ``StrictRoute`` reads the bodies of FastAPI's routes in this way:
use it as the ``route_class`` of a router.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from s3t.server.http.problems import Problem

__all__ = ["DirectRoute", "StrictBody", "StrictRoute", "check_json", "loads"]

_LARGE = 2**16
"""Bytes of a body above which it is parsed in a thread."""
_KEYS = 1000
"""Keys that one object may have: pydantic makes an error message for each unknown one."""


class StrictBody(BaseModel):
    """Base of schemas of request bodies: unknown keys are refused, no type is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


def loads(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        Problem: ``invalid_json``.
    """
    try:
        return json.loads(
            body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_one_of_each
        )
    except UnicodeDecodeError as error:
        raise Problem("invalid_json", f"byte {error.start} is not valid UTF-8") from None
    except RecursionError:
        raise Problem("invalid_json", "it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Problem("invalid_json", f"{error.msg} at character {error.pos}") from None
    except ValueError as error:  # ours below, and numbers of thousands of digits
        what = error.args[0] if isinstance(error, _Ambiguous) else "a number has too many digits"
        raise Problem("invalid_json", str(what)) from None


def check_json(request: Request) -> None:
    """Check that the header Content-Type says JSON.

    Raises:
        Problem: ``unsupported_media_type``.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise Problem("unsupported_media_type", "send JSON, and say so: application/json")


class StrictRoute(APIRoute):
    """A route whose JSON body is parsed by ``loads``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given a request that parses its body strictly."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            if await request.body():
                check_json(request)
            return await handler(_StrictRequest(request.scope, request.receive, _body(request)))

        return strict


class DirectRoute(APIRoute):
    """A route whose endpoint gets the request alone and reads the body itself. FastAPI only
    describes it: its own handling would take a quarter of the time of all other HTTP work."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint, without FastAPI's handling of parameters."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class _StrictRequest(Request):
    def __init__(self, scope: Any, receive: Any, body: bytes | None) -> None:
        super().__init__(scope, receive)
        if body is not None:
            self._body = body

    async def json(self) -> Any:
        body = await self.body()
        # a large one takes tenths of a second, which would block the event loop
        return await asyncio.to_thread(loads, body) if len(body) > _LARGE else loads(body)


def _body(request: Request) -> bytes | None:
    """The body, if it has been read."""
    return getattr(request, "_body", None)


class _Ambiguous(ValueError):
    """JSON that can be read in more than one way, or has too many keys."""


def _refuse(name: str) -> NoReturn:
    raise _Ambiguous(f"{name} is not a number")


def _one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _KEYS:
        raise _Ambiguous(f"an object has more than {_KEYS:,} keys")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Ambiguous("a key stands twice in one object")
    return found
