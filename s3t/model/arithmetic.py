"""Arithmetic that gives the same bytes again (E2): one order of sums, passes of one shape."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["filled", "one_thread"]


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """A node's bytes depend on the number of threads, so on a CPU there is one.

    On a GPU they depend on the order of sums, so only kernels with one order are used.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def filled(index: Tensor, count: int) -> Tensor:
    """Row numbers [n] as ``count`` of them, the first again and again at the end."""
    return torch.cat([index, index[:1].expand(count - len(index))])
