"""The words with which accelerate starts several processes that train one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from accelerate.commands.launch import launch_command_parser

__all__ = ["launch_command"]


def launch_command(
    arguments: Sequence[str], options: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Command and extra environment of ``accelerate launch OPTIONS -m s3t.train ARGUMENTS``.

    accelerate (1.15) takes ``--cpu --num_processes N`` for one process without a word, because its
    CPU ranks need mpirun (huggingface/accelerate#2741). Told that there are several devices but
    only the CPU to use, it starts N processes over gloo; so that is what it is told.
    """
    asked, _ = launch_command_parser().parse_known_args([*options, "-m", "s3t.train"])
    words, environment = list(options), {}
    if asked.cpu or not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "true"
        words = [word for word in words if word != "--cpu"]
        if (asked.num_processes or 1) > 1 and not asked.multi_gpu:
            words.insert(0, "--multi_gpu")
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*launcher, *words, "-m", "s3t.train", *arguments], environment
