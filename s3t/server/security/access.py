"""Who may do what: bearer tokens with roles, before a request's body is read.

    Authorization: Bearer s3t_…  ──►  TokenFile  ──►  role?  ──►  rate?  ──►  route
                        none, wrong: 401        403        429
                 wrong too often from one address: 429

A route names its roles with ``dependencies=[needs("delete")]``. Routers use
``route_class=Guarded``, which judges before the body is read; a route that is not of that class is
judged all the same, only later, so forgetting it opens nothing.

Invariant: without a valid token nothing is told and nothing is changed, unless the service was
started as insecure, which it is only ever on a loopback address. A right token is let in however
many wrong ones come from its address: behind a proxy all callers share one, and a stranger must not
be able to lock them out. 192 random bits cannot be guessed at any rate.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Security
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.responses import Response

from s3t.config.serve import ServeConfig
from s3t.server.http.problems import Problem
from s3t.server.security.bodies import StrictRoute
from s3t.server.security.rates import Buckets, Refusals
from s3t.server.security.tokens import ROLES, Role, TokenFile

__all__ = ["Access", "Caller", "Guarded", "caller_of", "needs"]

_CALLER = "s3t.caller"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request.

    Attributes:
        id: of the token; nothing that could be used.
        name: of whoever the token was made for; None where no token was asked for.
        roles: what the token is good for.
    """

    id: str
    name: str | None
    roles: tuple[Role, ...]


_ANYONE = Caller("insecure", None, ROLES)


class Access:
    """Judges requests.

    Args:
        tokens: those that there are.
        config: rates.
        insecure: everyone may do everything.
    """

    def __init__(self, tokens: TokenFile, config: ServeConfig, insecure: bool = False) -> None:
        self.insecure = insecure
        self._tokens = tokens
        self._refusals = Refusals(config.refusals)
        self._rates = {
            "predict": Buckets(config.predict_rate),
            "delete": Buckets(config.delete_rate),
        }

    def reload(self) -> None:
        """Look at the file of the tokens at the next request."""
        self._tokens.reload()

    def admit(self, request: HTTPConnection, roles: tuple[Role, ...]) -> Caller:
        """The caller of a request that one of the roles is enough for.

        Raises:
            Problem: ``unauthenticated``, ``forbidden`` or ``rate_limited``.
            UnavailableError: the file of the tokens cannot be read.
        """
        if self.insecure:
            return self._local(request)
        caller = self._known(request)
        if not set(roles) & set(caller.roles):
            lacking = f'{_challenge("insufficient_scope")}, scope="{" ".join(roles)}"'
            raise Problem(
                "forbidden",
                f"this takes a token with the role {' or '.join(roles)}",
                headers={"WWW-Authenticate": lacking},
            )
        if len(roles) == 1 and roles[0] in self._rates:
            wait = self._rates[roles[0]].take(caller.id)
            if wait is not None:
                raise Problem(
                    "rate_limited",
                    f"more requests a second than the token may {roles[0]}",
                    retry_after=wait,
                )
        return caller

    def _known(self, request: HTTPConnection) -> Caller:
        given = request.headers.getlist("authorization")
        if not given:
            raise Problem(
                "unauthenticated",
                "send a token in the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": _challenge()},
            )
        scheme, _, text = given[0].partition(" ")
        readable = len(given) == 1 and scheme.lower() == "bearer"
        token = self._tokens.find(text.strip(" ")) if readable else None
        if token is None:
            wait = self._refusals.count(request.client.host if request.client else "")
            if wait is not None:
                raise Problem("rate_limited", "too many wrong tokens", retry_after=wait)
            raise Problem(
                "unauthenticated",
                "the token is wrong, revoked or expired",
                headers={"WWW-Authenticate": _challenge("invalid_token")},
            )
        return Caller(token.id, token.name, token.roles)

    def _local(self, request: HTTPConnection) -> Caller:
        """Anyone on this machine, but not a page of elsewhere whose name was turned to us."""
        host = request.headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() not in _LOOPBACK:
            raise Problem("forbidden", "an insecure service answers to localhost alone")
        return _ANYONE


class Needs(SecurityBase):
    """The dependency behind ``needs``, which also describes the token in the OpenAPI document."""

    def __init__(self, roles: tuple[Role, ...]) -> None:
        self.model = BearerModel(
            description="a token that `s3t token create RUN` makes, with the role that the route "
            "names; what is wrong is told as 401, 403 or 429"
        )
        self.scheme_name = "token"
        self.roles = roles

    async def __call__(self, request: Request) -> Caller:
        """Judge the request, once."""
        return self.admit(request)

    def admit(self, request: HTTPConnection) -> Caller:
        """The caller, if the request may pass."""
        if (caller := request.scope.get(_CALLER)) is None:
            access: Access = request.app.state.access
            caller = access.admit(request, self.roles)
            request.scope[_CALLER] = caller
        assert isinstance(caller, Caller)
        return caller


def needs(*roles: Role) -> Any:
    """What a route puts among its ``dependencies``: one of the roles has to be the caller's.

    A route of the role ``predict`` or ``delete`` alone counts against the token's rate.
    """
    assert roles and set(roles) <= set(ROLES), roles
    return Security(Needs(roles), scopes=list(roles))


def caller_of(request: HTTPConnection) -> Caller:
    """Whoever sent the request, behind ``needs``."""
    caller = request.scope[_CALLER]
    assert isinstance(caller, Caller)
    return caller


class Guarded(StrictRoute):
    """A route whose caller is judged before its body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind what the route needs."""
        handle = super().get_route_handler()
        needed = [one.dependency for one in self.dependencies if isinstance(one.dependency, Needs)]

        async def guarded(request: Request) -> Response:
            for one in needed:
                one.admit(request)
            return await handle(request)

        return guarded


def _challenge(error: str | None = None) -> str:
    return 'Bearer realm="s3t"' + ("" if error is None else f', error="{error}"')
