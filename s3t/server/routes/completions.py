"""``POST /v1/completions``: texts continued, whole or as they grow.

    stream: false   one thread: model.generate ─► Held answer
    stream: true    one thread: next piece ─► hold its view ─► event ─► next piece …
                                                 └ hit meanwhile: that piece is written again
                                                   strict: hold the first one's view instead, and
                                                   end the stream once that is hit

Invariants: a piece leaves only while what wrote it lives, and of a strict stream only while what
wrote any piece of it does; a client that has gone is not written for; no more than ``streams``
completions are under way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from s3t.errors import S3TError
from s3t.server.http.held_response import Held, gone, part, send_whole
from s3t.server.http.problems import Problem, cause_of, problem_of, refusals
from s3t.server.routes.predict import VIEW_HEADER
from s3t.server.schemas import COMPLETION_EVENTS, CompletionRequest, Completions
from s3t.server.security.access import Guarded, needs
from s3t.server.state import Service, service_of

if TYPE_CHECKING:
    from s3t.serving.generation.completion import Completion, Piece

__all__ = ["router"]

Found = TypeVar("Found")

router = APIRouter(route_class=Guarded, tags=["answers"])


@router.post(
    "/v1/completions",
    summary="Continue texts",
    dependencies=[needs("predict")],
    response_model=Completions,
    responses={
        200: {
            "headers": VIEW_HEADER,
            "content": {"text/event-stream": COMPLETION_EVENTS},
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
    if service.model.config.task != "causal-lm":
        raise Problem(
            "wrong_task", f"the run is of task {service.model.config.task}: use /v1/predict"
        )
    prompts = body.prompts
    if body.stream:
        if len(prompts) > 1:
            raise Problem("invalid_body", "prompt: one text can be streamed at a time")
        return Streamed(service, body, prompts[0])
    most = service.config.request_rows
    if len(prompts) > most:
        raise Problem("too_many_rows", f"{len(prompts)} prompts: send up to {most} in one request")

    async def write() -> Sequence[Completion]:
        with service.streams.place():
            call = partial(service.model.generate, prompts, **_draw(body))
            return await _in_time(service, call)

    return Held(service.model, service.metrics, await write(), _content, write)


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


async def _in_time(service: Service, call: Callable[[], Found]) -> Found:
    """What a call gives in a thread, unless it takes longer than a question may."""
    try:
        async with asyncio.timeout(service.config.timeout):
            return await service.streams.threads.run(call)
    except TimeoutError:
        limit = service.config.timeout
        raise Problem("timeout", f"no answer within {limit:g} s", retry_after=limit) from None


class Streamed(Response):
    """Server-sent events: a text as it grows.

    Args:
        service: of the app.
        body: what was asked for.
        prompt: the text to continue, or messages.
    """

    media_type = "text/event-stream"

    def __init__(self, service: Service, body: CompletionRequest, prompt: Any) -> None:
        self._service, self._body, self._prompt = service, body, prompt
        self._told, self._views = list[int](), list[int]()
        self._ended = False
        self._pieces: Iterator[Piece] | None = None
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._service.streams.place():
            left = gone(scope)
            piece = await self._next()  # before the first byte, so that an error has its status
            await send(_START)
            try:
                while piece is not None and not left():
                    if await self._tell(piece, scope, send):
                        piece = await self._next()
                    else:
                        piece = await self._again(piece)
                while not left() and not await self._end(scope, send):
                    await self._check_unhit()
            except (Problem, S3TError) as error:
                if (cause := cause_of(error)) is not None:
                    self._service.causes.tell(cause)
                if not left():
                    last = [part(_event(problem_of(error).body())), part(b"", more=False)]
                    await send_whole(scope, send, last)
            finally:
                self._pieces = None

    async def _next(self) -> Piece | None:
        count = len(self._told)
        if self._ended or count == self._body.max_new_tokens:
            return None
        if self._pieces is None:
            draw = _draw(self._body)
            draw["max_new_tokens"] -= count
            draw["seed"] += count
            begun = tuple(self._told)
            call = partial(self._service.model.stream, self._prompt, begun=begun, **draw)
            self._pieces = await _in_time(self._service, call)
        pieces = self._pieces
        return await _in_time(self._service, lambda: next(pieces, None))

    async def _again(self, piece: Piece) -> Piece | None:
        """The piece after what was told, written by what lives now; of a strict stream the same
        one, if nothing that the text is from has died."""
        if self._body.strict and self._views:
            await self._check_unhit()
            return piece
        self._service.metrics.again.inc()
        self._pieces = None
        return await self._next()

    async def _check_unhit(self) -> None:
        """Raise a problem if something has died that any piece told is from."""
        first = self._views[0]
        if not await _in_time(self._service, lambda: self._service.model.serving.is_sound(first)):
            raise Problem("text_hit", "drop what has come of the text, and ask for it again")

    async def _end(self, scope: Scope, send: Send) -> bool:
        """Say that the text is whole; of a strict stream only if all that it is from lives."""
        last = [
            part(_event({"done": True, "views": self._views})),
            part(b"", more=False),
        ]
        if not self._body.strict or not self._views:
            await send_whole(scope, send, last)
            return True
        with self._service.model.serving.hold(self._views[0]) as good:
            if good:
                await send_whole(scope, send, last)
        return good

    async def _tell(self, piece: Piece, scope: Scope, send: Send) -> bool:
        """Send a piece if what wrote it lives; of a strict stream, what wrote the first one."""
        event = _event({"text": piece.text, "view": piece.view})
        first = self._views[0] if self._body.strict and self._views else piece.view
        with self._service.model.serving.hold(first) as good:
            if good:
                await send_whole(scope, send, [part(event), part(b"")])
        if good:
            self._ended = piece.token is None
            if piece.token is not None:
                self._told.append(piece.token)
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
