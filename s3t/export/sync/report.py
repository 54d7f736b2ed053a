"""What a sync did, and what a watch tells of as it happens."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from s3t.errors import S3TError
from s3t.export import Export
from s3t.export.sync.ending import EndedAdapter
from s3t.export.sync.engine import ServingEngine

__all__ = ["Round", "Sync", "Told", "Watching"]


@dataclass(frozen=True, slots=True)
class Watching:
    """A watch has done its first sync without a problem, and sees every change from now on.

    Attributes:
        target, url: of the engine.
        view: of the ledger that the engine serves.
        every: seconds between two looks at the engine.
    """

    target: str
    url: str
    view: int
    every: float


@dataclass(frozen=True, slots=True)
class Sync:
    """What a sync did, or would do.

    Attributes:
        target, url: of the engine.
        view: the ledger's view that it has been brought to; −1 if nothing could be exported.
        forgotten: names that held dead nodes, and with which the engine has ended: unloaded,
            refused, nothing under way; in a dry run those that it lists.
        loaded: names loaded, and probed.
        kept: names that were there already.
        replaced: names unloaded since others have taken their place.
        without: shards that have no prefix left.
        difference: greatest difference of log probabilities that a probe has shown.
        problems: what went wrong; empty if the engine serves what the run does.
        exit_code: 0, or that of the first problem; 3 if no shard has a prefix left.
        dry_run: whether nothing was done.
        seconds: time it took.
    """

    target: str
    url: str
    view: int
    forgotten: tuple[str, ...]
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    replaced: tuple[str, ...]
    without: tuple[int, ...]
    difference: float
    problems: tuple[str, ...]
    exit_code: int
    dry_run: bool
    seconds: float

    @property
    def changed(self) -> bool:
        """Whether it did anything."""
        return bool(self.forgotten or self.loaded or self.replaced)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


Told = EndedAdapter | Watching | Sync | S3TError
"""What a watch tells of as it happens."""


class Round:
    """What one sync has done so far."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.forgotten: list[str] = []
        self.loaded: list[str] = []
        self.kept: list[str] = []
        self.replaced: list[str] = []
        self.problems: list[str] = []
        self.difference = 0.0
        self.exit_code = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return round(time.perf_counter() - self._started, 3)

    def forget(self, name: str) -> None:
        """Write down that the engine has ended with an adapter, whatever it did with it before."""
        self.forgotten.append(name)
        self.loaded, self.kept = (
            [one for one in names if one != name] for names in (self.loaded, self.kept)
        )

    def failed(self, error: S3TError, more: str = "") -> None:
        """Write a problem down."""
        self.problems.append(f"{error}: {more}" if more else str(error))
        self.exit_code = self.exit_code or error.exit_code

    def report(
        self,
        engine: ServingEngine,
        export: Export | None,
        view: int = -1,
        without: tuple[int, ...] = (),
        dry_run: bool = False,
    ) -> Sync:
        """All of it."""
        served = self.loaded or self.kept or self.problems
        return Sync(
            target=engine.target,
            url=engine.url,
            view=view if export is None else export.view,
            forgotten=tuple(self.forgotten),
            loaded=tuple(self.loaded),
            kept=tuple(dict.fromkeys(self.kept)),
            replaced=tuple(self.replaced),
            without=without if export is None else export.without,
            difference=self.difference,
            problems=tuple(self.problems),
            exit_code=self.exit_code or (0 if served else 3),
            dry_run=dry_run,
            seconds=self.seconds,
        )
