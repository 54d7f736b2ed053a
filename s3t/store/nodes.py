"""Content-addressed node weights: ``nodes/<key>.safetensors``, nothing else.

    of the run         RUN/nodes/<key>.safetensors
    at ``store.url``   URL/<key>.safetensors  ──read──►  RUN/nodes/<key>.safetensors, a copy

    write: tensors ─► whole file ─► put at the URL, if there is one ─► file of the run
    read:  header ─► the key follows from the lineage ─► the digest follows from the tensors

Invariant: a file that ``read`` returns is whole, was written for this very key, and its lineage
proves the key. With a URL the files there are the truth; the copies are a cache, all in one
folder, and one that does not prove its key is fetched again. Metadata is one JSON entry with a
digest of itself, because safetensors does not keep the order of several and bytes must not depend
on it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.errors import DamagedNodeError
from s3t.plan.lineage import FORMAT, node_key
from s3t.store.depot import Depot
from s3t.store.durable import write_durably
from s3t.types import Digest, NodeKey, digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NodeMeta", "NodeStore", "tensors_digest"]

_ENTRY = "s3t"
_CHECK = "check"
_SUFFIX = ".safetensors"
_HEAD = 16 * 2**10
"""Bytes read of a node for its metadata: the header of most is shorter."""
_HEADER_LIMIT = 64 * 2**20
_MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class NodeMeta:
    """What a node file says of itself.

    Attributes:
        key: the node's key, also its file name.
        parent: key of the parent, None at stage 1.
        base: fingerprint of the frozen base.
        recipe: digest of the recipe.
        slices: digests of the slices of the prefix, in order.
        shard: number of the shard.
        prefix: slice numbers of the prefix, in order.
        score: score on the public validation data, higher is better.
        weights: digest of the tensors, see ``tensors_digest``.
        format: version of the node format.
    """

    key: NodeKey
    parent: NodeKey | None
    base: Digest
    recipe: Digest
    slices: tuple[Digest, ...]
    shard: int
    prefix: tuple[int, ...]
    score: float
    weights: Digest = Digest("")
    format: int = FORMAT


class NodeStore:
    """The nodes of one run.

    Args:
        root: the folder ``nodes`` of the run, made when first written to; with ``depot`` it holds
            the copies of what lies there, and nothing else does.
        depot: where the nodes lie that all machines share; None if ``root`` is that place.
    """

    def __init__(self, root: Path, depot: Depot | None = None) -> None:
        self.root, self.depot = root, depot

    def path(self, key: NodeKey) -> Path:
        """Where the node, or its copy, lies on this machine, or would lie."""
        return self.root / _name(key)

    def has(self, key: NodeKey) -> bool:
        """Whether the node is there (not whether it is sound: ``read`` tells)."""
        return self.path(key).is_file() if self.depot is None else self.depot.has(_name(key))

    def keys(self) -> frozenset[NodeKey]:
        """Keys of all nodes there, by one listing."""
        if self.depot is None:
            return frozenset(NodeKey(path.stem) for path in self.root.glob(f"*{_SUFFIX}"))
        names = self.depot.names()
        return frozenset(
            NodeKey(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)
        )

    def write(self, meta: NodeMeta, tensors: Mapping[str, Tensor]) -> None:
        """Publish a node: it is there whole, durably, or not at all."""
        from safetensors.torch import save

        whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        entry = asdict(meta) | {"weights": tensors_digest(whole)}
        text = json.dumps(entry | {_CHECK: digest(entry)}, sort_keys=True, separators=(",", ":"))
        content = save(whole, metadata={_ENTRY: text})
        if self.depot is not None:
            self.depot.put(_name(meta.key), content)
        write_durably(self.path(meta.key), content)

    def meta(self, key: NodeKey) -> NodeMeta:
        """The node's metadata; proves the lineage, not the tensors.

        Raises:
            DamagedNodeError: missing, unreadable, or written for another key.
            S3TError: the URL cannot be reached.
        """
        try:
            return self._meta(key, lambda first: _first(self.path(key), first))
        except DamagedNodeError:
            if self.depot is None:
                raise
        depot = self.depot
        return self._meta(key, lambda first: depot.get(_name(key), first))

    def read(self, key: NodeKey) -> tuple[NodeMeta, dict[str, Tensor]]:
        """The node's metadata and tensors, verified.

        Raises:
            DamagedNodeError: missing, damaged, or written for another key.
            S3TError: the URL cannot be reached.
        """
        try:
            return self._read(key, self.path(key).read_bytes)[:2]
        except DamagedNodeError:
            if self.depot is None:
                raise
        depot = self.depot
        meta, tensors, content = self._read(key, lambda: depot.get(_name(key)))
        write_durably(self.path(key), content)
        return meta, tensors

    def content(self, key: NodeKey) -> bytes:
        """The node's bytes as they lie there, proved or not."""
        return self.path(key).read_bytes() if self.depot is None else self.depot.get(_name(key))

    def sweep(self, seconds: float = 0) -> int:
        """Remove what killed writers left half-written; returns how many files.

        Args:
            seconds: leave files alone that are younger, since another process may be at them.
        """
        shared = None if self.depot is None else self.depot.folder
        limit, swept = time.time() - seconds, 0
        for folder in {self.root, shared or self.root}:
            for path in folder.glob(".*.tmp"):
                with suppress(FileNotFoundError):  # just finished, by whoever is at it
                    if path.stat().st_mtime <= limit:
                        path.unlink()
                        swept += 1
        return swept

    def _meta(self, key: NodeKey, head: Callable[[int], bytes]) -> NodeMeta:
        """The metadata, proved, of a node whose first so many bytes ``head`` gives."""
        try:
            content = head(_HEAD)
            (length,) = struct.unpack("<Q", content[:8])
            if length > _HEADER_LIMIT:
                raise ValueError("header too long")
            if 8 + length > len(content):
                content = head(8 + length)
            header = json.loads(content[8 : 8 + length])
            meta = _parse_meta(json.loads(header["__metadata__"][_ENTRY]))
        except FileNotFoundError:
            raise self._damaged(key, "is missing") from None
        except (OSError, *_MALFORMED) as error:
            raise self._damaged(key, f"cannot be read ({error})") from None
        if meta.format != FORMAT:
            raise self._damaged(key, f"has format {meta.format}, not {FORMAT}")
        if meta.key != key or key != node_key(meta.base, meta.recipe, meta.parent, meta.slices):
            raise self._damaged(key, "holds another lineage than its name says")
        return meta

    def _read(
        self, key: NodeKey, whole: Callable[[], bytes]
    ) -> tuple[NodeMeta, dict[str, Tensor], bytes]:
        """Metadata and tensors, verified, of a node whose bytes ``whole`` gives; and those."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = whole()
        except FileNotFoundError:
            raise self._damaged(key, "is missing") from None
        except OSError as error:
            raise self._damaged(key, f"cannot be read ({error})") from None
        meta = self._meta(key, lambda first: content[:first])
        try:
            tensors = load(content)
        except (ValueError, KeyError, SafetensorError) as error:
            raise self._damaged(key, f"cannot be read ({error})") from None
        if tensors_digest(tensors) != meta.weights:
            raise self._damaged(key, "has tensors that its digest does not match")
        return meta, tensors, content

    def _damaged(self, key: NodeKey, what: str) -> DamagedNodeError:
        where = str(self.path(key)) if self.depot is None else self.depot.where(_name(key))
        return DamagedNodeError(key, what, where)


def tensors_digest(tensors: Mapping[str, Tensor]) -> Digest:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return Digest(state.hexdigest())


def _name(key: NodeKey) -> str:
    return f"{key}{_SUFFIX}"


def _first(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _parse_meta(entry: dict[str, Any]) -> NodeMeta:
    check = entry.pop(_CHECK)
    if check != digest(entry):
        raise ValueError("its metadata are not what was written")
    entry["slices"] = tuple(entry["slices"])
    entry["prefix"] = tuple(entry["prefix"])
    return NodeMeta(**entry)
