"""Who is connected, and who has to leave so that others get in.

    waits   for a whole request: just connected, half sent, or idle after an answer
    works   a whole request is here, and its answer has not left

    no room ─► the connection that has waited longest is closed ─► the new one is let in
                └── none waits: the new one is closed

Invariants: no more than ``most`` connections, and no more than ``each`` of one address, are open. A
client that sends its request at once is let in however many others do not: half-open connections
cost those who open them, not those who come after. Addresses of trusted proxies, behind which many
clients are, have no limit of their own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from s3t.server.metrics import Metrics
from s3t.server.security.rates import network

__all__ = ["Client", "Connections"]


class Client(Protocol):
    """A connection (``s3t.server.http.connection``)."""

    def cut(self) -> None: ...


class Connections:
    """The connections of one listener. To be used on one event loop.

    Args:
        most: at once.
        each: of one address (the /64 of an IPv6 one) at once.
        trusted: addresses and networks to which ``each`` does not apply.
        metrics: where they are counted.
    """

    def __init__(self, most: int, each: int, trusted: Sequence[str], metrics: Metrics) -> None:
        self._most, self._each, self._metrics = most, each, metrics
        self._trusted = [ipaddress.ip_network(one) for one in trusted]
        self._places: dict[Client, str] = {}
        self._waiting: dict[Client, None] = {}  # the longest first
        self._of: dict[str, dict[Client, None]] = {}  # of one address, by when they came

    def enter(self, client: Client, address: str) -> bool:
        """Let a client in; False if all others are at work, and it has to be closed."""
        place = "" if self._is_trusted(address) else network(address)
        own = self._of.get(place, {})
        good = (not place or len(own) < self._each or self._evict(own)) and (
            len(self._places) < self._most or self._evict(self._waiting)
        )
        if not good:
            self._metrics.refused.inc()
            return False
        self._places[client] = place
        self._of.setdefault(place, {})[client] = None
        self.wait(client)
        self._metrics.connections.set(len(self._places))
        return True

    def wait(self, client: Client) -> None:
        """It waits for a whole request from now on."""
        if client in self._places:
            self._waiting[client] = None

    def work(self, client: Client) -> None:
        """A whole request of it is here."""
        self._waiting.pop(client, None)

    def leave(self, client: Client) -> None:
        """It has gone."""
        place = self._places.pop(client, None)
        self._waiting.pop(client, None)
        if place is not None:
            of = self._of[place]
            del of[client]
            if not of:
                del self._of[place]
            self._metrics.connections.set(len(self._places))

    def _evict(self, among: dict[Client, None]) -> bool:
        """Close the first of some that waits; False if none does."""
        client = next((one for one in among if one in self._waiting), None)
        if client is None:
            return False
        self.leave(client)
        self._metrics.evicted.inc()
        client.cut()
        return True

    def _is_trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in one for one in self._trusted)
