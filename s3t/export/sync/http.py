"""An HTTP client of an engine: JSON, with a limit of time and a few tries.

Invariant: a request that could not be made is an ``UnavailableError``; one that was refused is an
``EngineError`` with the engine's own words. The key is sent in a header alone and never part of a
message. Redirects are not followed and proxies not used, so that the key goes to the engine alone.

Why the standard library: a deadline for all tries together, a limit of an answer's size and the
wording of errors are needed with any client, and are most of this file.
"""

from __future__ import annotations

import http.client
import json
import math
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from s3t.errors import InputError, S3TError, UnavailableError

__all__ = ["EngineClient", "EngineError", "Reply"]

_TRIES = 3
"""Of a request that could not be made; the engine's refusals are final."""

_PAUSE = 0.5
"""Seconds before the second try, doubled for each one after it."""

_BUSY = (429, 502, 503, 504)
_MOST = 64 * 2**20
"""Bytes of an answer."""


class EngineError(S3TError):
    """An engine refused what it was asked.

    Attributes:
        status: of its answer.
        message: its own words.
    """

    def __init__(self, what: str, status: int, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(f"{what}: the engine answered {status} ({message})")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, and its body as JSON values, or as text."""

    status: int
    body: Any

    @property
    def message(self) -> str:
        """What the engine says, in short."""
        found: object = ""
        body = self.body
        if isinstance(body, dict):
            error = body.get("error")
            inner = error.get("message") if isinstance(error, dict) else error
            found = inner or body.get("message") or body.get("error_message") or body.get("detail")
        return " ".join(str(found or body).split())[:300]

    @property
    def names_error(self) -> bool:
        """Whether the engine itself has answered, and not merely a server without that route."""
        return isinstance(self.body, dict) and self.body != {"detail": "Not Found"}


class EngineClient:
    """Makes requests of an engine.

    Args:
        url: ``http(s)://host[:port]``; a path before the engine's own routes is kept.
        key: sent as a bearer token.
        timeout: seconds for each try.

    Attributes:
        url: where it is.
        timeout: as given.

    Raises:
        InputError: a URL that is none.
    """

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InputError(f"{url!r} is no URL: give http://HOST:PORT") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{url!r} is no URL of an engine: give http://HOST:PORT")
        if parts.username is not None or parts.query or parts.fragment:
            raise InputError(
                "the URL of an engine holds no user, query or fragment: a key goes into a file, "
                "--api-key-file"
            )
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        # many give the root of an OpenAI-compatible API
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self._headers = {"Content-Type": "application/json", "User-Agent": "s3t"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str, until: float = math.inf) -> Reply:
        """GET.

        Args:
            path: of the route, such as ``/v1/models``.
            until: when to give up (``time.monotonic``).

        Raises:
            UnavailableError: no try was answered, or all with "busy".
        """
        return self._asked("GET", path, None, until)

    def post(self, path: str, body: dict[str, Any], until: float = math.inf) -> Reply:
        """POST of JSON values; all else as ``get``."""
        return self._asked("POST", path, json.dumps(body).encode(), until)

    def _asked(self, method: str, path: str, body: bytes | None, until: float) -> Reply:
        pause, why = _PAUSE, "it is past the time"
        for left in reversed(range(_TRIES)):
            if (seconds := until - time.monotonic()) <= 0:
                break
            try:
                reply = self._once(method, path, body, min(seconds, self.timeout))
                if reply.status not in _BUSY:
                    return reply
                why = f"status {reply.status} ({reply.message})"
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if left:
                time.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause *= 2
        raise UnavailableError(f"the engine at {self.url} cannot be reached ({path}: {why})")

    def _once(self, method: str, path: str, body: bytes | None, seconds: float) -> Reply:
        if self._secure:
            trust = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=seconds, context=trust
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            content = response.read(_MOST)
            try:
                return Reply(response.status, json.loads(content))
            except ValueError:
                return Reply(response.status, content.decode(errors="replace"))
        finally:
            connection.close()
