"""The plain bytes of a node: a safetensors file with one entry of metadata.

    head   8 bytes: length of the header; the header, JSON: metadata, names, types, shapes
    body   the tensors

Invariant: the bytes follow from metadata and tensors alone. Metadata is one JSON entry with a
digest of itself; safetensors does not keep the order of several entries, which would change the
bytes. Malformed bytes raise one of ``MALFORMED``. This module does not know where the bytes lie.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from s3t.plan.lineage import FORMAT
from s3t.types import Digest, NodeKey, digest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "HEAD_LIMIT",
    "MALFORMED",
    "NodeMeta",
    "head_of",
    "meta_of",
    "pack",
    "tensors_digest",
    "tensors_of",
]

MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error)
"""Errors that reading malformed bytes may raise."""

HEAD_LIMIT = 64 * 2**20
"""Greatest size of a head, in bytes."""

_ENTRY = "s3t"
_CHECK = "check"


@dataclass(frozen=True, slots=True)
class NodeMeta:
    """What a node file says of itself.

    Attributes:
        key: the node's key, also its file name.
        parent: key of the parent, None at stage 1.
        base: fingerprint of the frozen base.
        recipe: digest of the recipe.
        environment: digest of the environment that it was trained in.
        slices: digests of the slices of the prefix, in order.
        shard: number of the shard.
        prefix: slice numbers of the prefix, in order.
        score: score on public validation rows, higher is better.
        rows: digest of those rows.
        weights: digest of the tensors, see ``tensors_digest``.
        format: version of the node format.
    """

    key: NodeKey
    parent: NodeKey | None
    base: Digest
    recipe: Digest
    environment: Digest
    slices: tuple[Digest, ...]
    shard: int
    prefix: tuple[int, ...]
    score: float
    rows: Digest
    weights: Digest = Digest("")
    format: int = FORMAT


def pack(meta: NodeMeta, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a node; ``meta.weights`` follows from the tensors."""
    from safetensors.torch import save

    whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    entry = asdict(meta) | {"weights": tensors_digest(whole)}
    text = json.dumps(entry | {_CHECK: digest(entry)}, sort_keys=True, separators=(",", ":"))
    content: bytes = save(whole, metadata={_ENTRY: text})
    return content


def head_of(first: Callable[[int], bytes], guess: int = 8) -> bytes:
    """The head of a node of which ``first`` gives the first so many bytes.

    Args:
        first: called once, or twice if the head is longer than the guess.
        guess: bytes to ask for at first, 8 at least.
    """
    content = first(guess)
    (length,) = struct.unpack("<Q", content[:8])
    if length > HEAD_LIMIT:
        raise ValueError("header too long")
    stop = 8 + length
    return (content if stop <= len(content) else first(stop))[:stop]


def meta_of(head: bytes) -> NodeMeta:
    """The metadata in a head. Their own digest is checked, the lineage is not.

    Raises:
        ValueError, KeyError, …: one of ``MALFORMED``.
    """
    header = json.loads(head[8:])
    entry: dict[str, Any] = json.loads(header["__metadata__"][_ENTRY])
    check = entry.pop(_CHECK)
    if check != digest(entry):
        raise ValueError("its metadata are not what was written")
    entry["slices"] = tuple(entry["slices"])
    entry["prefix"] = tuple(entry["prefix"])
    return NodeMeta(**entry)


def tensors_of(content: bytes) -> dict[str, Tensor]:
    """The tensors of a node."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return tensors


def tensors_digest(tensors: Mapping[str, Tensor]) -> Digest:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    import torch

    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return Digest(state.hexdigest())
