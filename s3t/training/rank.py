"""Which process this is, among those that train one run on one machine or several.

                      machine 0            machine 1
    rank                0   1                2   3
    local               0   1                0   1

A process needs none of the others to train: it reads from the store what there is and what it may
take. So no process group is opened between them, and no process that dies can break or hold up
another; of ``accelerate launch`` this needs the environment alone. Where ``stage.processes`` train
a node together (``process_group``), one rank stands for each group of processes, and the first of
them schedules for the group.

Invariant: exactly one process of rank 0 prepares the run, and exactly one of each machine speaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from s3t.errors import InputError

__all__ = ["MACHINE", "MACHINES", "Rank", "by_itself"]

MACHINE, MACHINES = "S3T_MACHINE_RANK", "S3T_NUM_MACHINES"
"""Name the machine where each starts its processes by itself, see ``launch``."""

_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL = (
    "LOCAL_RANK",
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
)
_HERE = (
    "LOCAL_WORLD_SIZE",
    "MPI_LOCALNRANKS",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
)


@dataclass(frozen=True, slots=True)
class Rank:
    """A process among all that train one run.

    Attributes:
        number: its rank, from 0.
        processes: how many there are, on all machines.
        local: its number on this machine, from 0.
        here: how many there are on this machine.
    """

    number: int = 0
    processes: int = 1
    local: int = 0
    here: int = 1

    @classmethod
    def found(cls) -> Rank:
        """As accelerate's launcher, torchrun or mpirun have put it into the environment."""
        here, local = _number(_HERE, 1), _number(_LOCAL, 0)
        if MACHINES in os.environ:
            machine, machines = int(os.environ[MACHINE]), int(os.environ[MACHINES])
            return cls(machine * here + local, machines * here, local, here)
        processes = _number(_WORLD, 1)
        return cls(_number(_RANK, 0), processes, local, min(here, processes))

    def in_groups_of(self, size: int) -> Rank:
        """The rank of this process's group among all groups.

        Raises:
            InputError: the processes of each machine do not make up whole groups.
        """
        if self.here % size or self.processes % size:
            raise InputError(
                f"stage.processes={size} trains each node with {size} processes of one machine, "
                f"and here are {self.here}: start a multiple of {size}, with s3t train CONFIG "
                f"--num_processes {size} or accelerate launch --num_processes {size} -m s3t.train "
                "CONFIG"
            )
        return Rank(
            self.number // size, self.processes // size, self.local // size, self.here // size
        )

    @property
    def main(self) -> bool:
        """Whether this process prepares the run and holds its ledger."""
        return self.number == 0

    @property
    def speaks(self) -> bool:
        """Whether this process prints the messages for all processes of its machine."""
        return self.local == 0

    @property
    def beside_main(self) -> bool:
        """Whether the main process is on this machine, under the same launcher."""
        return self.number == self.local


@contextmanager
def by_itself() -> Iterator[None]:
    """Hide the other processes from accelerate, which would connect to them."""
    names = {*_RANK, *_WORLD, *_LOCAL, *_HERE} & os.environ.keys()
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
