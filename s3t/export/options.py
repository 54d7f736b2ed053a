"""What is asked of an export, and what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from s3t.errors import InputError
from s3t.export.engine_limits import Engine, engine_named
from s3t.types import Digest

__all__ = ["Export", "Merge", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be exported.

    Attributes:
        merge: one adapter that averages the shards, instead of one a shard.
        rank: greatest rank of the merged adapter; by default that of the exact average.
        target: the engine that it is for: ``vllm`` or ``sglang``; None: any user of peft.
        max_loss: how much worse than the ensemble the merged adapter may do; None: only told.
        prune: remove adapters that are alive but no longer served, too.
    """

    merge: bool = False
    rank: int | None = None
    target: str | None = None
    max_loss: float | None = None
    prune: bool = False

    def engine(self) -> Engine | None:
        """The engine.

        Raises:
            InputError: one that is not known, or options that do not go together.
        """
        if not self.merge and (self.rank is not None or self.max_loss is not None):
            raise InputError("--rank and --max-loss are of the merged adapter: give --merge too")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"--rank {self.rank} must be 1 or more")
        return engine_named(self.target)


@dataclass(frozen=True, slots=True)
class Merge:
    """The merged adapter beside the ensemble, on the public test rows.

    Attributes:
        rank: its rank, and ``exact_rank`` that of the exact average.
        error: share of the average's norm that was cut off.
        metric: ``accuracy`` or ``perplexity``.
        ensemble, merged: the figures.
        loss: points of accuracy lost, or the share by which perplexity has grown.
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
        strays: what else lies in the folder; it was not touched.
        engine_rank: least rank that the engine must be started with, if one was named.
        merge: of the merged adapter.
        notes: what to know.
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
