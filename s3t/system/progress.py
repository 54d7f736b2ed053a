"""What long work tells while it goes on: a bar on a terminal, lines elsewhere, JSON for programs.

    S3T_PROGRESS   unset   a bar on a terminal, else nothing: the library
                   lines   a bar on a terminal, else a line now and then: the commands
                   json    a JSON object a line on standard error, at most one a second
                   quiet   nothing

Invariant: it goes to standard error alone, and names no sample.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal

__all__ = ["MODE", "Progress", "quiet_libraries", "say", "taking_time", "tell"]

MODE = "S3T_PROGRESS"
"""Environment variable that says how, for this process and those that it starts."""

_MOMENT = 2.0
"""Seconds after which it is told what takes so long."""

_EVERY = {"lines": 20.0, "json": 1.0}
"""Seconds between two tellings."""


def tell(how: Literal["lines", "json", "quiet"]) -> None:
    """Say how long work tells of itself, here and in processes that are started from now on."""
    os.environ[MODE] = how


def quiet_libraries() -> None:
    """Switch off progress bars and advice of other libraries that a user cannot act on."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextmanager
def taking_time(doing: str) -> Iterator[None]:
    """Tell what is done in the block, if it takes more than two seconds."""
    late = threading.Timer(_MOMENT, say, [doing])
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def say(words: str) -> None:
    """Tell something beside the answer, such as what is done now."""
    mode = os.environ.get(MODE)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # the first process of a machine speaks for all
    if mode == "json":
        _print(json.dumps({"event": "said", "said": words}))
    elif mode != "quiet" and (mode == "lines" or sys.stderr.isatty()):
        _print(f"s3t: {words}")


class Progress:
    """Progress of work of many steps; a context.

    Args:
        doing: what is done, such as ``training``.
        total: number of steps; None if it is not known before.
        speaks: whether this process is to tell of it.
    """

    def __init__(self, doing: str, total: int | None, speaks: bool = True) -> None:
        mode = os.environ.get(MODE)
        terminal = mode in (None, "lines") and sys.stderr.isatty()
        self._doing, self._total = doing, total
        self._every = _EVERY.get(mode or "") if speaks and not terminal else None
        self._json, self._bar = mode == "json", None
        self._steps, self._facts = 0, dict[str, Any]()
        self._started = self._told = time.monotonic()
        if speaks and terminal:
            from tqdm import tqdm  # type: ignore[import-untyped]

            self._bar = tqdm(desc=doing, total=total, unit="step", dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            return
        lasted = time.monotonic() - self._started > _MOMENT
        if self._every is not None and self._steps and kind is None and (self._json or lasted):
            self._tell()

    def update(self, steps: int) -> None:
        """So many steps more are done."""
        self._steps += steps
        if self._bar is not None:
            self._bar.update(steps)
        self._tell_in_time()

    def of(self, total: int) -> None:
        """How many steps there are, once that is known."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def note(self, **facts: Any) -> None:
        """Facts to tell beside the steps, such as ``nodes="3/64"``."""
        self._facts.update(facts)
        if self._bar is not None:
            self._bar.set_postfix(self._facts, refresh=False)
        self._tell_in_time()

    def _tell_in_time(self) -> None:
        if self._every is not None and time.monotonic() - self._told >= self._every:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._started
        rate = self._steps / seconds if seconds else 0.0
        left = (self._total - self._steps) / rate if self._total and rate else None
        if self._json:
            found = {"event": "progress", "doing": self._doing, "steps": self._steps}
            found |= {"of": self._total, "seconds": round(seconds, 1), **self._facts}
            _print(json.dumps(found | {"left": None if left is None else round(left, 1)}))
            return
        share = f", {self._steps / self._total:.0%}" if self._total else ""
        facts = "".join(f", {name} {value}" for name, value in self._facts.items())
        ahead = "" if left is None else f", about {_lasting(left)} left"
        _print(f"s3t: {self._doing}{share}, {rate:.1f} steps/s{facts}{ahead}")


def _lasting(seconds: float) -> str:
    for unit, each in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * each:
            return f"{seconds / each:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
