"""The process: a socket, the app behind it, and what signals do.

    TERM, INT   not ready ─► no new connection ─► what is under way ends, within ``drain`` ─► exit
    HUP         tokens, plan and nodes are looked at again; questions go on

    of ulimit -n   what is open at the start, and what ledger, store and models take ─► ours
                   the rest                                                          ─► connections

Invariant: a client that was let in gets its answer before the process ends, unless ``drain`` is
over first; an insecure service is bound to a loopback address or not at all.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from s3t.config.aggregation import ServeConfig
from s3t.errors import InputError, S3TError
from s3t.server.app import create_app
from s3t.server.http.connection import line_of
from s3t.server.http.connections import Connections
from s3t.server.state import Service

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["check_address", "serve"]

_log = logging.getLogger(__name__)

_BATCH = 1
"""Connections that are accepted at one go: what one of them has sent is read before many others
come, so that those that sent nothing are the ones to leave."""
_COMING = 8
"""Connections that are coming or going, and in no place."""
_BACKLOG = 2048
"""Connections that the system holds for us until then."""
_OWN = 192
"""File descriptors that ledger, store and reports may take, where there are plenty."""
_FEWEST = 8
"""Connections with which a service makes sense."""
_IDLE = 75
"""Seconds after which a connection that asks nothing is closed: longer than proxies keep theirs."""


def serve(
    model: S3T,
    config: ServeConfig,
    *,
    insecure: bool = False,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model until the process is told to end.

    Args:
        model: loaded, and joined as a replica; the caller closes it.
        config: address, limits and waits.
        insecure: requests need no token.
        on_start: called with the URL once questions are answered.

    Raises:
        InputError: the address cannot be bound, or is not a loopback one but insecure.
    """
    check_address(config, insecure)
    listener = _bound(config)
    with listener:
        config = config.model_copy(update={"connections": _places(config)})
        _serve(listener, model, config, insecure, on_start)


def _serve(
    listener: socket.socket,
    model: S3T,
    config: ServeConfig,
    insecure: bool,
    on_start: Callable[[str], None],
) -> None:
    app = create_app(model, config, insecure=insecure)
    service: Service = app.state.service
    room = Connections(
        config.connections, config.address_connections, config.trusted_proxies, service.metrics
    )
    settings = uvicorn.Config(
        app,
        http=line_of(config.head_timeout, config.timeout, room),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # an address that a client may name itself is worth nothing
        server_header=False,
        backlog=_BATCH,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=max(1, round(config.drain)),
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    # What is loaded by now stays. Left to the collector, it would be looked through again and again
    # while a body is read: a second for one of 1 MiB that holds many lists, a twentieth without.
    gc.collect()
    gc.freeze()
    _Server(settings, app, lambda: on_start(url)).run(sockets=[listener])


def _places(config: ServeConfig) -> int:
    """How many connections there may be, as the limit of open files allows.

    Raises:
        InputError: too few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # as far as we may without asking; many systems begin with 1024
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return config.connections
    spare = soft - len(os.listdir("/dev/fd"))
    places = spare - min(_OWN, spare // 2) - _COMING
    if places < _FEWEST:
        raise InputError(
            f"ulimit -n {soft} leaves room for {max(0, places)} connections: raise it to "
            f"{soft + 2 * (_FEWEST - places)} at the least"
        )
    if places < config.connections:
        _log.warning(
            "ulimit -n %d: %d connections at once, not serve.connections=%d",
            soft,
            places,
            config.connections,
        )
    return min(places, config.connections)


class _Server(uvicorn.Server):
    """uvicorn's server, with signals of ours."""

    def __init__(self, settings: uvicorn.Config, app: FastAPI, begun: Callable[[], None]) -> None:
        super().__init__(settings)
        self._service: Service = app.state.service
        self._begun = begun
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio accepts as many at one go as it was told to hold
        self._begun()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours instead of uvicorn's, which would end the process by the signal, not with 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        _log.info("told to end: finishing what is under way")
        self._service.draining = True
        self.should_exit = True

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._look_anew())

    async def _look_anew(self) -> None:
        for reload in (*self._service.reloads, self._service.model.serving.reload):
            try:
                await asyncio.to_thread(reload)
            except S3TError as error:
                _log.error("reload: %s", type(error).__name__, exc_info=error)
        _log.info("looked at tokens, plan and nodes anew")


def check_address(config: ServeConfig, insecure: bool) -> None:
    """Refuse an address that cannot be served, before a model is loaded for it.

    Raises:
        InputError: it does not exist, or is not a loopback one but insecure.
    """
    _, address = _resolved(config)
    if insecure and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"--insecure lets anybody delete, so it takes a loopback address, and {config.host} is "
            "none: leave it out and make tokens with s3t token create, or use --host 127.0.0.1"
        )


def _resolved(config: ServeConfig) -> tuple[int, Any]:
    """The family, and the address as the family has it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"serve.host {config.host!r} has no address ({error.strerror})") from None
    return family, address


def _bound(config: ServeConfig) -> socket.socket:
    """A listening socket."""
    family, address = _resolved(config)
    # the protocol is named since asyncio sends small answers at once only where it is
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"{config.host} port {config.port} cannot be bound ({error.strerror}): give another "
            "serve.port"
        ) from None
    return listener
