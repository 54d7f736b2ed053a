"""The rows to attack with: deleted samples, and rows that nothing was trained on.

    private rows ─┬─ deleted ───────────────► members   one a person, if there are enough persons
                  └─ left, in slices hit ───► neighbours
    public test rows ───────────────────────► strangers     in no other data

Invariant: a member whose content a living sample or ``data.public.adapt`` also holds is left out,
since the model may keep it; so is a stranger that anything was trained on. What is drawn depends on
the seed and on the order of ids alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from s3t.audit.audited_run import AuditedRun
from s3t.data import Data, PrivateData, load_all
from s3t.data.rows import LabelledRows
from s3t.errors import InputError
from s3t.ledger import Gone
from s3t.training.node.rows import LabelledSet, encode_rows
from s3t.training.prepare.clusters import clustered, prototypes_of
from s3t.training.prepare.load import placed
from s3t.types import Sample

__all__ = ["SuspectedRows", "find_suspected_rows"]

_PERSONS = 20
"""If at least so many persons were deleted, one row of each is drawn."""

_MOST = 1000
"""Maximum number of strangers, and of neighbours. 400 are enough for a TPR at 1 % FPR."""

_LEAST = 2
"""Minimum number of members, and of strangers (see ``membership.attack``)."""


@dataclass(frozen=True, eq=False)
class SuspectedRows:
    """Encoded rows to attack with.

    Attributes:
        members: rows of deleted samples.
        strangers: public test rows.
        neighbours: rows of samples left in the slices that lost a sample; may be empty.
        persons: whether no two members belong to the same person.
        deleted: number of samples that were deleted.
        absent: number of those that are no longer in the private data.
        known: number of those left out because a living sample or public data has their content
            too, or because they are texts of one token.
        classes: number of labels; 0 for a language model.
        adapt: public rows that the base may have been trained on; None without any.
    """

    members: LabelledSet
    strangers: LabelledSet
    neighbours: LabelledSet
    persons: bool
    deleted: int
    absent: int
    known: int
    classes: int
    adapt: LabelledSet | None


def find_suspected_rows(
    audited: AuditedRun, gone: Gone, samples: int | None, seed: int
) -> SuspectedRows:
    """Choose the rows to attack with, from the user's own data.

    Args:
        audited: the run.
        gone: its deleted samples.
        samples: maximum number of members; default: all.
        seed: seed of the draws.

    Raises:
        InputError: no deletions, or too few rows of them, or of the public test data, are left.
    """
    if samples is not None and samples < _LEAST:
        raise InputError(f"samples {samples}: leakage is measured on at least {_LEAST}")
    if not len(gone):
        raise InputError(
            f"nothing was deleted from {audited.run.root}, so there is nothing that could leak: "
            "delete samples with s3t deactivate first"
        )
    data = load_all(audited.config)
    rows = _Rows(audited, data, gone)
    persons = len({_person(data.private.samples[at]) for at in rows.members}) >= _PERSONS
    draw = np.random.default_rng(seed)
    members = _drawn(rows.members, data.private.samples, persons, samples, draw)
    neighbours = _drawn(rows.neighbours, data.private.samples, persons, _MOST, draw)
    strangers = [int(at) for at in draw.permutation(rows.strangers)[:_MOST]]
    if min(len(members), len(strangers)) < _LEAST:
        raise InputError(
            f"{len(members)} rows of deleted samples and {len(strangers)} public test rows to "
            f"compare them with: leakage is measured on at least {_LEAST} of each. Deleted rows "
            f"must still be in your own data files ({rows.absent} of {len(gone)} are not), and in "
            f"no living sample or public row ({rows.known} are)"
        )
    return SuspectedRows(
        members=_at(rows.private, members),
        strangers=_at(rows.test, sorted(strangers)),
        neighbours=_at(rows.private, neighbours),
        persons=persons
        or len({_person(data.private.samples[at]) for at in members}) == len(members),
        deleted=len(gone),
        absent=rows.absent,
        known=rows.known,
        classes=len(data.labels),
        adapt=rows.adapt,
    )


class _Rows:
    """All rows, encoded, and the row numbers that may be drawn."""

    def __init__(self, audited: AuditedRun, data: Data, gone: Gone) -> None:
        self._audited = audited
        samples = data.private.samples
        self.private, self.test = self._encoded(data.private.rows), self._encoded(data.test)
        self.adapt = None if data.adapt is None else self._encoded(data.adapt)
        deleted = [at for at, sample in enumerate(samples) if sample.id in gone]
        left = sorted({*range(len(samples))} - {*deleted})
        contents = list(_contents(self.private))
        public = set() if self.adapt is None else {*_contents(self.adapt)}
        taught = public | {contents[at] for at in left}
        able = _askable(self.private)
        self.members = [at for at in deleted if contents[at] not in taught and at in able]
        self.absent, self.known = len(gone) - len(deleted), len(deleted) - len(self.members)
        seen = public | {*contents}
        near = _neighbours(audited, data.private, {*deleted})
        self.neighbours = [at for at in near if at in able]
        able, tests = _askable(self.test), enumerate(_contents(self.test))
        self.strangers = [at for at, one in tests if one not in seen and at in able]

    def _encoded(self, rows: LabelledRows) -> LabelledSet:
        return encode_rows(self._audited.loaded.encoder, rows)


def _neighbours(audited: AuditedRun, private: PrivateData, deleted: set[int]) -> list[int]:
    """Row numbers of the samples left that share a slot with a deleted one, sorted."""
    config, loaded = audited.config, audited.loaded
    prototypes = prototypes_of(audited.run, config, loaded.base)
    samples = clustered(private, prototypes, loaded.base, loaded.encoder, {}).samples
    number = {sample.id: at for at, sample in enumerate(samples)}
    found = []
    for shard in placed(config, samples, audited.plan.shards).members:
        for part in shard:
            held = [number[sample.id] for sample in part]
            if not deleted.isdisjoint(held):
                found += [at for at in held if at not in deleted]
    return sorted(found)


def _askable(found: LabelledSet) -> set[int]:
    """Row numbers that a model can score: all but texts of one token."""
    if found.rows.mask is None or found.labels is not None:
        return {*range(len(found))}
    return {*found.rows.scored[:, 1:].any(dim=1).nonzero().flatten().tolist()}


def _contents(found: LabelledSet) -> Iterator[bytes]:
    """The bytes of each row's input, without its label and its padding."""
    rows = found.rows
    for at, values in enumerate(rows.values):
        kept = values if rows.mask is None else values[: int(rows.mask[at].sum())]
        yield kept.numpy().tobytes()


def _drawn(
    numbers: Sequence[int],
    samples: Sequence[Sample],
    persons: bool,
    most: int | None,
    draw: np.random.Generator,
) -> list[int]:
    """At most ``most`` row numbers drawn at random, one per person if asked for, sorted."""
    mixed = [int(at) for at in draw.permutation(numbers)]
    if persons:
        mixed = [*{_person(samples[at]): at for at in mixed}.values()]
    return sorted(mixed[:most])


def _person(sample: Sample) -> tuple[bool, str]:
    return sample.subject is not None, sample.subject or sample.id


def _at(found: LabelledSet, numbers: Sequence[int]) -> LabelledSet:
    index = torch.tensor(numbers, dtype=torch.int64)
    labels = None if found.labels is None else found.labels[index]
    return LabelledSet(found.rows.rows(index), labels)
