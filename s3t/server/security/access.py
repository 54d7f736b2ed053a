"""Access control: bearer tokens with roles, checked before a request's body is read.

    Authorization: Bearer s3t_…  ──►  TokenFile  ──►  role?  ──►  rate?  ──►  route
                   none or wrong: 401           403        429
                   too many wrong ones from one address: 429

A route names its roles with ``dependencies=[requires_role("delete")]``. Its router has
``route_class=AuthorizedRoute``, which checks them before the body is read. In a router without that
class they are checked after it, but still before the endpoint is called.

Invariants: a request without a valid token reads and changes nothing, unless the service is
insecure. An insecure service listens on a loopback address only, and refuses requests that web
pages of other sites send through a browser (DNS rebinding, cross-site requests). A valid token is
accepted however many wrong ones come from its address: behind a proxy all clients share one, and a
stranger must not be able to lock them out. A token has 192 random bits and cannot be guessed.
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

from s3t.config.aggregation import ServeConfig
from s3t.server.http.problems import Problem
from s3t.server.security.bodies import StrictRoute
from s3t.server.security.rates import Buckets, Refusals
from s3t.server.security.tokens import ROLES, Role, TokenFile

__all__ = ["AccessControl", "AuthorizedRoute", "Caller", "caller_of", "requires_role"]

_CALLER = "s3t.caller"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        id: id of the token, which does not reveal the token.
        name: name of the token's holder; None in an insecure service.
        roles: the roles of the token.
    """

    id: str
    name: str | None
    roles: tuple[Role, ...]


_ANYONE = Caller("insecure", None, ROLES)


class AccessControl:
    """Checks the token, roles and rate of requests.

    Args:
        tokens: the valid tokens.
        config: limits of rates and of wrong tokens.
        insecure: requests need no token, but have to come from this machine.
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
        """Read the token file again at the next request."""
        self._tokens.reload()

    def admit(self, request: HTTPConnection, roles: tuple[Role, ...]) -> Caller:
        """The caller of a request, who has one of the roles.

        Raises:
            Problem: ``unauthenticated``, ``forbidden`` or ``rate_limited``.
            UnavailableError: the token file cannot be read.
        """
        if self.insecure:
            _check_local(request)
            return _ANYONE
        caller = self._authenticated(request)
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

    def _authenticated(self, request: HTTPConnection) -> Caller:
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


def _check_local(request: HTTPConnection) -> None:
    """Refuse requests that a browser sends for a page of another site.

    With DNS rebinding the page's own host name resolves to this machine, and stands in Host. In a
    cross-site request Host is ours, but Origin names the page's site.

    Raises:
        Problem: ``forbidden``.
    """
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.lower() not in _LOOPBACK:
        raise Problem("forbidden", "an insecure service answers to localhost alone")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise Problem("forbidden", "an insecure service answers no pages of other sites")


class RequiredRole(SecurityBase):
    """The dependency of ``requires_role``. It also describes tokens in the OpenAPI document."""

    def __init__(self, roles: tuple[Role, ...]) -> None:
        self.model = BearerModel(
            description="a token that `s3t token create RUN` makes, with the role that the route "
            "names; what is wrong is told as 401, 403 or 429"
        )
        self.scheme_name = "token"
        self.roles = roles

    async def __call__(self, request: Request) -> Caller:
        """The caller, if the request may pass."""
        return self.admit(request)

    def admit(self, request: HTTPConnection) -> Caller:
        """The caller, if the request may pass. A request is checked once.

        Raises:
            Problem, UnavailableError: see ``AccessControl.admit``.
        """
        if (caller := request.scope.get(_CALLER)) is None:
            access: AccessControl = request.app.state.access
            caller = access.admit(request, self.roles)
            request.scope[_CALLER] = caller
        assert isinstance(caller, Caller)
        return caller


def requires_role(*roles: Role) -> Any:
    """A dependency of a route: the caller's token has to have one of the roles.

    Requests to a route with the single role ``predict`` or ``delete`` count against the token's
    rate.
    """
    assert roles and set(roles) <= set(ROLES), roles
    return Security(RequiredRole(roles), scopes=list(roles))


def caller_of(request: HTTPConnection) -> Caller:
    """Who sent a request, in a route with ``requires_role``."""
    caller = request.scope[_CALLER]
    assert isinstance(caller, Caller)
    return caller


class AuthorizedRoute(StrictRoute):
    """A route whose caller is checked before the body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, called after the route's roles are checked."""
        handle = super().get_route_handler()
        required = [
            one.dependency for one in self.dependencies if isinstance(one.dependency, RequiredRole)
        ]

        async def authorized(request: Request) -> Response:
            for one in required:
                one.admit(request)
            return await handle(request)

        return authorized


def _challenge(error: str | None = None) -> str:
    return 'Bearer realm="s3t"' + ("" if error is None else f', error="{error}"')
