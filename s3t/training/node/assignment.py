"""What a stage is given: nodes to train, how, and on which rows; and what comes of a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from s3t.config import LoraConfig, PromptConfig, StageConfig
from s3t.training.node.rows import LabelledSet
from s3t.training.node.shared_cache import SharedCache
from s3t.types import NodeKey

__all__ = ["Assignment", "CacheSettings", "StageRows", "StageSettings", "TrainedNode"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """One node to train.

    Attributes:
        key: its key.
        rows: numbers of its rows in the private set, sorted, int64.
        inherited: what the prefix before it serves (``lineage.composed``): adapters, and the head
            from which it goes on. Empty at stage 1, or the public head alone.
        stage: number of its stage, from 1.
    """

    key: NodeKey
    rows: Tensor
    inherited: Mapping[str, Tensor]
    stage: int = 1


@dataclass(frozen=True, slots=True)
class TrainedNode:
    """What a node holds after its stage, its score on the validation set, and what it says of that
    (see ``store.Evidence``)."""

    key: NodeKey
    tensors: dict[str, Tensor]
    score: float
    said: Tensor


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How nodes are trained.

    Attributes:
        stage: steps, batches and optimizer.
        lora: how blocks are adapted.
        prompt: how prompts are trained in place of blocks; None to train blocks.
        recompute: whether layers are run again in the backward pass, which saves their memory.
    """

    stage: StageConfig
    lora: LoraConfig
    prompt: PromptConfig | None = None
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class StageRows:
    """What nodes are trained and scored on.

    Attributes:
        private: rows to train on.
        validation: public rows to score on.
        classes: number of classes; 0 for a language model.
    """

    private: LabelledSet
    validation: LabelledSet
    classes: int


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Where hidden states that enter a block are kept.

    Attributes:
        cap_bytes: above this a cut is not kept.
        shared: where the workers of a machine share a cut; None for this process's memory.
    """

    cap_bytes: int = 2**30
    shared: SharedCache | None = None
