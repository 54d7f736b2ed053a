"""A run as it would be: everything that a config names, loaded and checked, nothing written.

    config ─► data ─┐
           ─► base ─┼─► Draft ─► plan
       partition ───┘    every problem of data, base and partition in one error

Invariant: a draft that exists can be trained. Whatever a config asks for that cannot be had is
reported here, together, before the first byte of a run is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from s3t.config import Config
from s3t.data import Data, load_all
from s3t.errors import ConfigError, InputError
from s3t.model.base import Base
from s3t.model.encode import ImageEncoder, TextEncoder
from s3t.model.loading import build_base, load_model
from s3t.partition import Partition, partition
from s3t.plan import Plan, make_plan, sequences_for
from s3t.training.recipe import blocks_of, recipe_of, stage_bytes
from s3t.types import Digest

__all__ = ["Draft", "draft", "preview"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Draft:
    """A run as it would be, before anything is written."""

    config: Config
    data: Data
    partition: Partition
    base: Base
    encoder: TextEncoder | ImageEncoder

    @property
    def classes(self) -> int:
        """Number of labels; 0 for a language model."""
        return len(self.data.labels)

    def plan(self, base: Base, device: torch.device, head: Digest | None) -> Plan:
        """The plan over a base that is ready, and the digest of the public head it starts from."""
        config, sequences = self.config, self.config.sequences
        return make_plan(
            sizes=self.partition.sizes(),
            digests=self.partition.digests(),
            sequences=sequences_for(
                sequences.strategy, config.partition.slices, config.budget, sequences.explicit
            ),
            base=base.fingerprint,
            recipe=recipe_of(config, base, self.encoder, self.data.labels, device, head),
            epochs=config.stage.epochs,
            cumulative=config.stage.slices == "cumulative",
            stage_bytes=stage_bytes(config, base, self.classes),
        )


def draft(config: Config) -> Draft:
    """Load and check everything that a config names; writes nothing.

    Raises:
        ConfigError: every problem of data, base and partition, together.
    """
    problems: list[str] = []
    data = _tried(problems, lambda: load_all(config))
    model = _tried(problems, lambda: _base_of(config))
    shape, parts = config.partition, None
    if data is not None:
        samples = data.private.samples
        parts = _tried(problems, lambda: partition(samples, shape.shards, shape.slices, shape.salt))
    if problems or data is None or model is None or parts is None:
        raise ConfigError(problems, "config")
    base, encoder = model
    return Draft(config, data, parts, base, encoder)


def _base_of(config: Config) -> tuple[Base, TextEncoder | ImageEncoder]:
    loaded = load_model(config)
    blocks_of(config, int(getattr(loaded.model.config, "num_hidden_layers", 0)))
    return build_base(config, loaded), loaded.encoder


def _tried(problems: list[str], load: Callable[[], Part]) -> Part | None:
    """What ``load`` gives, or None after noting its problems."""
    try:
        return load()
    except ConfigError as error:
        section = "" if error.source in ("config", "data") else f"{error.source}: "
        problems.extend(f"{section}{problem}" for problem in error.problems)
    except InputError as error:
        problems.append(str(error))
    return None


def preview(config: Config) -> dict[str, Any]:
    """What a config would train, as JSON values; writes nothing, trains nothing.

    The plan's ``summary``, the tree of one shard as lines of text, and notes on the data.

    Raises:
        ConfigError, DataError, InputError: with all problems found.
    """
    drafted = draft(config)
    plan = drafted.plan(drafted.base, torch.device("cpu"), None)
    data, notes = drafted.data, []
    if data.private.folded:
        notes.append(f"{data.private.folded} exact copies of the same subject count once")
    if data.overlap:
        notes.append(
            f"{data.overlap} private samples are in the public data too: deleting them does not "
            "remove what the public data taught"
        )
    if isinstance(drafted.encoder, TextEncoder):
        cut = drafted.encoder.encode(data.private.rows.inputs).truncated
        if cut:
            notes.append(f"{cut} texts are cut to {config.data.max_length} tokens")
    tree = [
        "  " + "   " * (node.stage - 1) + f"{node.last}  ({node.samples} samples)"
        for node in plan.forest.of_shard(0)
    ]
    return plan.summary() | {"tree": tree, "notes": notes}
