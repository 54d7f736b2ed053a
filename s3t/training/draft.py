"""A run as it would be: everything that a config names, loaded and checked, nothing written.

    config ─► data ─┐
           ─► base ─┼─► Draft ─► plan
       partition ───┘    every problem of data, base and partition in one error

Invariant: a draft that exists can be trained. Whatever a config asks for that cannot be had is
reported here, together, before the first byte of a run is written.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch

from s3t.config import Config
from s3t.data import Data, load_all
from s3t.errors import ConfigError, InputError
from s3t.model.base import Base
from s3t.model.encode import ImageEncoder, TextEncoder
from s3t.model.loading import build_base, load_model
from s3t.partition import Partition, partition, slice_rates, tier_slices
from s3t.plan import Plan, Sequences, cyclic, make_plan, prefixes
from s3t.plan.strategies.brief import Brief
from s3t.plan.strategies.registry import sequences_for
from s3t.training.recipe import blocks_of, recipe_of, stage_bytes
from s3t.types import Digest

__all__ = ["Draft", "brief_of", "draft", "preview", "sequences_of"]

Part = TypeVar("Part")

ROWS = 7
"""Equal steps of a horizon."""


@dataclass(frozen=True)
class Draft:
    """A run as it would be, before anything is written."""

    config: Config
    data: Data
    partition: Partition
    base: Base
    encoder: TextEncoder | ImageEncoder
    sequences: Sequences

    @property
    def classes(self) -> int:
        """Number of labels; 0 for a language model."""
        return len(self.data.labels)

    def plan(self, base: Base, device: torch.device, head: Digest | None) -> Plan:
        """The plan over a base that is ready, and the digest of the public head it starts from."""
        config = self.config
        return make_plan(
            sizes=self.partition.sizes(),
            digests=self.partition.digests(),
            sequences=self.sequences,
            base=base.fingerprint,
            recipe=recipe_of(config, base, self.encoder, self.data.labels, device, head),
            epochs=config.stage.epochs,
            cumulative=config.stage.slices == "cumulative",
            stage_bytes=stage_bytes(config, base, self.classes),
            leave_out_empty=True,  # where the partition has let them pass
        )


def draft(config: Config, without: Container[str] | None = None) -> Draft:
    """Load and check everything that a config names; writes nothing.

    Args:
        config: the resolved config.
        without: ids of private samples to leave out; what they leave empty is no problem then.

    Raises:
        ConfigError: every problem of data, base and partition, together.
    """
    problems: list[str] = []
    data = _tried(problems, lambda: load_all(config))
    model = _tried(problems, lambda: _base_of(config))
    shape, parts = config.partition, None
    if data is not None:
        if without is not None:
            data = replace(data, private=data.private.without(without))
        samples, tiers = data.private.samples, tier_slices(shape)
        m, slices, salt, spare = shape.shards, shape.slices, shape.salt, without is not None
        parts = _tried(
            problems, lambda: partition(samples, m, slices, salt, tiers, allow_empty=spare)
        )
    chosen = None
    if data is not None and model is not None:
        base, classes = model[0], len(data.labels)
        chosen = _tried(problems, lambda: sequences_of(config, base, classes))
    if problems or data is None or model is None or parts is None or chosen is None:
        raise ConfigError(problems, "config")
    return Draft(config, data, parts, *model, chosen)


def sequences_of(config: Config, base: Base, classes: int) -> Sequences:
    """The sequences that the config asks for, of every shard.

    Raises:
        ConfigError: a budget that cannot be met.
    """
    brief = brief_of(config, stage_bytes(config, base, classes))
    return sequences_for(config.sequences.strategy, brief, config.sequences.explicit)


def brief_of(config: Config, stage_bytes: Sequence[int]) -> Brief:
    """What the config asks of a strategy, from nothing but config and base (E3).

    Args:
        config: the config.
        stage_bytes: [L], bytes of a node of stage 1, 2, … L.

    Raises:
        ConfigError: a budget that cannot be met.
    """
    shape, asked = config.partition, config.sequences
    stages = range(1, shape.slices + 1)
    slices = [stage if config.stage.slices == "cumulative" else 1 for stage in stages]
    per_slice = (asked.samples or 0) / (shape.shards * shape.slices) * config.stage.epochs
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


def preview(config: Config, horizon: int | None = None) -> dict[str, Any]:
    """What a config would train, as JSON values; writes nothing, trains nothing.

    The plan's ``summary``, the tree of one shard as lines of text, and notes on tiers and data.

    Args:
        config: the config.
        horizon: R, deletions along which to say what serves, under ``horizon``.

    Raises:
        ConfigError, DataError, InputError: with all problems found.
    """
    drafted = draft(config)
    plan = drafted.plan(drafted.base, torch.device("cpu"), None)
    data, notes = drafted.data, list(_tier_notes(drafted))
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
    found = plan.summary() | {"tree": tree, "notes": notes}
    return found if horizon is None else found | {"horizon": _along(drafted, plan, horizon)}


def _along(drafted: Draft, plan: Plan, horizon: int) -> dict[str, Any]:
    """What the plan serves along a horizon of deletions, and the paper's cyclic plan beside it."""
    from s3t.plan.budget.horizon import along

    shape, sizes = drafted.config.partition, drafted.partition.sizes()
    rates = slice_rates(shape) or (1.0,) * shape.slices
    rotations = cyclic(shape.slices, shape.slices)
    trained = prefixes(rotations) if plan.cumulative else [p[-1:] for p in prefixes(rotations)]
    passes = plan.epochs * sum(sum(row[c] for c in prefix) for row in sizes for prefix in trained)
    moments = sorted({round(horizon * part / ROWS) for part in range(ROWS + 1)})
    ours, theirs = (
        along(shape.shards, rates, each, moments) for each in (drafted.sequences, rotations)
    )
    return {
        "requests": horizon,
        "trials": ours.trials,
        "sample_passes": sum(node.passes for node in plan.forest.nodes),
        "cyclic_sample_passes": passes,
        "moments": [
            asdict(one) | {"cyclic": asdict(other)}
            for one, other in zip(ours.moments, theirs.moments, strict=True)
        ],
    }


def _tier_notes(drafted: Draft) -> Iterator[str]:
    """One sentence per risk tier, none without tiers: its values, slices, samples and rate."""
    shape, sizes = drafted.config.partition, drafted.partition.sizes()
    if shape.risk is None:
        return
    what = "age in days" if shape.risk.as_of else repr(shape.risk.column)
    bounds = [f"{bound:.12g}" for bound in drafted.data.thresholds]
    values = [
        f"below {bounds[0]}",
        *(f"from {one} to below {next_}" for one, next_ in pairwise(bounds)),
        f"from {bounds[-1]}",
    ]
    rates = shape.risk.rates or (1.0,) * shape.risk.tiers
    first = 0
    for tier, count in enumerate(tier_slices(shape)):
        samples = sum(sum(row[first : first + count]) for row in sizes)
        slices = f"slices {first} to {first + count - 1}" if count > 1 else f"slice {first}"
        yield (
            f"risk tier {tier} ({what} {values[tier]}): {slices} of each shard, "
            f"{samples} samples, rate {rates[tier]:g}"
        )
        first += count
