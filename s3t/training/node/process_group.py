"""Processes that train the same nodes together: each takes an equal part of every batch.

    batch of B rows     rank 0: rows 0 … B/N−1     rank 1: rows B/N … 2B/N−1     …
    gradient of a step  part 0 ──────────┬──────── part 1 ──────────────────────
                                         └► every rank has all parts, and sums them by rank
    after a stage       digest ═══════════════════ digest ═══════════ else nothing is published

Processes that train different nodes (``rank``) need nothing of each other, and some may die. Of a
group all end together.

Invariants: all ranks hold the same bytes after every step, which is proved before a node is
published; and the bytes depend on N alone. One process that takes the N parts in turn gets them
too, so a node of a group can be trained again, and compared, without one (E2).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from s3t.errors import InputError, IntegrityError, S3TError
from s3t.training.rank import Rank
from s3t.types import BatchPart, Digest

__all__ = ["DistributedGroup", "InTurn", "ProcessGroup", "RankLost", "depart"]

_MEETING = timedelta(minutes=10)
"""For all ranks of a group to come; the slowest has yet to load torch."""

_STEP = timedelta(minutes=30)
"""For the others to come to where this rank is, while all do the same work."""

_MESSAGE = timedelta(days=30)
"""For the leader's next message: adapting the base, or the nodes of other groups, may take that
long. A process that dies meanwhile closes its connections, which ends the wait at once."""

_PARTING = 60.0
"""Seconds that the first rank waits for the others to have left."""


class RankLost(S3TError):
    """Another process of the group has ended."""


class ProcessGroup(Protocol):
    """The processes among which batches are divided, as training sees them."""

    parts: tuple[BatchPart, ...]
    """Parts of each batch that this process computes, by rank."""

    leads: bool
    """Whether this process publishes."""

    def summed(self, found: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks, in their order, of what each computed of its part.

        Args:
            found: one tensor for each of ``parts``.
        """
        ...

    def joined(self, part: Tensor) -> Tensor:
        """The rows of all ranks, one after the other, where this rank has ``part``."""
        ...

    def all(self, seen: bool) -> bool:
        """Whether all ranks have seen it; asked by all at the same point."""
        ...

    def agree(self, found: Digest, what: str) -> None:
        """Prove that all ranks found the same.

        Raises:
            IntegrityError: they did not.
        """
        ...


class InTurn:
    """This process alone, which takes the parts one after the other.

    Args:
        size: number of parts; 1 for batches that are not divided.
    """

    leads = True

    def __init__(self, size: int = 1) -> None:
        self.parts = tuple(BatchPart(rank, size) for rank in range(size))

    def summed(self, found: Sequence[Tensor]) -> Tensor:
        """The sum of the parts, in their order."""
        return _sum(found)

    def joined(self, part: Tensor) -> Tensor:
        """The rows as they are."""
        return part

    def all(self, seen: bool) -> bool:
        """What this process has seen."""
        return seen

    def agree(self, found: Digest, what: str) -> None:
        """There is no other rank."""


class DistributedGroup:
    """A group of processes on one machine; all are built at the same time.

    Args:
        rank: which process this is, among all that were started.
        size: processes of a group, N.
        device: what this one trains on.

    Raises:
        InputError: the processes were not started by a launcher that lets them meet.
        RankLost: the others did not come.
    """

    def __init__(self, rank: Rank, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank.local % size, size, device
        self.leads = self.rank == 0
        self.parts: tuple[BatchPart, ...] = (BatchPart(self.rank, size),)
        self._first = rank.number - self.rank
        with self._lost_if_broken():
            self._store = PrefixStore(f"s3t/{self._first}", _meeting_point())
            # NCCL for what lies on a GPU; and gloo, which notices at once that a process is gone
            backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
            dist.init_process_group(
                backend, store=self._store, rank=self.rank, world_size=size, timeout=_STEP
            )
            self._messages: Any = dist.new_group(backend="gloo", timeout=_MESSAGE)

    @property
    def mesh(self) -> DeviceMesh:
        """Its processes, as torch counts them."""
        return init_device_mesh(self.device.type, (self.size,))

    def summed(self, found: Sequence[Tensor]) -> Tensor:
        """The sum over all ranks, in their order."""
        return _sum(self._all(found[0]))

    def joined(self, part: Tensor) -> Tensor:
        """The rows of all ranks."""
        return torch.cat(self._all(part))

    def all(self, seen: bool) -> bool:
        """Whether all ranks have seen it."""
        return all(self.gathered(seen))

    def agree(self, found: Digest, what: str) -> None:
        """Prove that all ranks found the same."""
        if len({*self.gathered(found)}) > 1:
            raise IntegrityError(
                f"the {self.size} processes that trained {what} together do not hold the same "
                "bytes, so nothing of it was published: give all of them the same device type and "
                "libraries, or train with stage.processes=1"
            )

    def tell(self, message: Any) -> None:
        """Send the others a value (the leader), which they ``hear``."""
        with self._lost_if_broken():
            dist.broadcast_object_list([message], 0, group=self._messages)

    def hear(self) -> Any:
        """The leader's next message."""
        message: list[Any] = [None]
        with self._lost_if_broken():
            dist.broadcast_object_list(message, 0, group=self._messages)
        return message[0]

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        found: list[Any] = [None] * self.size
        with self._lost_if_broken():
            dist.all_gather_object(found, value, group=self._messages)
        return found

    def is_first_to_say(self) -> bool:
        """Whether no rank has yet said why the group ended; a rank asks once, before it says it."""
        try:
            return int(self._store.add("said", 1)) == 1
        except RuntimeError:  # the process that keeps the store is gone too
            return True

    def close(self) -> None:
        """Leave the group: all ranks at once, and the one that may keep the store last.

        A process that was in a group ends by ``depart``.
        """
        self.gathered(None)  # no rank has anything left to do
        self._messages = None
        dist.destroy_process_group()
        if self.rank:
            self._store.add("parted", 1)
            return
        limit = time.monotonic() + _PARTING
        with suppress(RuntimeError):
            while self._store.add("parted", 0) < self.size - 1 and time.monotonic() < limit:
                time.sleep(0.01)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell a lost rank from other errors, around code that talks to the others by itself."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._lost() from error
            raise

    def _all(self, part: Tensor) -> list[Tensor]:
        own = part.contiguous()
        with self._lost_if_broken():
            found = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(found, own)
        return found

    @contextmanager
    def _lost_if_broken(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> RankLost:
        last = self._first + self.size - 1
        return RankLost(
            f"one of the processes {self._first} to {last}, which train together, has ended or "
            "come to a stop: nothing of what they were training was published. Finished nodes are "
            "kept, run the same command again to go on"
        )


def depart(code: int) -> NoReturn:
    """End a process that was in a group, without the interpreter's own end.

    gloo's threads drop the last tensors that they held when they come to it. For that they need the
    interpreter; if it is ending, Python ends the thread in the middle of C++ code, which aborts the
    process ("terminate called without an active exception").
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _meeting_point() -> Any:
    """The store of the launcher that started us (torchrun's, as accelerate's is)."""
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in os.environ]
    if lacking:
        raise InputError(
            f"processes that train a node together are to meet, and {', '.join(lacking)} is not "
            "set: start them with s3t train CONFIG --num_processes N, or accelerate launch"
        )
    return next(rendezvous("env://", timeout=_MEETING))[0]
