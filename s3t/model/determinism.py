"""Determinism: the bytes of a result depend on its inputs alone, not on what is computed beside it.

    product of a row       has the same bytes in products of 8 rows and more (MKL is pinned, see
                           ``s3t.system.pinned``); fewer rows are filled up with zeros
    element-wise function  numbers that do not fill a vector register are rounded otherwise, so
                           widths at which some are left over are computed row by row
    rows in a pass         passed together only where each has the bytes that it has alone
    random numbers         numpy's Philox, the same on every processor

Invariants E2 and E3 rest on this.

Measured on torch 2.13: ``docs/design.md``, Bytes and processors.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.inputs.encoders import Encoded
from s3t.system.pinned import arithmetic_here, strict

__all__ = [
    "LEAST_ROWS",
    "RowByRow",
    "at_least",
    "draws",
    "even",
    "filled",
    "one_thread",
    "processor_flags",
    "root_",
    "rounds_alike",
    "up_to_multiple",
    "without_tail",
]

_log = logging.getLogger(__name__)

LEAST_ROWS = 8
"""Rows from which on a product gives a row the same bytes (Intel: 3, AMD Zen 5: 4)."""

_VECTORS = 32
"""Numbers that ATen's element-wise loops take at a time: two vectors of AVX-512."""

_CHUNK = 32
"""Rows of one pass; always full, so that every pass has one shape."""


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Run torch in the one way in which a node's bytes are reproducible.

    On a CPU bytes depend on the number of threads, so there is one. Where arithmetic is portable
    oneDNN is off as well, because it generates kernels for the processor that it finds. On a GPU
    bytes depend on the order of sums, so only kernels with one order are used.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fitted: Any = torch.backends.mkldnn.enabled  # a bool that torch's stubs call otherwise
    if device.type == "cpu":
        torch.set_num_threads(1)
        if arithmetic_here() == "portable":
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.enabled = fitted
        torch.use_deterministic_algorithms(strict)


def rounds_alike(
    device: torch.device, dtype: torch.dtype = torch.float32, numbers: Iterable[int] = ()
) -> bool:
    """Whether a pass may be trusted to give a row the same bytes beside any other rows.

    On a CPU three things have to hold: MKL runs in its strict mode, on a processor that has one;
    numbers are float32, because products of bfloat16 run in oneDNN, which promises nothing; and
    element-wise functions fill whole vectors. On a GPU the last alone is a condition, and the rest
    is found by trying.

    Args:
        device: of the pass.
        dtype: of its hidden states.
        numbers: how many numbers each element-wise function of the pass computes.
    """
    if not all(even(count) for count in numbers):
        return False
    if device.type != "cpu":
        return True
    avx2 = "avx2" in processor_flags()
    return dtype == torch.float32 and strict() and torch.backends.mkl.is_available() and avx2


@cache
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets, by which libraries choose their kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset(platform.processor().split())
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(line.split())


def even(numbers: int) -> bool:
    """Whether so many numbers fill the vectors of an element-wise function, with no tail."""
    return numbers % _VECTORS == 0


def filled(index: Tensor, count: int) -> Tensor:
    """Row numbers [n] filled up to ``count`` with copies of the first."""
    return torch.cat([index, index[:1].expand(count - len(index))])


def at_least(rows: Tensor, count: int = LEAST_ROWS) -> Tensor:
    """[G, n, K] with rows of zeros at the end of each of the G, if n is under ``count``."""
    missing = count - rows.shape[1]
    return functional.pad(rows, (0, 0, 0, missing)) if missing > 0 else rows


def up_to_multiple(matrix: Tensor, dim: int, multiple: int = LEAST_ROWS) -> Tensor:
    """A matrix [G, m, n] with zeros at the end of one of its last two dimensions."""
    missing = -matrix.shape[dim] % multiple
    if not missing:
        return matrix
    return functional.pad(matrix, (0, missing) if dim in (-1, 2) else (0, 0, 0, missing))


def without_tail(function: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """An element-wise function whose every number is computed in a vector.

    Args:
        function: of tensors of one shape.
        operands: contiguous, of that shape.
    """
    first = operands[0]
    missing = -first.numel() % _VECTORS
    if not missing:
        return function(*operands)
    padded = function(*(functional.pad(one.flatten(), (0, missing)) for one in operands))
    return padded[: first.numel()].view(first.shape)  # [numbers + missing] → as the operands


def root_(numbers: Tensor) -> Tensor:
    """Square roots in place, rounded to the nearest. On a CPU numpy computes them: torch takes
    MKL's, whose rounding depends on the processor in every mode."""
    if numbers.device.type != "cpu":
        return numbers.sqrt_()
    array = numbers.numpy()
    np.sqrt(array, out=array)
    return numbers


def draws(seed: int) -> np.random.Generator:
    """A generator whose numbers are the same on every processor (Philox)."""
    return np.random.Generator(np.random.Philox(key=seed))


class RowByRow:
    """A function of rows of which each row's result depends on that row alone.

    Rows are passed together, 32 at a time, only where that was seen to give each of them the bytes
    that it has alone; where it does not, each is passed alone. It is tried for each shape, with
    the first rows that have it.

    Args:
        run: the function, [n, …] of n rows.
        together: shapes that were tried, and whether their rows may be passed together; one dict
            for all functions of the same layers.
        agree: combines what this process has seen with what the others of its group have.
    """

    def __init__(
        self,
        run: Callable[[Encoded], Tensor],
        together: dict[Hashable, bool],
        agree: Callable[[bool], bool] = lambda ok: ok,
    ) -> None:
        self._run, self._together, self._agree = run, together, agree

    @property
    def one_by_one(self) -> list[Hashable]:
        """Shapes at which rows are passed one by one, since a chunk of them differed here."""
        return [shape for shape, together in self._together.items() if not together]

    def __call__(self, rows: Encoded, tokens: int, alike: bool, what: Hashable = None) -> Tensor:
        """Results of the rows, [n, …].

        Args:
            rows: on the device of the pass.
            tokens: T, of a row.
            alike: whether rows of this length may be passed together (see ``rounds_alike``).
            what: names all else that shapes the pass.
        """
        shape = (*rows.values.shape[1:], tokens, what)
        if not alike:
            self._together[shape] = False
        found = []
        for part in torch.arange(len(rows)).split(_CHUNK):
            if shape not in self._together and len(part) > 1:
                chunk = rows.rows(filled(part, _CHUNK))
                together, alone = self._run(chunk), self._alone(chunk, tokens)
                self._together[shape] = self._agree(torch.equal(together, alone))
                if not self._together[shape]:
                    _log.warning(
                        "hidden states are computed row by row where this machine rounds a row by "
                        "its place (shape %s): slower, and the same bytes",
                        shape,
                    )
                found.append(alone[: len(part)])
            elif self._together.get(shape):
                found.append(self._run(rows.rows(filled(part, _CHUNK)))[: len(part)])
            else:
                found.append(self._alone(rows.rows(part), tokens))
        return torch.cat(found)

    def _alone(self, rows: Encoded, tokens: int) -> Tensor:
        """Each row in a pass of its own, as often as makes up the least rows of a product.

        On a GPU as often as there are rows in a pass: its kernels are chosen by the shape.
        """
        on_cpu = rows.values.device.type == "cpu"
        copies = -(-LEAST_ROWS // tokens) if on_cpu else _CHUNK
        each = torch.arange(len(rows)).unsqueeze(1).expand(-1, copies)
        return torch.cat([self._run(rows.rows(index))[:1] for index in each])
