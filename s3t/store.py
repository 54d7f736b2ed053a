"""Content-addressed node weights: ``nodes/<key>.safetensors``, nothing else.

    write: tensors ─► .<key>.<pid>.tmp ─► fsync ─► rename ─► fsync of the folder
    read:  header ─► the key follows from the lineage ─► the digest follows from the tensors

Invariant: a file that ``read`` returns is whole, was written for this very key, and its lineage
proves the key. Metadata is one JSON entry with a digest of itself, because safetensors does not
keep the order of several and bytes must not depend on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.errors import DamagedNodeError
from s3t.plan.lineage import FORMAT, node_key
from s3t.types import Digest, NodeKey, digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NodeMeta", "NodeStore", "tensors_digest", "write_durably"]

_ENTRY = "s3t"
_CHECK = "check"
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
        root: the folder ``nodes`` of the run; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: NodeKey) -> Path:
        """Where the node lies, or would lie."""
        return self.root / f"{key}.safetensors"

    def has(self, key: NodeKey) -> bool:
        """Whether the node is there (not whether it is sound: ``read`` tells)."""
        return self.path(key).is_file()

    def keys(self) -> frozenset[NodeKey]:
        """Keys of all nodes there."""
        return frozenset(NodeKey(path.stem) for path in self.root.glob("*.safetensors"))

    def write(self, meta: NodeMeta, tensors: Mapping[str, Tensor]) -> None:
        """Publish a node: it is there whole, durably, or not at all."""
        from safetensors.torch import save

        whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        entry = asdict(meta) | {"weights": tensors_digest(whole)}
        text = json.dumps(entry | {_CHECK: digest(entry)}, sort_keys=True, separators=(",", ":"))
        write_durably(self.path(meta.key), save(whole, metadata={_ENTRY: text}))

    def meta(self, key: NodeKey) -> NodeMeta:
        """The node's metadata; proves the lineage, not the tensors.

        Raises:
            DamagedNodeError: missing, unreadable, or written for another key.
        """
        try:
            with self.path(key).open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _HEADER_LIMIT:
                    raise ValueError("header too long")
                header = json.loads(file.read(length))
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

    def read(self, key: NodeKey) -> tuple[NodeMeta, dict[str, Tensor]]:
        """The node's metadata and tensors, verified.

        Raises:
            DamagedNodeError: missing, damaged, or written for another key.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        meta = self.meta(key)
        try:
            tensors = load(self.path(key).read_bytes())
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise self._damaged(key, f"cannot be read ({error})") from None
        if tensors_digest(tensors) != meta.weights:
            raise self._damaged(key, "has tensors that its digest does not match")
        return meta, tensors

    def sweep(self) -> int:
        """Remove what a killed writer left half-written; returns how many files."""
        stale = [*self.root.glob(".*.tmp")]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def _damaged(self, key: NodeKey, what: str) -> DamagedNodeError:
        return DamagedNodeError(key, what, str(self.path(key)))


def tensors_digest(tensors: Mapping[str, Tensor]) -> Digest:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return Digest(state.hexdigest())


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _parse_meta(entry: dict[str, Any]) -> NodeMeta:
    check = entry.pop(_CHECK)
    if check != digest(entry):
        raise ValueError("its metadata are not what was written")
    entry["slices"] = tuple(entry["slices"])
    entry["prefix"] = tuple(entry["prefix"])
    return NodeMeta(**entry)
