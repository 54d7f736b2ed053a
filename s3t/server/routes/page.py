"""The page at ``/`` and its files. They hold no data, so they need no token; the requests that the
page makes for its data do.

Invariant: only the files of ``report.page_files`` are served, looked up by name: no path is built
from a request.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from s3t.server.http.problems import Problem
from s3t.server.report import page_files, policy

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-cache",  # browsers ask each time, and get 304 unless the file changed
    "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def page_file(request: Request, name: str) -> Response:
    """A style, script or picture of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise Problem("not_found", "the page has no such file")
    headers = {**_HEADERS, "ETag": f'"{found.digest}"'}
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)
