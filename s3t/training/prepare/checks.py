"""A run as it would be: everything that a config names, loaded and checked, nothing written.

    config ─► data ─┐
           ─► base ─┼─► Draft ─► plan
       partition ───┘    every problem of data, base and partition in one error

Where shards are clusters, the partition follows from the base as it will be frozen: then the draft
adapts it, in memory, once all that costs less has been checked.

Invariant: a draft that exists can be trained. Whatever a config asks for that cannot be had is
reported here, together, before the first byte of a run is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from s3t.config import Config
from s3t.data import Data, load_all
from s3t.data.partition import Partition, partition, slice_rates, tier_slices
from s3t.data.rows import LabelledRows
from s3t.errors import ConfigError, DataError, InputError
from s3t.model.base import Base
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.loading import LoadedModel, build_base, load_model
from s3t.model.prototypes import Prototypes, find_prototypes, read_prototypes
from s3t.plan import Plan, Sequences, make_plan
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.registry import sequences_for
from s3t.run import RunDir
from s3t.training.node.rows import encode_rows
from s3t.training.prepare.adapt import adapt_model
from s3t.training.prepare.clusters import clustered, recipe_digest
from s3t.training.prepare.recipe import blocks_of, recipe_of, stage_bytes
from s3t.types import Digest, NodeKey, Sample

__all__ = ["Draft", "adapted", "brief_of", "draft", "sequences_of", "unspoken"]

Part = TypeVar("Part")


@dataclass(frozen=True)
class Draft:
    """A run as it would be, before anything is written.

    With ``prototypes``, of clusters, the base is the one that will be trained on, adapted if the
    config says so; without, as it was loaded.
    """

    config: Config
    data: Data
    partition: Partition
    base: Base
    encoder: TextEncoder | ImageEncoder
    sequences: Sequences
    prototypes: Prototypes | None = None

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
            epochs=config.stage.epochs,
            cumulative=config.stage.slices == "cumulative",
            stage_bytes=stage_bytes(config, base, self.classes),
            leave_out_empty=True,  # where the partition has let them pass
            environment=environment,
            before=before,
            there=there,
        )


def draft(
    config: Config,
    without: Container[str] | None = None,
    device: torch.device | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
    public_of: RunDir | None = None,
) -> Draft:
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
    data = _tried(problems, lambda: load_all(config))
    model = _tried(problems, lambda: _base_of(config))
    shape, parts, prototypes = config.partition, None, None
    if data is not None and without is not None:
        data = replace(data, private=data.private.without(without))
    spare = without is not None
    if data is not None and shape.clusters is None:
        samples = data.private.samples
        parts = _tried(problems, lambda: _parted(config, samples, shape.shards, spare))
    chosen = None
    if data is not None and model is not None:
        base, classes = model[0], len(data.labels)
        chosen = _tried(problems, lambda: sequences_of(config, base, classes, shape.shards))
        problems += unspoken(data, model[1])
    if shape.clusters is not None and not problems and data is not None and model is not None:
        given = public_of
        clustering = partial(_clustered, config, data, model[0], model[1], device, on_step, given)
        clusters = _tried(problems, clustering)
        if clusters is not None:
            data, base, prototypes = clusters
            model, samples, m = (base, model[1]), data.private.samples, len(prototypes)
            parts = _tried(problems, lambda: _parted(config, samples, m, spare))
            chosen = sequences_of(config, base, len(data.labels), m)
    if problems or data is None or model is None or parts is None or chosen is None:
        raise ConfigError(problems, "config")
    return Draft(config, data, parts, *model, chosen, prototypes)


def unspoken(data: Data, encoder: TextEncoder | ImageEncoder) -> list[str]:
    """What keeps rows of instructions from being tokenized, or leaves nothing of them to learn."""
    private, public = data.private.rows, {"validation": data.validation, "test": data.test}
    if data.adapt is not None:
        public["adapt"] = data.adapt
    sources = {"data.private": private, **{f"data.public.{name}": r for name, r in public.items()}}
    problems = []
    for where, rows in sources.items():
        if rows.numbers:
            try:
                encode_rows(encoder, rows)
            except DataError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
    return problems


def _parted(config: Config, samples: Sequence[Sample], shards: int, spare: bool) -> Partition:
    shape = config.partition
    tiers = tier_slices(shape)
    return partition(samples, shards, shape.slices, shape.salt, tiers, allow_empty=spare)


def _clustered(
    config: Config,
    data: Data,
    base: Base,
    encoder: TextEncoder | ImageEncoder,
    device: torch.device | None,
    on_step: Callable[[int, int], None],
    public_of: RunDir | None,
) -> tuple[Data, Base, Prototypes]:
    """The data, private samples with their clusters, and the base as it will be frozen."""
    assert data.adapt is not None  # the config was checked for it
    if config.model.adapt is not None:
        loaded = adapted(config, data.adapt, len(data.labels), on_step)
        base = build_base(config, loaded)
    base = base if device is None else base.to(device)
    public = encode_rows(encoder, data.adapt).rows
    if public_of is None:
        prototypes = find_prototypes(config, base, public)
    else:
        prototypes = read_prototypes(public_of.prototypes_path, base.fingerprint)
    private = clustered(data.private, prototypes, base, encoder, {})
    return replace(data, private=private), base, prototypes


def adapted(
    config: Config,
    rows: LabelledRows,
    classes: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> LoadedModel:
    """The config's model, trained on the public rows as ``model.adapt`` says."""
    adapt, loaded = config.model.adapt, load_model(config)
    assert adapt is not None
    done, total = iter(range(1, adapt.steps + 1)), adapt.steps
    public = encode_rows(loaded.encoder, rows)
    adapt_model(config, loaded.model, public, classes, lambda: on_step(next(done), total))
    return loaded


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
    slices = [stage if config.stage.slices == "cumulative" else 1 for stage in stages]
    per_slice = (asked.samples or 0) / (shards * shape.slices) * config.stage.epochs
    costs = {
        "sequences": None,
        "nodes": [1] * shape.slices,
        "slice-passes": slices,
        "sample-passes": [count * per_slice for count in slices],
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
