"""Rate limits: a token bucket for each caller, and a count of wrong tokens for each address.

    bucket     refilled with `rate` tokens a second, up to max(1, rate)
    refusals   wrong tokens of the last minute from an IPv4 address, or from a /64 of IPv6

Invariant: memory is bounded. At most 10,000 callers and 10,000 addresses are kept; the oldest is
dropped first, which can only accept a request earlier.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["Buckets", "Refusals", "network"]

_HELD = 10_000
"""Callers, and addresses, that are kept at once."""
_MINUTE = 60.0


class Buckets:
    """Token buckets, one for each caller. Safe to share between threads.

    Args:
        rate: requests a second; None for no limit.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._size = max(1.0, rate or 0.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str) -> int | None:
        """Count a request of a caller. None if it is allowed, else whole seconds until one is."""
        if self._rate is None:
            return None
        now = self._clock()
        with self._lock:
            left, then = self._left.pop(caller, (self._size, now))
            left = min(self._size, left + (now - then) * self._rate)
            wait = None if left >= 1 else max(1, math.ceil((1 - left) / self._rate))
            self._left[caller] = (left - 1 if wait is None else left, now)
            if len(self._left) > _HELD:
                self._left.popitem(last=False)
        return wait


class Refusals:
    """Counts wrong tokens by the network that they came from. Safe to share between threads.

    Args:
        limit: wrong tokens a minute of one network that are answered with 401; the others get 429.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, address: str) -> int | None:
        """Count a wrong token. None below the limit, else whole seconds until it is below again."""
        now, source = self._clock(), network(address)
        with self._lock:
            times = self._times.setdefault(source, deque())
            self._times.move_to_end(source)
            while times and times[0] <= now - _MINUTE:
                times.popleft()
            if len(self._times) > _HELD:
                self._times.popitem(last=False)
            if len(times) >= self._limit:
                return max(1, math.ceil(times[0] + _MINUTE - now))
            times.append(now)
        return None


def network(address: str) -> str:
    """The network that limits count by: an IPv4 address, the /64 of an IPv6 one, or other text."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
