"""The plan: every node that a run trains, with its key and cost, and its file ``plan.json``.

    sizes, digests, sequences, base, recipe ──make_plan──► Plan ──to_json──► plan.json
                                                            ▲                    │
                                                            └─────from_json──────┘  all keys again

A node belongs to one environment (software, processor, switches), and a run may hold nodes of
several. For each (shard, prefix) the plan has one node: the one that exists, of whatever
environment, or else one of the present environment, which will train it.

Invariant: a Plan follows from its arguments alone. A file is accepted only if every node in it is
computed again from the arguments in it. A plan holds digests of slices and no sample id.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from s3t.errors import DataError, InputError, IntegrityError
from s3t.plan.lineage import node_key
from s3t.plan.sequences import Sequences
from s3t.plan.survival import expected_deletions
from s3t.plan.trie import Forest, Node, prefixes
from s3t.types import Digest, NodeKey, digest

__all__ = ["PLAN_FORMAT", "Plan", "make_plan"]

PLAN_FORMAT = 2
"""Version of ``plan.json``."""


@dataclass(frozen=True)
class Plan:
    """What a run trains.

    Attributes:
        sequences: [m], the sequences of each shard.
        sizes: [m][L], number of samples in each slot.
        digests: [m][L], digest of each slot's samples.
        base: fingerprint of the frozen base.
        recipe: everything in config and code that shapes bytes, as JSON values.
        environments: JSON values of each environment that a node has, by its digest, in the order
            in which the run used them.
        prepared: digest of the environment that made or adapted the base, and trained the public
            head and the prototypes.
        epochs: [L], passes of stage 1, 2, … L over its samples.
        cumulative: whether a stage trains on all slices of its prefix, or on the last one alone.
        stage_bytes: bytes of a node of stage 1, 2, ….
        forest: the nodes.
    """

    sequences: tuple[Sequences, ...]
    sizes: tuple[tuple[int, ...], ...]
    digests: tuple[tuple[Digest, ...], ...]
    base: Digest
    recipe: Mapping[str, Any]
    environments: Mapping[Digest, Mapping[str, Any]]
    prepared: Digest
    epochs: tuple[int, ...]
    cumulative: bool
    stage_bytes: tuple[int, ...]
    forest: Forest

    @property
    def shards(self) -> int:
        """m, number of shards."""
        return len(self.sizes)

    @property
    def slices(self) -> int:
        """L, number of slices of each shard."""
        return len(self.sizes[0])

    @property
    def budget(self) -> int:
        """B, the greatest number of sequences of a shard."""
        return max(len(sequences) for sequences in self.sequences)

    def in_environment(self, environment: Mapping[str, Any], there: Collection[NodeKey]) -> Plan:
        """The same plan, with another environment for the nodes that are not trained yet.

        Args:
            environment: JSON values of the environment.
            there: keys of the nodes that are trained already, of any environment.
        """
        return _grow(
            **self._shape(),
            environments=_distinct(*self.environments.values(), environment),
            prepared=self.prepared,
            chosen=_first_there(there, environment),
        )

    @property
    def expected_deletions(self) -> float:
        """Expected number of uniform deletions until no shard has a prefix left
        (``survival.expected_deletions``)."""
        first = sum(1 for node in self.forest.nodes if node.stage == 1)
        return expected_deletions(self.shards * self.slices, first)

    def summary(self) -> dict[str, Any]:
        """Counts and costs, as JSON values.

        ``sample_passes`` counts samples × epochs, ``bytes`` the weights of all nodes,
        ``expected_deletions`` the uniform deletions until the run is exhausted.
        """
        nodes = self.forest.nodes
        return {
            "shards": self.shards,
            "slices": self.slices,
            "budget": self.budget,
            "sequences": _lists(self.sequences),
            "nodes": len(nodes),
            "sample_passes": sum(node.passes for node in nodes),
            "bytes": sum(node.bytes for node in nodes),
            "expected_deletions": self.expected_deletions,
            "slice_sizes": _lists(self.sizes),
            "stages": [
                {
                    "stage": number,
                    "nodes": len(stage),
                    "sample_passes": sum(node.passes for node in stage),
                    "bytes": sum(node.bytes for node in stage),
                }
                for number, stage in enumerate(self.forest.stages(), start=1)
            ],
        }

    @cached_property
    def digest(self) -> Digest:
        """Digest of the whole plan, by which the ledger names it."""
        return digest(self._body())

    def to_json(self) -> str:
        """The plan as the text of ``plan.json``, with a format version and a digest of the rest."""
        body = {"digest": self.digest, **self._body()}
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from the text of ``plan.json``, and compute every node in it again.

        Raises:
            IntegrityError: not a plan, written by a newer s3t, changed since it was written, or
                holding a node that does not follow from the rest.
        """
        body = _document(text)
        try:
            listed = body["nodes"]
            of = {(node["shard"], *node["prefix"]): node["environment"] for node in listed}
            plan = _grow(
                sequences=_tuples(body["sequences"]),
                sizes=_tuples(body["sizes"]),
                digests=_tuples(body["digests"]),
                base=body["base"],
                recipe=body["recipe"],
                epochs=_each(body["epochs"], len(body["sizes"][0])),
                cumulative=body["cumulative"],
                stage_bytes=tuple(body["stage_bytes"]),
                environments=_distinct(*body["environments"]),
                prepared=body["prepared"],
                chosen=lambda shard, prefix, keys: of[shard, *prefix],
            )
        except (KeyError, TypeError, ValueError, IndexError, InputError) as error:
            raise IntegrityError(f"the plan is malformed ({error!r}): restore plan.json") from None
        if listed != _node_values(plan.forest):
            raise IntegrityError(
                "a node of the plan does not follow from its base, recipe, environment and slices: "
                "restore plan.json from a copy, or train a new run"
            )
        return plan

    def _body(self) -> dict[str, Any]:
        return {"format": PLAN_FORMAT, **self._arguments(), "nodes": _node_values(self.forest)}

    def _shape(self) -> dict[str, Any]:
        """The arguments of ``_grow`` without those about environments."""
        names = ("sequences", "sizes", "digests", "base", "recipe")
        more = ("epochs", "cumulative", "stage_bytes")
        return {name: getattr(self, name) for name in (*names, *more)}

    def _arguments(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "recipe": self.recipe,
            "environments": list(self.environments.values()),
            "prepared": self.prepared,
            "epochs": self.epochs[0] if len({*self.epochs}) == 1 else list(self.epochs),
            "cumulative": self.cumulative,
            "stage_bytes": list(self.stage_bytes),
            "sequences": _lists(self.sequences),
            "sizes": _lists(self.sizes),
            "digests": _lists(self.digests),
        }


def make_plan(
    *,
    sizes: Sequence[Sequence[int]],
    digests: Sequence[Sequence[Digest]],
    sequences: Sequence[Sequence[int]],
    base: Digest,
    recipe: Mapping[str, Any],
    epochs: int | Sequence[int],
    cumulative: bool,
    stage_bytes: Sequence[int],
    leave_out_empty: bool = False,
    environment: Mapping[str, Any] | None = None,
    before: Plan | None = None,
    there: Collection[NodeKey] = (),
) -> Plan:
    """Compute the plan of a run.

    Args:
        sizes: [m][L], number of samples in each slot.
        digests: [m][L], ``slice_digest`` of each slot.
        sequences: the sequences of each shard; all shards train the same.
        base: fingerprint of the frozen base.
        recipe: everything that shapes a node's bytes, epochs and isolation included, as JSON
            values.
        epochs: passes of a stage over its samples, of all stages or [L] of each.
        cumulative: whether stage i trains on the whole prefix or on its last slice alone.
        stage_bytes: bytes of a node of stage 1, 2, …, up to the longest sequence at least.
        leave_out_empty: leave slices without samples out of the sequences (deletions may empty
            one) instead of refusing them; a shard without any samples has no nodes.
        environment: JSON values of the environment that will train the missing nodes.
        before: the plan that this one follows; its nodes may have its environments.
        there: keys of the nodes that are trained already.

    Raises:
        DataError: a slice that a sequence trains on is empty.
        InputError: arguments whose shapes do not fit.
    """
    known = before.environments.values() if before else ()
    return _grow(
        sequences=tuple(_of_shard(sequences, row if leave_out_empty else None) for row in sizes),
        sizes=_tuples(sizes),
        digests=_tuples(digests),
        base=base,
        recipe=json.loads(json.dumps(recipe, allow_nan=False)),
        epochs=_each(epochs, max(map(len, sizes), default=0)),
        cumulative=cumulative,
        stage_bytes=tuple(stage_bytes),
        environments=_distinct(*known, environment or {}),
        prepared=before.prepared if before else digest(environment or {}),
        chosen=_first_there(there, environment or {}),
    )


def _of_shard(sequences: Sequence[Sequence[int]], sizes: Sequence[int] | None) -> Sequences:
    """The sequences of a shard; given sizes, without empty slices and without repetitions."""
    if sizes is None or all(sizes[c] for sequence in sequences for c in sequence):
        return tuple(tuple(sequence) for sequence in sequences)
    kept = (tuple(c for c in sequence if sizes[c]) for sequence in sequences)
    return tuple(dict.fromkeys(sequence for sequence in kept if sequence))


def _grow(
    *,
    sequences: tuple[Sequences, ...],
    sizes: tuple[tuple[int, ...], ...],
    digests: tuple[tuple[Digest, ...], ...],
    base: Digest,
    recipe: Mapping[str, Any],
    epochs: tuple[int, ...],
    cumulative: bool,
    stage_bytes: tuple[int, ...],
    environments: Mapping[Digest, Mapping[str, Any]],
    prepared: Digest,
    chosen: Callable[[int, tuple[int, ...], Mapping[Digest, NodeKey]], Digest],
) -> Plan:
    """Compute all nodes.

    Args:
        chosen: gives the environment of a node, from its shard, its prefix, and the key that it
            would have in each environment.
    """
    _check(sequences, sizes, digests, stage_bytes)
    recipe_digest = digest(recipe)
    nodes: list[Node] = []
    for shard, listed in enumerate(sequences):
        keys: dict[tuple[int, ...], NodeKey] = {}
        for prefix in prefixes(listed):
            parent = keys.get(prefix[:-1])
            slices = [digests[shard][c] for c in prefix]
            each = {one: node_key(base, recipe_digest, parent, slices, one) for one in environments}
            environment = chosen(shard, prefix, each)
            key = each[environment]
            trained = prefix if cumulative else prefix[-1:]
            samples = sum(sizes[shard][c] for c in trained)
            size = stage_bytes[len(prefix) - 1]
            passes = samples * epochs[len(prefix) - 1]
            nodes.append(Node(key, parent, shard, prefix, samples, passes, size, environment))
            keys[prefix] = key
    used = {prepared, *(node.environment for node in nodes)}
    return Plan(
        sequences=sequences,
        sizes=sizes,
        digests=digests,
        base=base,
        recipe=recipe,
        environments={one: values for one, values in environments.items() if one in used},
        prepared=prepared,
        epochs=epochs,
        cumulative=cumulative,
        stage_bytes=stage_bytes,
        forest=Forest(nodes),
    )


def _each(epochs: int | Sequence[int], stages: int) -> tuple[int, ...]:
    """The epochs of each stage; of a number, the same for all."""
    return (epochs,) * stages if isinstance(epochs, int) else tuple(epochs)


def _distinct(*environments: Mapping[str, Any]) -> dict[Digest, Mapping[str, Any]]:
    """Environments by their digests, without repetitions."""
    plain = (json.loads(json.dumps(one, allow_nan=False)) for one in environments)
    return {digest(one): one for one in plain}


def _first_there(
    there: Collection[NodeKey], here: Mapping[str, Any]
) -> Callable[[int, tuple[int, ...], Mapping[Digest, NodeKey]], Digest]:
    """Chooses the environment of a node that exists, the oldest of several; else the present
    one."""
    (missing,) = _distinct(here)

    def chosen(shard: int, prefix: tuple[int, ...], keys: Mapping[Digest, NodeKey]) -> Digest:
        return next((one for one, key in keys.items() if key in there), missing)

    return chosen


def _check(
    sequences: tuple[Sequences, ...],
    sizes: tuple[tuple[int, ...], ...],
    digests: tuple[tuple[Digest, ...], ...],
    stage_bytes: tuple[int, ...],
) -> None:
    shape = [len(row) for row in sizes]
    if not shape or min(shape) < 1 or len(set(shape)) > 1:
        raise InputError(f"sizes has rows of {shape}: expected m rows of L slices")
    if [len(row) for row in digests] != shape or len(sequences) != len(shape):
        raise InputError("sizes, digests and sequences do not have the same shards and slices")
    used = [sorted({c for sequence in listed for c in sequence}) for listed in sequences]
    missing = any(not found and any(row) for found, row in zip(used, sizes, strict=True))
    if missing or any(found and (found[0] < 0 or found[-1] >= shape[0]) for found in used):
        raise InputError(f"a sequence is missing or names a slice outside 0 to {shape[0] - 1}")
    longest = max((len(sequence) for listed in sequences for sequence in listed), default=0)
    if longest > len(stage_bytes):
        raise InputError(f"{longest} stages, but bytes of {len(stage_bytes)}: give them for each")
    problems = [
        f"slice {c} of shard {shard} is empty: use fewer shards or slices, or more data"
        for shard, slices in enumerate(used)
        for c in slices
        if sizes[shard][c] < 1
    ]
    if problems:
        raise DataError(problems, "partition")


def _document(text: str) -> dict[str, Any]:
    """The JSON of a plan file without its digest, after format and digest were checked."""
    try:
        body: dict[str, Any] = json.loads(text)
        version = body["format"]
        stated = body.pop("digest")
        newer = version > PLAN_FORMAT
        actual = digest(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"this is no plan ({error!r}): restore plan.json") from None
    if version != PLAN_FORMAT:
        raise IntegrityError(
            f"the plan has format {version}, this s3t reads {PLAN_FORMAT}: "
            + ("upgrade s3t" if newer else "go on with the s3t that wrote it, or train a new run")
        )
    if stated != actual:
        raise IntegrityError(
            "the plan is not what was written (its digest differs): restore plan.json from a copy"
        )
    return body


def _node_values(forest: Forest) -> list[dict[str, Any]]:
    # not ``asdict``: it copies deeply, and was half of the time in which a plan is read
    names = [field.name for field in fields(Node)]
    return [
        {name: getattr(node, name) for name in names} | {"prefix": list(node.prefix)}
        for node in forest.nodes
    ]


def _lists(value: Any) -> Any:
    """Nested tuples as nested lists, the form that JSON gives back."""
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    """Nested sequences as nested tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
