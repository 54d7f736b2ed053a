"""Draws first hits: the order in which slots are hit for the first time, and at which request.

Only the first hit of a slot matters, so a simulation makes N draws a trial, for any number of
requests; the requests in between are counted, not drawn.

    order     slots by their exponential first hits (``stream``)
    numbers   request number of each hit in that order: one more than the hit before, plus the
              requests in between that reach slots which are already hit
                endless   geometric: each request is one of them with the sum of their rates
                finite    binomial: of the samples left in them, those deleted before the next hit

Invariant: draws are exact, and depend on seed and number of trials alone: each chunk of trials has
its own generator, on any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError
from s3t.plan.survival.stream import Floats, Stream

__all__ = ["CELLS", "Sizes", "first_hits", "hit_order", "in_chunks", "log_uniform"]

Slots = npt.NDArray[np.intp]

Sizes = list[int]
"""Trials of the blocks of a chunk."""

CELLS = 1 << 15
"""Slots × trials of a block, whose tables of 8 bytes a cell fit in a core's cache."""

_LEAST = 16
"""Minimum number of trials of a block."""

_BLOCKS = 4
"""Number of blocks of a chunk, which have one generator and one thread; 1 if slots are many."""

Part = TypeVar("Part")


def in_chunks(
    task: Callable[[np.random.Generator, Sizes], Part],
    slots: int,
    trials: int,
    seed: int,
    threads: int,
    cells: int = CELLS,
) -> Iterator[Part]:
    """``task(generator, trials of each block)`` for every chunk of the trials, in order.

    numpy releases the interpreter lock inside its loops, so threads run in parallel.

    Args:
        seed: from 0; each chunk gets a generator spawned from it.
        threads: number of chunks computed at a time; it does not change the results.
        cells: slots × trials of a block.

    Raises:
        InputError: no trials, no threads or a negative seed.
    """
    if trials < 1 or threads < 1 or seed < 0:
        raise InputError(
            f"{trials} trials, {threads} threads, seed {seed}: expected from 1, and a seed from 0"
        )
    size = max(_LEAST, cells // slots)
    blocks = [min(size, trials - start) for start in range(0, trials, size)]
    count = _BLOCKS if size > _LEAST else 1
    parts = [blocks[start : start + count] for start in range(0, len(blocks), count)]
    seeds = np.random.SeedSequence(seed).spawn(len(parts))

    def work(number: int) -> Part:
        return task(np.random.Generator(np.random.SFC64(seeds[number])), parts[number])

    if threads == 1:
        yield from map(work, range(len(parts)))
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, range(len(parts)))


def log_uniform(draw: np.random.Generator, table: Floats) -> Floats:
    """``table`` filled with logarithms of uniform numbers in (0, 1].

    They are minus exponentials, in less time than numpy draws those.
    """
    draw.random(out=table)
    np.subtract(1, table, out=table)
    return np.log(table, out=table)


def hit_order(draw: np.random.Generator, stream: Stream, trials: int) -> tuple[Slots, Floats]:
    """Slots by first hit, and the times of these hits on the clock.

    Returns:
        Slot numbers (shard · L + slice) and times, both [trials, N]. The times of a uniform stream
        are uniform numbers instead: only their order is meant.
    """
    if stream.is_uniform:
        times = draw.random((trials, stream.slots))
    else:
        times = log_uniform(draw, np.empty((trials, stream.slots)))
        with np.errstate(divide="ignore", invalid="ignore"):
            times /= -stream.weights.ravel()
        times[:, stream.weights.ravel() == 0] = np.inf
    order = np.argsort(times, axis=1)
    return order, times


def first_hits(draw: np.random.Generator, stream: Stream, trials: int) -> tuple[Slots, Floats]:
    """Slots by first hit, and the request number of each hit.

    Returns:
        Slot numbers and request numbers from 1, both [trials, N]; inf for a slot that is never hit.
    """
    order, times = hit_order(draw, stream, trials)
    if stream.samples is None:
        return order, _numbers_endless(draw, stream, order)
    return order, _numbers_finite(draw, stream, order, np.take_along_axis(times, order, axis=1))


def _numbers_endless(draw: np.random.Generator, stream: Stream, order: Slots) -> Floats:
    """Missing: the rates of slots that are not hit yet, just before each hit."""
    slots = stream.slots
    if stream.is_uniform:
        missing = (slots - np.arange(slots))[None, :] / slots
    else:
        rates = stream.weights.ravel()[order[:, ::-1]]
        missing = np.minimum(np.cumsum(rates, axis=1)[:, ::-1], 1.0)
    waits = log_uniform(draw, np.empty(order.shape))
    with np.errstate(divide="ignore", invalid="ignore"):
        waits /= np.log1p(-missing)
    waits[:, 0] = 0
    np.floor(waits, out=waits)
    waits += 1
    np.copyto(waits, np.inf, where=missing == 0)
    return np.cumsum(waits, axis=1, out=waits)


def _numbers_finite(
    draw: np.random.Generator, stream: Stream, order: Slots, times: Floats
) -> Floats:
    sizes = stream.weights.ravel().astype(np.int64)
    trials = len(order)
    numbers = np.empty(order.shape)
    number = np.zeros(trials)
    left = np.zeros(trials, dtype=np.int64)  # samples left in slots that are hit
    before = np.zeros(trials)
    for rank in range(order.shape[1]):
        slot, time = order[:, rank], times[:, rank]
        reached = np.isfinite(time)
        elapsed = np.where(reached, time, before) - before
        repeats = draw.binomial(left, -np.expm1(-elapsed))
        number = np.where(reached, number + repeats + 1, np.inf)
        left += np.where(reached, sizes[slot] - 1, 0) - repeats
        numbers[:, rank] = number
        before += elapsed
    return numbers
