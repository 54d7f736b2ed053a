"""The words with which accelerate starts the processes that train one run, on each machine.

Processes that train a run talk only through its store. So a machine is started by itself, and
learns from its environment which one it is. ``accelerate launch --num_machines`` as such works
too, but it starts nothing before all machines are there, and after the death of one its launcher
waits five minutes at the end (torch's exit barrier): that is what is left out here.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

import torch
from accelerate.commands.launch import launch_command_parser

from s3t.errors import InputError
from s3t.training.rank import MACHINE, MACHINES

__all__ = ["launch_command"]

_BETWEEN_MACHINES = (
    "num_machines",
    "machine_rank",
    "main_process_ip",
    "main_process_port",
    "num_processes",
    "rdzv_backend",
    "rdzv_conf",
    "same_network",
)
"""Options that speak of several machines, or of the processes of all of them."""

_FLAGS = ("same_network", "multi_gpu")


def launch_command(
    arguments: Sequence[str], options: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Command and extra environment of ``accelerate launch OPTIONS -m s3t.train ARGUMENTS``.

    accelerate (1.15) takes ``--cpu --num_processes N`` for one process without a word, because its
    CPU ranks need mpirun (huggingface/accelerate#2741). Told that there are several devices but
    only the CPU to use, it starts N processes; so that is what it is told.

    Raises:
        InputError: several machines, and not which of them this is or how many processes it takes.
    """
    asked, _ = launch_command_parser().parse_known_args([*options, "-m", "s3t.train"])
    words = list(options)
    environment: dict[str, str] = {}
    processes = asked.num_processes or 1
    if (asked.num_machines or 1) > 1:
        processes = _processes_here(asked)
        words = _without(words, (*_BETWEEN_MACHINES, *(("multi_gpu",) if processes == 1 else ())))
        words += ["--num_machines", "1", "--num_processes", str(processes)]
        if processes > 1:
            words += ["--main_process_port", "0"]  # a free one: machines may be on one host
        environment |= {MACHINE: str(asked.machine_rank), MACHINES: str(asked.num_machines)}
    if asked.cpu or not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
        words = [word for word in words if word != "--cpu"]
        if processes > 1 and not asked.multi_gpu:
            words.insert(0, "--multi_gpu")
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *words, "-m", "s3t.train", *arguments], environment


def _processes_here(asked: Namespace) -> int:
    machines, rank, processes = asked.num_machines, asked.machine_rank, asked.num_processes
    if rank is None or not 0 <= rank < machines:
        raise InputError(
            f"--machine_rank {rank} of {machines} machines: give each its own, 0 to {machines - 1}"
        )
    if processes is None or processes < machines or processes % machines:
        raise InputError(
            f"--num_processes {processes} on {machines} machines: give the number on all of them, "
            f"a multiple of {machines}"
        )
    return int(processes) // int(machines)


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without some options and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, given, _ = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word.startswith("--") and name in names:
            skip = not given and name not in _FLAGS
        elif skip:
            skip = False
        else:
            kept.append(word)
    return kept
