"""The cluster of each private sample, while a run is checked, opened or planned again.

    data.public.adapt ──check_run──► prototypes ──► RUN/prototypes.safetensors, digest in the recipe
    places in the ledger ──of samples that it knows──┐
    rows ──frozen base──► features ──of all others───┴──► samples, each with its cluster

A cluster that the ledger knows is not computed again. The same row would give the same cluster, and
the ledger proves that the row is the same when it is registered. ``s3t audit --retrain`` computes
all of them again.

Invariant: without ``partition.clusters`` nothing here reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from s3t.config import Config
from s3t.data import PrivateData
from s3t.ledger import Ledger
from s3t.model.base import Base
from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
from s3t.model.prototypes import Prototypes, clusters_of, read_prototypes
from s3t.run import RunDir
from s3t.training.node.rows import LabelledSet, encode_rows
from s3t.training.prepare.inputs import RunInputs
from s3t.types import Digest, SampleId

__all__ = ["clustered", "find_clusters", "known_clusters", "prototypes_of", "recipe_digest"]


def prototypes_of(run: RunDir, config: Config, base: Base) -> Prototypes | None:
    """The prototypes that a run keeps; None without ``partition.clusters``.

    Raises:
        IntegrityError: they are missing, damaged, or of another base.
    """
    if config.partition.clusters is None:
        return None
    return read_prototypes(run.prototypes_path, base.fingerprint)


def recipe_digest(prototypes: Prototypes | None) -> Digest | None:
    """What a recipe names of them."""
    return None if prototypes is None else prototypes.digest


def known_clusters(config: Config, ledger: Ledger) -> dict[SampleId, int]:
    """Clusters of the samples that the ledger holds; empty without ``partition.clusters``."""
    if config.partition.clusters is None:
        return {}
    return {entry.sample_id: entry.shard for entry in ledger.samples()}


def clustered(
    private: PrivateData,
    prototypes: Prototypes | None,
    base: Base,
    encoder: TextEncoder | ImageEncoder,
    known: Mapping[SampleId, int],
) -> PrivateData:
    """The private samples, each with its cluster; as they are without prototypes.

    Args:
        private: samples and rows.
        prototypes: of the run.
        base: the frozen base, on the device on which nodes are trained.
        encoder: of the base.
        known: clusters that need not be computed.
    """
    return _clustered(private, prototypes, base, known, lambda: encode_rows(encoder, private.rows))


def find_clusters(
    inputs: RunInputs, prototypes: Prototypes | None, known: Mapping[SampleId, int]
) -> None:
    """Give each private sample of a run's inputs its cluster, see ``clustered``."""
    private = inputs.data.private
    found = _clustered(
        private, prototypes, inputs.base, known, lambda: inputs.encoded(private.rows)
    )
    inputs.replace_private(found)


def _clustered(
    private: PrivateData,
    prototypes: Prototypes | None,
    base: Base,
    known: Mapping[SampleId, int],
    encoded: Callable[[], LabelledSet],
) -> PrivateData:
    if prototypes is None:
        return private
    samples = private.samples
    new = [at for at, sample in enumerate(samples) if sample.id not in known]
    found = clusters_of(base, encoded().rows.rows(torch.tensor(new)), prototypes) if new else []
    numbers = {samples[at].id: number for at, number in zip(new, found, strict=True)}
    each = (
        replace(one, cluster=numbers[one.id] if one.id in numbers else known[one.id])
        for one in samples
    )
    return replace(private, samples=tuple(each))
