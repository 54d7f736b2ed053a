"""Prototypes of clusters of like samples (LMEraser, arXiv 2404.11056), and the nearest of a row.

    data.public.adapt ──frozen base──► features ──Ward's tree, cut at m──► prototypes 0 … m−1
                                                     └─ nearer than ``distance``: one
    a row ──frozen base──► its features ──nearest prototype──► its shard

Features of a row: the mean over its tokens of the hidden states that enter ``layer`` (after the
last layer: through the last norm), at unit length. Where rows are instructions the mean is over the
prompt's tokens alone, because inputs are routed by their prompts. A prototype is the mean of the
features of a cluster, at unit length again.

Ward's linkage makes clusters, and so shards, of similar size; average linkage splits off outliers,
which would make shards of a few samples. Ward's heights grow with the number of rows, so
``distance`` is compared with the distance of two prototypes instead, between 0 and 2.

Invariants: no private row influences a prototype (E5); in the authors' method it does. A row's
features come from passes of one shape, 32 rows of its own length, whatever the other rows are, so
that its cluster is a function of the row, the base and the prototypes (E3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.cluster.hierarchy import cut_tree, linkage
from torch import Tensor
from torch.nn import functional

from s3t.config import Config
from s3t.errors import DataError, InputError, IntegrityError
from s3t.model.base import Base
from s3t.model.determinism import RowByRow, one_thread
from s3t.model.inputs.encoders import Encoded, padded_lengths
from s3t.store import tensors_digest, write_durably
from s3t.types import Digest, digest

__all__ = [
    "Prototypes",
    "clusters_of",
    "features_of",
    "find_prototypes",
    "leading",
    "pooled",
    "read_prototypes",
    "write_prototypes",
]

_CHUNK = 32
"""Rows of one pass; always full, so that every pass has one shape for each length."""

_MOST_ROWS = 2048
"""Public rows that are clustered at most: the tree takes the square of them in memory."""

_NAME = "prototypes"


@dataclass(frozen=True, eq=False)
class Prototypes:
    """One unit vector for each cluster.

    Attributes:
        layer: features are of the hidden states that enter it; the base's depth: after the last.
        centres: unit vectors [m, H], float32, on the CPU.
        rows: public rows of each cluster.
    """

    layer: int
    centres: Tensor
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.centres)

    @cached_property
    def digest(self) -> Digest:
        """Digest of layer and vectors, which decide the cluster of a row."""
        return digest({"layer": self.layer, "weights": tensors_digest({_NAME: self.centres})})

    def nearest(self, features: Tensor) -> Tensor:
        """Number of the nearest prototype of each unit vector [n, H]; of equal ones the first."""
        centres = self.centres.to(features.device)
        # a sum for each pair: in a matrix product a row's rounding would depend on other rows
        each = [
            (part.unsqueeze(1) * centres).sum(dim=2).argmax(dim=1) for part in features.split(32)
        ]
        return torch.cat(each) if each else features.new_zeros(0, dtype=torch.int64)


def pooled(base: Base, hidden: Tensor, layer: int, mask: Tensor | None) -> Tensor:
    """Features [n, H] of rows, from the hidden states [n, T, H] that enter a layer.

    Args:
        base: the frozen base.
        hidden: of all tokens.
        layer: which; the base's depth for those after the last layer.
        mask: the tokens that count [n, T], at least one of each row; None for all.
    """
    states = (base.finish(hidden) if layer == base.depth else hidden).float()
    if mask is None:
        return functional.normalize(states.mean(dim=1), dim=1)
    real = mask.to(states.dtype).unsqueeze(2)
    return functional.normalize((states * real).sum(dim=1), dim=1)


def leading(rows: Encoded) -> Tensor | None:
    """Mask [n, T] of the tokens by which a row is put into a cluster: those before the first
    that is to be learnt, if there are any; else all real ones. None for images."""
    if rows.mask is None or rows.targets is None:
        return rows.mask
    before = rows.mask * (rows.targets.cumsum(dim=1) == 0)
    return torch.where(before.any(dim=1, keepdim=True), before, rows.mask)


def clusters_of(base: Base, rows: Encoded, prototypes: Prototypes) -> list[int]:
    """Number of the cluster that each row is in."""
    found = torch.zeros(len(rows), dtype=torch.int64)
    for index, features in _features(base, rows, prototypes.layer):
        found[index] = prototypes.nearest(features).cpu()
    return found.tolist()


def features_of(base: Base, rows: Encoded, layer: int) -> Tensor:
    """Features of rows, unit vectors [n, H] on the CPU."""
    found = torch.zeros((len(rows), base.hidden_size))
    for index, features in _features(base, rows, layer):
        found[index] = features.cpu()
    return found


def find_prototypes(config: Config, base: Base, public: Encoded) -> Prototypes:
    """The prototypes that the config asks for.

    Of more than 2,048 public rows those count whose digests, under the run's seed, are the
    smallest. Copies count once, and the order of the rows does not count.

    Raises:
        InputError: the base does not have the layer.
        DataError: fewer different public rows than clusters.
    """
    shape, asked = config.partition, config.partition.clusters
    assert asked is not None
    layer = base.depth if asked.layer is None else asked.layer
    if layer > base.depth:
        raise InputError(
            f"partition.clusters.layer {layer} is over the {base.depth} layers of the base: leave "
            "it out for the features after the last"
        )
    rows = public.rows(torch.tensor(_drawn(public, config.seed), dtype=torch.int64))
    if len(rows) < shape.shards:
        raise DataError(
            [
                f"data.public.adapt has {len(rows)} different rows for {shape.shards} clusters: "
                "give more of them, or fewer partition.shards"
            ],
            "partition",
        )
    points = features_of(base, rows, layer).double().numpy()
    groups = _merged(points, _ward(points, shape.shards), asked.distance)
    centres = np.stack([_unit(points[group].sum(axis=0)) for group in groups])
    return Prototypes(
        layer, torch.from_numpy(centres).float().contiguous(), tuple(map(len, groups))
    )


def write_prototypes(path: Path, prototypes: Prototypes, base: Digest) -> None:
    """Keep prototypes, with a proof of themselves and of the base that they are of."""
    tensors = {
        _NAME: prototypes.centres,
        "rows": torch.tensor(prototypes.rows),
        "layer": torch.tensor(prototypes.layer),
    }
    write_durably(path, save(tensors, metadata={"proof": _proof(prototypes, base)}))


def read_prototypes(path: Path, base: Digest) -> Prototypes:
    """The prototypes that ``write_prototypes`` kept, to the last bit.

    Raises:
        IntegrityError: there are none, they are damaged, or they belong to another base.
    """
    try:
        with safe_open(path, framework="pt") as file:
            rows = tuple(file.get_tensor("rows").tolist())
            found = Prototypes(int(file.get_tensor("layer")), file.get_tensor(_NAME), rows)
            if (file.metadata() or {}).get("proof") == _proof(found, base):
                return found
        reason = "they are damaged, or belong to another base"
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = str(error)
    raise IntegrityError(
        f"the prototypes {path} cannot be used ({reason}): restore them; they are public, and "
        "no sample can be placed or routed without them"
    )


def _proof(prototypes: Prototypes, base: Digest) -> Digest:
    return digest({"base": base, "prototypes": prototypes.digest, "rows": list(prototypes.rows)})


@torch.no_grad()
def _features(base: Base, rows: Encoded, layer: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers [k] of some rows, and their unit vectors [k, H]."""

    def run(part: Encoded) -> Tensor:
        hidden = base.run(base.start(part), 0, layer, base.attention(part.mask))
        return pooled(base, hidden, layer, leading(part))

    with one_thread(base.device):
        each = RowByRow(run, {})
        for index, length in _chunks(rows):
            part = rows.rows(index).first(length).to(base.device)
            tokens = base.tokens(part)
            yield index, each(part, tokens, base.rounds_alike(tokens))


def _chunks(rows: Encoded) -> Iterator[tuple[Tensor, int]]:
    """Numbers of up to 32 rows of one length, and that length; 0 for images."""
    numbers = torch.arange(len(rows))
    if rows.mask is None:
        for part in numbers.split(_CHUNK) if len(rows) else ():
            yield part, 0
        return
    lengths = padded_lengths(rows.mask)
    for length in sorted(set(lengths.tolist())):
        for part in numbers[lengths == length].split(_CHUNK):
            yield part, length


def _drawn(public: Encoded, seed: int) -> list[int]:
    """Numbers of the rows that are clustered, in the order of their digests."""
    first: dict[bytes, int] = {}
    for number, values in enumerate(public.values):
        kept = values if public.mask is None else values[: int(public.mask[number].sum())]
        state = hashlib.sha256(f"{seed}\0".encode())
        state.update(kept.contiguous().numpy().tobytes())
        first.setdefault(state.digest(), number)
    return [first[key] for key in sorted(first)[:_MOST_ROWS]]


def _ward(points: np.ndarray, count: int) -> list[np.ndarray]:
    """The numbers of the points of each of ``count`` clusters, by their first point."""
    if count == 1:
        return [np.arange(len(points))]
    label = cut_tree(linkage(points, "ward"), n_clusters=count)[:, 0]
    groups = [np.flatnonzero(label == number) for number in range(count)]
    return sorted(groups, key=lambda group: int(group[0]))


def _merged(
    points: np.ndarray, groups: list[np.ndarray], distance: float | None
) -> list[np.ndarray]:
    """The groups, the two nearest made one as long as their prototypes are nearer than that."""
    while distance is not None and len(groups) > 1:
        centres = np.stack([_unit(points[group].sum(axis=0)) for group in groups])
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
        apart[np.tril_indices(len(groups))] = np.inf
        one, other = (int(at) for at in np.unravel_index(int(apart.argmin()), apart.shape))
        if apart[one, other] >= distance:
            break
        together = np.sort(np.concatenate([groups[one], groups[other]]))
        rest = [group for at, group in enumerate(groups) if at not in (one, other)]
        groups = sorted([*rest, together], key=lambda group: int(group[0]))
    return groups


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    found: np.ndarray = vector / length if length else vector
    return found
