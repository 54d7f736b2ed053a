"""The options of an export, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from s3t.errors import InputError
from s3t.export.engine_limits import EngineLimits, engine_limits
from s3t.types import Digest

__all__ = ["Export", "ExportOptions", "Merge"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        merge: one adapter that averages the shards, instead of one for each shard.
        rank: greatest rank of the merged adapter; by default that of the exact average.
        target: the engine that it is for: ``vllm`` or ``sglang``; None: any user of peft.
        max_loss: how much worse than the ensemble the merged adapter may do; None: no limit.
        prune: remove adapters that are alive but no longer served, too.
    """

    merge: bool = False
    rank: int | None = None
    target: str | None = None
    max_loss: float | None = None
    prune: bool = False

    def limits(self) -> EngineLimits | None:
        """What the engine takes; None without a target.

        Raises:
            InputError: one that is not known, or options that do not go together.
        """
        if not self.merge and (self.rank is not None or self.max_loss is not None):
            raise InputError("--rank and --max-loss are of the merged adapter: give --merge too")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"--rank {self.rank} must be 1 or more")
        return engine_limits(self.target)


@dataclass(frozen=True, slots=True)
class Merge:
    """The merged adapter beside the ensemble, on the public test rows.

    Attributes:
        rank: its rank.
        error: norm of what was cut off, divided by the norm of the average.
        metric: ``accuracy`` or ``perplexity``.
        ensemble, merged: the figures.
        loss: accuracy lost (0–1), or the growth of perplexity divided by the ensemble's.
        samples: test rows.
    """

    rank: int
    error: float
    metric: str
    ensemble: float
    merged: float
    loss: float
    samples: int


@dataclass(frozen=True, slots=True)
class Export:
    """What an export did.

    Attributes:
        folder: absolute path.
        plan: digest of the plan in force.
        view: the ledger's view that the adapters are of.
        adapters: what the manifest says of each.
        without: shards that have no prefix left.
        written: names that were not there before.
        removed: names of adapters with dead nodes that were there.
        replaced: names that are alive, but no longer what is served.
        strays: other files in the folder; they were not touched.
        engine_rank: least rank that the engine must be started with, if one was named.
        merge: of the merged adapter.
        notes: warnings for the user.
        seconds: time it took.
    """

    folder: str
    plan: Digest
    view: int
    adapters: tuple[dict[str, Any], ...]
    without: tuple[int, ...]
    written: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]
    strays: tuple[str, ...]
    engine_rank: int | None
    merge: Merge | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters of this view."""
        return tuple(str(one["name"]) for one in self.adapters)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
