"""Who has which nodes in hand, among processes that share a store and nothing else.

    work/beats/<process>     changes every few seconds while the process lives
    work/claims/<key>        names the process that has taken the node

A node is taken if no process has it, or if its process has given no sign of life for a lease. Only
changes count, by one's own clock, so machines need not agree on the time.

Invariant: a node lease is never needed for a right result, since a node trained twice gives
the same file twice. So nothing here is exact: what goes wrong costs time.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from s3t.errors import S3TError
from s3t.run.files.trainers import MAIN, Trainers, began_at, host
from s3t.store import Depot
from s3t.training.rank import Rank
from s3t.types import NodeKey

__all__ = ["Alone", "DepotLeases", "NodeLeases"]

_PATIENCE = 15
"""Leases that the other processes wait for a sign of the main one before there is any."""


class NodeLeases(Protocol):
    """Keeps processes from training the same node at the same time."""

    pause: float
    """Seconds between two looks at what the others do."""

    shared: bool
    """Whether there may be others."""

    def away(self) -> frozenset[NodeKey]:
        """Nodes in the hands of others that live."""

    def idle(self) -> int:
        """How many other processes seem to have nothing in hand."""

    def take(self, keys: Sequence[NodeKey]) -> list[NodeKey]:
        """Those of the nodes that are now ours."""

    def release(self, keys: Sequence[NodeKey]) -> None:
        """Give nodes up."""


class Alone:
    """One process, with all nodes for itself."""

    pause = 1.0
    shared = False

    def away(self) -> frozenset[NodeKey]:
        """None."""
        return frozenset()

    def idle(self) -> int:
        """None."""
        return 0

    def take(self, keys: Sequence[NodeKey]) -> list[NodeKey]:
        """All."""
        return list(keys)

    def release(self, keys: Sequence[NodeKey]) -> None:
        """No process waits for them."""


class DepotLeases:
    """Node leases in a depot.

    Args:
        depot: where all processes see them.
        rank: which process this is.
        lease: seconds without a sign of life after which a process counts as dead.
    """

    shared = True

    def __init__(self, depot: Depot, rank: Rank, lease: float) -> None:
        self.pause = min(1.0 if depot.folder else 5.0, lease / 4)
        self._depot, self._rank, self._lease = depot, rank, lease
        role = MAIN if rank.main else f"{rank.number}-"
        self.name = f"{role}{secrets.token_hex(8)}"
        # Whether a process of this machine lives can be seen at once; other launches on the same
        # host may have process numbers of their own.
        self._machine = f"{socket.gethostname()}/{rank.number - rank.local}"
        self._others = Trainers(depot, self._machine, lease)
        self._mine: set[NodeKey] = set()
        self._owners: dict[NodeKey, str] = {}
        self._count, self._ready, self._over = 0, False, False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def open(self) -> None:
        """Give signs of life from now on."""
        self._beat()
        if self._rank.main:
            for name in self._depot.names("beats"):
                if name.startswith(MAIN) and name != self.name:
                    self._depot.remove(f"beats/{name}")
        self._thread.start()

    def ready(self) -> None:
        """Tell the others that the run is prepared."""
        self._ready = True
        self._beat()

    def close(self) -> None:
        """Give up what is in hand, and no sign of life any more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(S3TError):  # where the store is out of reach, the lease ends by itself
            self.release([*self._mine])
            self._depot.remove(f"beats/{self.name}")
            if self._rank.main and (self._over or not self._ready):
                self._depot.tidy(("beats", "claims", ""))

    def clear(self) -> None:
        """Remove what dead processes have left, once every node is there."""
        self._over = True
        for name in self._depot.names("claims"):
            self._depot.remove(f"claims/{name}")
        self._others.look(again=True)
        for name in self._depot.names("beats"):
            if name != self.name and not self._others.lives(name):
                self._depot.remove(f"beats/{name}")

    def wait_for_main(self, needless: Callable[[], bool]) -> bool:
        """Wait until the main process says that the run is prepared; False if it ended before.

        Args:
            needless: whether there is nothing to wait for; asked again and again.

        Raises:
            S3TError: there is no sign of it.
        """
        limit = time.monotonic() + _PATIENCE * self._lease
        met = False
        while time.monotonic() < limit:
            if needless():
                return True
            self._others.look(again=True)
            mains = [name for name in self._others.names if name.startswith(MAIN)]
            moving = [name for name in mains if self._others.moves(name)]
            if any(self._others.said(name).get("ready") for name in moving):
                return True
            if met and not mains:
                return False
            if moving:
                met, limit = True, time.monotonic() + _PATIENCE * self._lease
            time.sleep(min(0.2, self.pause) if self._rank.beside_main else self.pause)
        raise S3TError(
            f"no sign of the main process, of machine rank 0, at {self._depot.url} for "
            f"{_PATIENCE * self._lease:.0f} s: start it, and give all machines the same output "
            "folder or the same store.url"
        )

    def away(self) -> frozenset[NodeKey]:
        """Nodes in the hands of others that live."""
        self._others.look()
        claimed = {NodeKey(name) for name in self._depot.names("claims")} - self._mine
        owners = {key: self._owner(key) for key in claimed}
        self._owners = {key: owner for key, owner in owners.items() if owner != self.name}
        return frozenset(key for key, owner in self._owners.items() if self._others.lives(owner))

    def idle(self) -> int:
        """How many other processes seem to have nothing in hand, as of the last ``away``."""
        return max(0, self._rank.processes - 1 - len({*self._owners.values()}))

    def take(self, keys: Sequence[NodeKey]) -> list[NodeKey]:
        """Those of the nodes that are now ours."""
        taken = [key for key in keys if self._taken(key)]
        self._mine.update(taken)
        return taken

    def release(self, keys: Sequence[NodeKey]) -> None:
        """Give nodes up, but not for another: a process paused for a lease has lost its own."""
        for key in keys:
            if self._owner(key, again=True) == self.name:
                self._depot.remove(f"claims/{key}")
            self._mine.discard(key)

    def _taken(self, key: NodeKey) -> bool:
        name = f"claims/{key}"
        if self._depot.create(name, self.name.encode()):
            return True
        owner = self._owner(key, again=True)
        self._owners[key] = owner
        if self._others.lives(owner):
            return False
        if (
            self._owner(key, again=True) == owner
        ):  # else another was faster to take it from the dead
            self._depot.remove(name)
        return self._depot.create(name, self.name.encode())

    def _owner(self, key: NodeKey, again: bool = False) -> str:
        if key in self._owners and not again:
            return self._owners[key]
        try:
            return self._depot.get(f"claims/{key}").decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _keep_beating(self) -> None:
        while not self._end.wait(min(5.0, self._lease / 4)):
            with suppress(S3TError, OSError):  # the training itself will meet what is wrong
                self._beat()

    def _beat(self) -> None:
        self._count += 1
        said = {
            "count": self._count,
            "machine": self._machine,
            "host": host(),
            "process": os.getpid(),
            "began": began_at(os.getpid()),
            "ready": self._ready,
        }
        self._depot.put(f"beats/{self.name}", json.dumps(said).encode())
