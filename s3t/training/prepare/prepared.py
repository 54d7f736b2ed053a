"""A prepared run with all that training needs in memory.

Invariant: it holds no row of a sample that was deleted before it was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from s3t.config import Config
from s3t.model.base import Base
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.store import NodeStore
from s3t.training.node.rows import LabelledSet
from s3t.types import Digest, Sample

__all__ = ["Prepared"]


@dataclass(frozen=True)
class Prepared:
    """A prepared run in memory.

    Attributes:
        run: its directory.
        store: where nodes are read and published.
        config: of the run.
        plan: the nodes to train.
        base: the frozen base, that of the plan.
        environment: digest of this process's: nodes of it alone can be trained here.
        classes: number of labels; 0 for a language model.
        head: the public head from which stage 1 starts; empty if it starts from a random one.
        samples: the private samples, sorted by id.
        private: their rows, in the same order.
        validation: the public rows that nodes are scored on.
        scored_rows: digest of those.
        members: [shard][slice] → numbers of the slice's rows in ``private``, sorted, int64.
    """

    run: RunDir
    store: NodeStore
    config: Config
    plan: Plan
    base: Base
    environment: Digest
    classes: int
    head: Mapping[str, Tensor]
    samples: tuple[Sample, ...]
    private: LabelledSet
    validation: LabelledSet
    scored_rows: Digest
    members: tuple[tuple[Tensor, ...], ...]
