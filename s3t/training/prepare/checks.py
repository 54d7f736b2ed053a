"""A config's run, checked whole before anything is written.

    config ─► data ─┐
           ─► base ─┼─► CheckedRun ─► plan
       partition ───┘    every problem of data, base and partition in one error

Where shards are clusters, the partition follows from the base as it will be frozen. Then the base
is adapted here, in memory, once all that costs less has been checked.

Invariant: a checked run can be trained. Whatever a config asks for that cannot be had is reported
here, together, before the first byte of a run is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from s3t.config import Config
from s3t.data import Data
from s3t.data.partition import Partition, partition, slice_rates, tier_slices
from s3t.data.rows import overlap
from s3t.errors import ConfigError, DataError, InputError
from s3t.model.base import Base
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.prototypes import Prototypes, find_prototypes, read_prototypes
from s3t.plan import Plan, Sequences, make_plan
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.registry import sequences_for
from s3t.run import RunDir
from s3t.training.prepare.clusters import find_clusters, recipe_digest
from s3t.training.prepare.inputs import RunInputs
from s3t.training.prepare.recipe import recipe_of, stage_bytes
from s3t.types import Digest, NodeKey

__all__ = [
    "CheckedRun",
    "brief_of",
    "check_run",
    "sequences_of",
    "settle_weights",
    "unencodable",
]

Part = TypeVar("Part")

_STEEP = 0.1
"""A learning rate over this is told of."""


@dataclass(frozen=True)
class CheckedRun:
    """A run as it would be, before anything is written.

    Attributes:
        inputs: its data and base. With ``prototypes`` the base is the one that nodes are trained
            on, adapted if the config says so; without, it is as it was loaded.
        partition: the private samples in their slices.
        sequences: of slices, for every shard.
        prototypes: of the clusters, if shards are clusters.
        notes: sentences on what the config does not get.
    """

    inputs: RunInputs
    partition: Partition
    sequences: Sequences
    prototypes: Prototypes | None = None
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> Config:
        """The config that was checked."""
        return self.inputs.config

    @property
    def data(self) -> Data:
        """All data, without the samples left out."""
        return self.inputs.data

    @property
    def base(self) -> Base:
        """The base, see ``inputs``."""
        return self.inputs.base

    @property
    def encoder(self) -> TextEncoder | ImageEncoder:
        """The base's encoder of rows."""
        return self.inputs.encoder

    @property
    def classes(self) -> int:
        """Number of labels; 0 for a language model."""
        return len(self.data.labels)

    def plan(
        self,
        base: Base,
        head: Digest | None,
        environment: Mapping[str, Any] | None = None,
        before: Plan | None = None,
        there: Collection[NodeKey] = (),
    ) -> Plan:
        """The plan over a base that is ready.

        Args:
            base: as it will be frozen.
            head: digest of the public head from which stage 1 starts, if it does.
            environment: where what is missing will be trained; None for a plan that is looked at.
            before, there: the plan that this one follows, and the nodes that are trained already.
        """
        config, prototypes = self.config, recipe_digest(self.prototypes)
        labels = self.data.labels
        return make_plan(
            sizes=self.partition.sizes(),
            digests=self.partition.digests(),
            sequences=self.sequences,
            base=base.fingerprint,
            recipe=recipe_of(config, base, self.encoder, labels, head, prototypes),
            epochs=[config.stage.epochs_of(i + 1) for i in range(config.partition.slices)],
            cumulative=config.stage.cumulative,
            stage_bytes=stage_bytes(config, base, self.classes),
            leave_out_empty=True,  # where the partition has let them pass
            environment=environment,
            before=before,
            there=there,
        )


def check_run(
    config: Config,
    without: Container[str] | None = None,
    device: torch.device | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    public_of: RunDir | None = None,
) -> CheckedRun:
    """Load and check everything that a config names; writes nothing.

    Args:
        config: the resolved config.
        without: ids of private samples to leave out; what they leave empty is no problem then.
        device: what nodes will be trained on, for the features of clusters; default: the CPU.
        on_step: told of the steps of the base's adaptation, where clusters need it.
        public_of: a run whose prototypes are taken; by default they are made.

    Raises:
        ConfigError: every problem of data, base and partition, together.
    """
    problems: list[str] = []
    inputs, shape, spare = RunInputs(config), config.partition, without is not None
    data = _tried(problems, lambda: inputs.data)
    if data is not None and without is not None:
        inputs.leave_out(without)
    notes = () if data is None else _tried(problems, lambda: settle_weights(inputs)) or ()
    if data is not None and data.cut is not None:
        notes = (data.cut.sentence(), *notes)
    notes = (*notes, *_steep(config))
    base = _tried(problems, lambda: inputs.base)
    parts, chosen, prototypes = None, None, None
    if data is not None and shape.clusters is None:
        parts = _tried(problems, lambda: _parted(inputs, shape.shards, spare))
    if data is not None and base is not None:
        classes = len(data.labels)
        chosen = _tried(problems, lambda: sequences_of(config, base, classes, shape.shards))
        problems += unencodable(inputs)
    if base is not None:
        problems += _too_wide(config, base)
    if shape.clusters is not None and not problems:
        clustering = partial(_clustered, inputs, device, on_step, public_of)
        prototypes = _tried(problems, clustering)
        if prototypes is not None:
            m = len(prototypes)
            parts = _tried(problems, lambda: _parted(inputs, m, spare))
            chosen = sequences_of(config, inputs.base, len(inputs.data.labels), m)
    if problems or parts is None or chosen is None:
        raise ConfigError(problems, "config")
    return CheckedRun(inputs, parts, chosen, prototypes, notes)


def settle_weights(inputs: RunInputs) -> tuple[str, ...]:
    """Take uniform weights in place of public ones that are only the default, where those cannot be
    fitted: on rows that the base and its head have learnt they would say nothing of the shards.

    Returns:
        a sentence on what the config does not get, if anything.

    Raises:
        ConfigError: the config asks for public weights itself.
    """
    how, adapt, validation = inputs.config.aggregation, inputs.data.adapt, inputs.data.validation
    if how.weights != "public" or (adapt is None and inputs.config.task == "causal-lm"):
        return ()
    if adapt is None:
        return ("the base gets no weight, and is no floor: its head needs data.public.adapt",)
    count = overlap(validation, adapt)
    if not count:
        return ()
    what = f"{count} of {len(validation)} rows of data.public.validation are in .adapt too"
    if "weights" in how.model_fields_set:
        raise ConfigError(
            [
                f"aggregation.weights 'public' cannot be fitted, since {what}: divide the public "
                "rows, or use uniform or data"
            ],
            "config",
        )
    uniform = how.model_copy(update={"weights": "uniform"})
    inputs.config = inputs.config.model_copy(update={"aggregation": uniform})
    return (f"aggregation.weights is uniform, not public, since {what}",)


def unencodable(inputs: RunInputs) -> list[str]:
    """What keeps rows of instructions from being tokenized, or leaves nothing of them to learn."""
    data = inputs.data
    public = {"validation": data.validation, "test": data.test}
    if data.adapt is not None:
        public["adapt"] = data.adapt
    sources = {f"data.public.{name}": rows for name, rows in public.items()}
    problems = []
    for where, rows in {"data.private": data.private.rows, **sources}.items():
        if rows.numbers:
            try:
                inputs.encoded(rows)
            except DataError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    return problems


def _steep(config: Config) -> Iterator[str]:
    """A sentence on each learning rate with which training is likely to diverge."""
    rates = {}
    if config.stage.optimizer == "adamw":
        rates["stage.learning_rate"] = config.stage.learning_rate
    if config.model.adapt is not None:
        rates["model.adapt.learning_rate"] = config.model.adapt.learning_rate
    for key, rate in rates.items():
        if rate > _STEEP:
            yield f"{key} {rate:g} is high for AdamW (1e-4 to 1e-2 is usual): training may diverge"


def _too_wide(config: Config, base: Base) -> list[str]:
    """A rank that no map of the base can use."""
    widest = max((min(one.inputs, one.outputs) for one in base.targets), default=None)
    if widest is None or config.lora.rank <= widest:
        return []
    return [
        f"lora.rank {config.lora.rank} is over {widest}, the width of the base's widest map: a "
        "rank over the width learns nothing more"
    ]


def _parted(inputs: RunInputs, shards: int, spare: bool) -> Partition:
    shape, samples = inputs.config.partition, inputs.data.private.samples
    tiers = tier_slices(shape)
    return partition(samples, shards, shape.slices, shape.salt, tiers, allow_empty=spare)


def _clustered(
    inputs: RunInputs,
    device: torch.device | None,
    on_step: Callable[[int, int], None],
    public_of: RunDir | None,
) -> Prototypes:
    """Give the private samples their clusters, over the base as it will be frozen."""
    config = inputs.config
    if config.model.adapt is not None:
        inputs.adapt_base(on_step)
    base = inputs.base if device is None else inputs.base.to(device)
    if public_of is None:
        prototypes = find_prototypes(config, base, inputs.adapt_rows.rows)
    else:
        prototypes = read_prototypes(public_of.prototypes_path, base.fingerprint)
    find_clusters(inputs, prototypes, {})
    return prototypes


def sequences_of(config: Config, base: Base, classes: int, shards: int) -> Sequences:
    """The sequences that the config asks for, of every one of m shards.

    Raises:
        ConfigError: a budget that cannot be met.
    """
    brief = brief_of(config, stage_bytes(config, base, classes), shards)
    return sequences_for(config.sequences.strategy, brief, config.sequences.explicit)


def brief_of(config: Config, stage_bytes: Sequence[int], shards: int) -> Brief:
    """What the config asks of a strategy, from nothing but config and base (E3).

    Args:
        config: the config.
        stage_bytes: [L], bytes of a node of stage 1, 2, … L.
        shards: m, where clusters may be fewer than ``partition.shards``.

    Raises:
        ConfigError: a budget that cannot be met.
    """
    shape, asked = config.partition, config.sequences
    stages = range(1, shape.slices + 1)
    slices = [stage if config.stage.cumulative else 1 for stage in stages]
    epochs = [config.stage.epochs_of(stage) for stage in stages]
    samples = (asked.samples or 0) / (shards * shape.slices)
    passes = [count * each for count, each in zip(slices, epochs, strict=True)]
    costs = {
        "sequences": None,
        "nodes": [1] * shape.slices,
        "slice-passes": [each / max(epochs) for each in passes],
        "sample-passes": [each * samples for each in passes],
        "bytes": stage_bytes,
    }[asked.unit]
    return Brief(
        slices=shape.slices,
        budget=config.budget,
        costs=None if costs is None else tuple(float(cost) for cost in costs),
        rates=slice_rates(shape) or (),
        utility=asked.utility or (),
        horizon=asked.horizon,
    )


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
