"""The server process: its socket, the app behind it, signals, and the limit of open files.

    TERM, INT   not ready ─► no new connection ─► requests under way end within ``drain`` s ─► exit
    HUP         tokens, plan and nodes are read again; requests go on

    ulimit -n   files that are open at the start, and some for ledger, store and models
                the rest: connections

Invariants: a request that was accepted is answered before the process ends, unless ``drain`` is
over first. An insecure service is bound to a loopback address only.
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
from s3t.server.http.connection import connection_class
from s3t.server.http.connections import Connections
from s3t.server.state import Service

if TYPE_CHECKING:
    from s3t.service import S3T

__all__ = ["check_address", "serve"]

_log = logging.getLogger(__name__)

_BATCH = 1
"""Connections that are accepted in one turn of the loop. What one of them has sent is then read
before the next is accepted, so that under pressure those that sent nothing are closed."""
_CHANGING = 8
"""File descriptors for connections that are just being opened or closed."""
_BACKLOG = 2048
"""Connections that the system queues until they are accepted."""
_OWN = 192
"""File descriptors kept for ledger, store and reports; at most half of those that are free."""
_FEWEST = 8
"""Connections without which a service does not start."""
_IDLE = 75
"""Seconds after which an idle connection is closed: longer than proxies keep theirs open."""


def serve(
    model: S3T,
    config: ServeConfig,
    *,
    insecure: bool = False,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model until the process gets SIGTERM or SIGINT.

    Args:
        model: loaded, and joined as a replica; the caller closes it.
        config: address, limits and timeouts.
        insecure: requests need no token.
        on_start: called with the URL once requests are answered.

    Raises:
        InputError: the address cannot be bound; it is not a loopback one though ``insecure``; or
            the limit of open files is too low.
    """
    listener = _bound(config, insecure)
    with listener:
        config = config.model_copy(update={"connections": _connection_limit(config)})
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
    connections = Connections(
        config.connections, config.address_connections, config.trusted_proxies, service.metrics
    )
    settings = uvicorn.Config(
        app,
        http=connection_class(config.head_timeout, config.timeout, connections),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # a client could name any address in them
        server_header=False,
        backlog=_BATCH,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=max(1, round(config.drain)),
    )
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    # What is loaded by now stays in memory. The garbage collector would go through it again and
    # again while a body is parsed: 1 s for a body of 1 MiB with many lists, instead of 0.05 s.
    gc.collect()
    gc.freeze()
    _Server(settings, app, lambda: on_start(url)).run(sockets=[listener])


def _connection_limit(config: ServeConfig) -> int:
    """How many connections the limit of open files allows, at most ``config.connections``. Raises
    the soft limit to the hard one first.

    Raises:
        InputError: fewer than 8.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # many systems start with 1024
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return config.connections
    spare = soft - len(os.listdir("/dev/fd"))
    limit = spare - min(_OWN, spare // 2) - _CHANGING
    if limit < _FEWEST:
        raise InputError(
            f"ulimit -n {soft} leaves room for {max(0, limit)} connections: raise it to "
            f"{soft + 2 * (_FEWEST - limit)} at the least"
        )
    if limit < config.connections:
        _log.warning(
            "ulimit -n %d: %d connections at once, not serve.connections=%d",
            soft,
            limit,
            config.connections,
        )
    return min(limit, config.connections)


class _Server(uvicorn.Server):
    """uvicorn's server with our signal handlers."""

    def __init__(self, settings: uvicorn.Config, app: FastAPI, begun: Callable[[], None]) -> None:
        super().__init__(settings)
        self._service: Service = app.state.service
        self._begun = begun
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, then call ``begun``."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_BACKLOG)  # asyncio has set it to _BATCH
        self._begun()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replaces uvicorn's handlers, which would end the process by the signal, not with 0."""
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
        _log.info("ending: finishing requests under way")
        self._service.draining = True
        self.should_exit = True

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._read_again())

    async def _read_again(self) -> None:
        self._service.access.reload()
        try:
            await asyncio.to_thread(self._service.model.reload)
        except S3TError as error:
            _log.error("reload: %s", type(error).__name__, exc_info=error)
        _log.info("read tokens, plan and nodes again")


def check_address(config: ServeConfig, insecure: bool) -> None:
    """Check the address of ``config``, so that a wrong one is refused before a model is loaded.

    Raises:
        InputError: it cannot be resolved, or is not a loopback one though ``insecure``.
    """
    _resolved(config, insecure)


def _resolved(config: ServeConfig, insecure: bool) -> tuple[int, Any]:
    """The address family, and the address as ``socket.bind`` takes it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"serve.host {config.host!r} has no address ({error.strerror})") from None
    if insecure and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"--insecure lets anyone delete, so it takes a loopback address, and {config.host} is "
            "none: leave it out and make tokens with s3t token create, or use --host 127.0.0.1"
        )
    return family, address


def _bound(config: ServeConfig, insecure: bool) -> socket.socket:
    """A listening socket. The address that was checked is the one that is bound."""
    family, address = _resolved(config, insecure)
    # IPPROTO_TCP is named, since asyncio sets TCP_NODELAY only on sockets with it
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
