"""How often: a bucket for each token, and the wrong tokens of each address.

    bucket     filled with `rate` a second, up to one second's worth (one at the least)
    refusals   of the last minute, counted per address; an IPv6 address counts by its /64

Invariant: memory is bounded, whoever asks from wherever. The oldest is forgotten first, which can
only let somebody in earlier.
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
"""Callers, and addresses, that are remembered at once."""
_MINUTE = 60.0


class Buckets:
    """Token buckets, one for each caller.

    Args:
        rate: how many a second; None for any number.
        clock: seconds that only grow.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._size = max(1.0, rate or 0.0)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, caller: str) -> int | None:
        """Take one; None if there was one, else the whole seconds until there is."""
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
    """Wrong tokens by the network that they came from.

    Args:
        limit: how many a minute are told that they are wrong; the others are told to wait.
        clock: seconds that only grow.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, address: str) -> int | None:
        """Count one; None while there are few, else the whole seconds until there are again."""
        now, of = self._clock(), network(address)
        with self._lock:
            times = self._times.setdefault(of, deque())
            self._times.move_to_end(of)
            while times and times[0] <= now - _MINUTE:
                times.popleft()
            if len(self._times) > _HELD:
                self._times.popitem(last=False)
            if len(times) >= self._limit:
                return max(1, math.ceil(times[0] + _MINUTE - now))
            times.append(now)
        return None


def network(address: str) -> str:
    """What counts as one place: an IPv4 address, the /64 of an IPv6 one, or the text itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
