"""The typed config: one YAML file plus dotted overrides, read once at the edge.

    YAML ─┐
          ├─► merged tree ─► Config (frozen, unknown keys refused) ─► plain arguments inside
    a.b=c ┘

files ──► paths ──► config ──► aggregation, data, model, operation, partition, serve, training

Invariant: a Config that exists is possible in itself. What depends on the data or on the base
model (empty slices, missing columns, number of layers) is checked where those are known, and is
reported in the same form: all problems together, before anything is written.
"""

from __future__ import annotations

from s3t.config.aggregation import AggregationConfig
from s3t.config.config import Config, Task
from s3t.config.data import ColumnsConfig, DataConfig, PublicConfig, PublicPart, SourceConfig
from s3t.config.files import dump_config, load_config
from s3t.config.model import (
    MADE_BASES,
    AdaptConfig,
    LoraConfig,
    MakeConfig,
    ModelConfig,
    PromptConfig,
)
from s3t.config.operation import ReceiptsConfig, RepairConfig, StoreConfig
from s3t.config.partition import ClustersConfig, PartitionConfig, RiskConfig, SequencesConfig
from s3t.config.paths import anchored
from s3t.config.training import StageConfig, TrainingConfig

__all__ = [
    "MADE_BASES",
    "AdaptConfig",
    "AggregationConfig",
    "ClustersConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "LoraConfig",
    "MakeConfig",
    "ModelConfig",
    "PartitionConfig",
    "PromptConfig",
    "PublicConfig",
    "PublicPart",
    "ReceiptsConfig",
    "RepairConfig",
    "RiskConfig",
    "SequencesConfig",
    "SourceConfig",
    "StageConfig",
    "StoreConfig",
    "Task",
    "TrainingConfig",
    "anchored",
    "dump_config",
    "load_config",
]
