"""``POST /v1/completions``: continues texts, sent whole or as a stream of pieces.

    stream: false   a thread: S3T.generate ─► HeldResponse
    stream: true    a thread: next piece ─► hold its view ─► event ─► next piece …
                                               └ a deletion hit that view: compute the piece again
                                                 strict: hold the view of the first piece instead,
                                                 and end the stream once a deletion hits it

Invariants: a piece is sent only while no deletion has hit the blocks that computed it; in a strict
stream, while none has hit the blocks of any piece before either. Nothing is computed for a client
that has disconnected. At most ``serve.streams`` completions are under way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from s3t.errors import S3TError
from s3t.server.http.held_response import (
    VIEW,
    VIEW_HEADER,
    HeldResponse,
    body_part,
    gone,
    send_whole,
)
from s3t.server.http.problems import Problem, failure_of, problem_of, refusals
from s3t.server.security.access import AuthorizedRoute, requires_role
from s3t.server.security.bodies import StrictBody
from s3t.server.state import Service, service_of

if TYPE_CHECKING:
    from s3t.serving.generation.completion import Completion, Piece

__all__ = ["router"]

Result = TypeVar("Result")

router = APIRouter(route_class=AuthorizedRoute, tags=["answers"])

_Text = Annotated[str, StringConstraints(min_length=1)]


class Message(StrictBody):
    """One turn of a conversation."""

    role: _Text = Field(description="such as `user`; what the run's chat template knows")
    content: _Text


class CompletionRequest(StrictBody):
    """Texts to continue, or a conversation to answer."""

    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    ) = Field(
        description="one text or several; or the messages of one conversation, where the run has "
        "a chat template; one if it is streamed"
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = Field(
        32, description="at most; prompt and answer have to fit the run's `data.max_length`"
    )
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = Field(
        0.0, description="0 takes the likeliest token, above it tokens are drawn"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of the draws")
    top_k: Annotated[int, Field(ge=0, le=2**31)] = Field(
        0, description="draw among the likeliest so many alone; 0 for all"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="draw among the likeliest that are that likely together"
    )
    stream: bool = Field(False, description="send each piece as it comes, as server-sent events")
    strict: bool = Field(
        False,
        description="of a stream: end it with the code `text_hit` as soon as a deletion hits what "
        "any of its pieces came from; a text that is sent whole never outlives such a deletion",
    )

    @property
    def prompts(self) -> list[Any]:
        """As ``S3T.generate`` takes them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [one for one in self.prompt if isinstance(one, str)]
        return texts or [[one.model_dump() for one in self.prompt if isinstance(one, Message)]]


class CompletedText(BaseModel):
    """One continued text."""

    text: str = Field(description="without its prompt")


class Completions(BaseModel):
    """Continued texts, in the order in which the prompts were sent."""

    completions: list[CompletedText]
    view: int = Field(description=VIEW)


_EVENTS: dict[str, Any] = {
    "schema": {"type": "string"},
    "example": 'data: {"text": " and", "view": 3}\n\n'
    'data: {"text": " on", "view": 4}\n\ndata: {"done": true, "views": [3, 4]}\n\n',
}
"""The response to ``stream: true``: an event for each token, then one with ``done`` or an error."""


@router.post(
    "/v1/completions",
    summary="Continue texts",
    dependencies=[requires_role("predict")],
    response_model=Completions,
    responses={
        200: {
            "headers": VIEW_HEADER,
            "content": {"text/event-stream": _EVENTS},
            "description": "the texts; with `stream` an event for each token, each from what "
            "lives at that moment, and a last one with `done` or with an error's `code`",
        },
        **refusals(
            *("invalid_json", "unauthenticated", "forbidden", "body_too_large"),
            *("unsupported_media_type", "invalid_body", "too_many_rows", "wrong_task"),
            *("rate_limited", "internal", "damaged", "overloaded", "exhausted", "unavailable"),
            "timeout",
        ),
    },
)
async def complete(request: Request, body: CompletionRequest) -> Response:
    """Continue one text or several with a language model, or answer a conversation."""
    service = service_of(request)
    if not service.model.config.generates:
        raise Problem(
            "wrong_task", f"the run is of task {service.model.config.task}: use /v1/predict"
        )
    prompts = body.prompts
    if body.stream:
        if len(prompts) > 1:
            raise Problem("invalid_body", "prompt: one text can be streamed at a time")
        return StreamedResponse(service, body, prompts[0])
    most = service.config.request_rows
    if len(prompts) > most:
        raise Problem("too_many_rows", f"{len(prompts)} prompts: send up to {most} in one request")

    async def write() -> Sequence[Completion]:
        with service.streams.admit():
            call = partial(service.model.generate, prompts, **_draw(body))
            return await _in_time(service, call)

    return HeldResponse(service.model, service.metrics, await write(), _content, write)


def _draw(body: CompletionRequest) -> dict[str, Any]:
    return {
        "max_new_tokens": body.max_new_tokens,
        "temperature": body.temperature,
        "seed": body.seed,
        "top_k": body.top_k,
        "top_p": body.top_p,
    }


def _content(texts: Sequence[Completion]) -> dict[str, Any]:
    return {"completions": [{"text": text.completion} for text in texts], "view": texts[0].view}


async def _in_time(service: Service, call: Callable[[], Result]) -> Result:
    """The call's result, computed in a thread.

    Raises:
        Problem: ``timeout`` after ``serve.timeout`` s; ``overloaded`` or ``draining``.
    """
    try:
        async with asyncio.timeout(service.config.timeout):
            return await service.streams.run(call)
    except TimeoutError:
        limit = service.config.timeout
        raise Problem("timeout", f"no answer within {limit:g} s", retry_after=limit) from None


class StreamedResponse(Response):
    """Server-sent events: a text in pieces, each sent as soon as it is computed.

    Args:
        service: the shared objects of the app.
        body: the request.
        prompt: the text to continue, or the messages to answer.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, body: CompletionRequest, prompt: Any) -> None:
        self._service, self._body, self._prompt = service, body, prompt
        self._sent, self._views = list[int](), list[int]()  # token ids; views of pieces
        self._ended = False
        self._pieces: Iterator[Piece] | None = None
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._service.streams.admit():
            left = gone(scope)
            piece = await self._next()  # before the first byte, so that an error sets the status
            await send(_START)
            try:
                while piece is not None and not left():
                    if await self._send(piece, scope, send):
                        piece = await self._next()
                    else:
                        piece = await self._again(piece)
                while not left() and not await self._end(scope, send):
                    await self._check_unhit()
            except (Problem, S3TError) as error:
                if (failure := failure_of(error)) is not None:
                    self._service.failures.report(failure)
                if not left():
                    last = [body_part(_event(problem_of(error).body())), body_part(b"", more=False)]
                    await send_whole(scope, send, last)
            finally:
                self._pieces = None

    async def _next(self) -> Piece | None:
        """The next piece; None after the last one."""
        count = len(self._sent)
        if self._ended or count == self._body.max_new_tokens:
            return None
        if self._pieces is None:
            draw = _draw(self._body)
            draw["max_new_tokens"] -= count
            draw["seed"] += count
            begun = tuple(self._sent)
            call = partial(self._service.model.stream, self._prompt, begun=begun, **draw)
            self._pieces = await _in_time(self._service, call)
        pieces = self._pieces
        return await _in_time(self._service, lambda: next(pieces, None))

    async def _again(self, piece: Piece) -> Piece | None:
        """The piece to send instead of one whose view a deletion has hit, computed by the blocks
        that are left. In a strict stream the same piece, if none of the text's blocks was hit."""
        if self._body.strict and self._views:
            await self._check_unhit()
            return piece
        self._service.metrics.again.inc()
        self._pieces = None
        return await self._next()

    async def _check_unhit(self) -> None:
        """Raise ``text_hit`` if a deletion has hit a block that computed a piece of the text."""
        first = self._views[0]
        if not await _in_time(self._service, lambda: self._service.model.serving.is_sound(first)):
            raise Problem("text_hit", "drop what has come of the text, and ask for it again")

    async def _end(self, scope: Scope, send: Send) -> bool:
        """Send the last event; in a strict stream only if no block of the text was hit. Returns
        whether it was sent."""
        last = [
            body_part(_event({"done": True, "views": self._views})),
            body_part(b"", more=False),
        ]
        if not self._body.strict or not self._views:
            await send_whole(scope, send, last)
            return True
        with self._service.model.serving.hold(self._views[0]) as good:
            if good:
                await send_whole(scope, send, last)
        return good

    async def _send(self, piece: Piece, scope: Scope, send: Send) -> bool:
        """Send a piece if its view may still be served; in a strict stream, if that of the first
        piece may. Returns whether it was sent."""
        event = _event({"text": piece.text, "view": piece.view})
        first = self._views[0] if self._body.strict and self._views else piece.view
        with self._service.model.serving.hold(first) as good:
            if good:
                await send_whole(scope, send, [body_part(event), body_part(b"")])
        if good:
            self._ended = piece.token is None
            if piece.token is not None:
                self._sent.append(piece.token)
            if piece.view not in self._views:
                self._views.append(piece.view)
        return good


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")],
}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
