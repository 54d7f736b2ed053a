"""How many connections may be open, and which one is closed when a new one exceeds the limit.

    waiting   no complete request: just connected, request half sent, or idle after a response
    working   a complete request has arrived, and its response has not been sent

    limit reached ─► the connection that has waited longest is closed ─► the new one is accepted
                        └── none is waiting: the new one is closed

Invariants: at most ``most`` connections are open, and at most ``each`` from one address. A client
that sends its request at once is accepted however many others keep half-sent requests open. Trusted
proxies, behind which there are many clients, are exempt from the limit of one address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Protocol

from s3t.server.metrics import Metrics
from s3t.server.security.rates import network

__all__ = ["Client", "Connections"]


class Client(Protocol):
    """What is needed of a connection (``s3t.server.http.connection``)."""

    def cut(self) -> None: ...


class Connections:
    """The connections of one listener. To be used on one event loop.

    Args:
        most: connections that may be open.
        each: connections that may be open from one IPv4 address, or one /64 of IPv6.
        trusted: addresses and networks of proxies, to which ``each`` does not apply.
        metrics: where connections are counted.
    """

    def __init__(self, most: int, each: int, trusted: Sequence[str], metrics: Metrics) -> None:
        self._most, self._each, self._metrics = most, each, metrics
        self._trusted = [ipaddress.ip_network(one) for one in trusted]
        self._networks: dict[Client, str] = {}  # of all open connections; "" for trusted ones
        self._waiting: dict[Client, None] = {}  # the one that has waited longest first
        self._by_network: dict[str, dict[Client, None]] = {}  # the oldest connection first

    def enter(self, client: Client, address: str) -> bool:
        """Accept a new connection, and close another one where a limit is reached. False if none of
        the others is waiting: then the caller closes the new one."""
        source = "" if self._is_trusted(address) else network(address)
        own = self._by_network.get(source, {})
        accepted = (not source or len(own) < self._each or self._evict(own)) and (
            len(self._networks) < self._most or self._evict(self._waiting)
        )
        if not accepted:
            self._metrics.refused.inc()
            return False
        self._networks[client] = source
        self._by_network.setdefault(source, {})[client] = None
        self.wait(client)
        self._metrics.connections.set(len(self._networks))
        return True

    def wait(self, client: Client) -> None:
        """Mark a connection as waiting."""
        if client in self._networks:
            self._waiting[client] = None

    def work(self, client: Client) -> None:
        """Mark a connection as working."""
        self._waiting.pop(client, None)

    def leave(self, client: Client) -> None:
        """Forget a connection that has ended."""
        source = self._networks.pop(client, None)
        self._waiting.pop(client, None)
        if source is not None:
            own = self._by_network[source]
            del own[client]
            if not own:
                del self._by_network[source]
            self._metrics.connections.set(len(self._networks))

    def _evict(self, among: dict[Client, None]) -> bool:
        """Close the first one that is waiting; False if none is."""
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
