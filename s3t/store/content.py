"""The plain bytes of a node, and of its evidence: safetensors with one entry of metadata.

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
    "Evidence",
    "NodeMeta",
    "entry_of",
    "evidence_of",
    "head_of",
    "meta_of",
    "pack",
    "pack_evidence",
    "tensors_digest",
    "tensors_of",
]

MALFORMED = (AttributeError, LookupError, RecursionError, TypeError, ValueError, struct.error)
"""Errors that reading malformed bytes may raise."""

HEAD_LIMIT = 64 * 2**20
"""Greatest size of a head, in bytes."""

_ENTRY = "s3t"
_CHECK = "check"
_WEIGHTS = "weights"
_SAID = "said"


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


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a node says of the public validation rows, kept beside the node.

    Attributes:
        key: the node's key.
        rows: digest of all validation rows, of which ``training.node.rows.evidence_rows`` takes
            some.
        environment: digest of the environment in which it was computed.
        said: log probabilities, float32: of all classes [rows, classes], or of the scored tokens,
            row by row, [tokens].
    """

    key: NodeKey
    rows: Digest
    environment: Digest
    said: Tensor

    @property
    def digest(self) -> Digest:
        """Of all of it."""
        return digest(self.entry() | {_WEIGHTS: tensors_digest({_SAID: self.said})})

    def entry(self) -> dict[str, Any]:
        """All but the numbers."""
        return {"key": self.key, "rows": self.rows, "environment": self.environment}


def pack(meta: NodeMeta, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a node; ``meta.weights`` follows from the tensors."""
    return _packed(asdict(meta), tensors)


def pack_evidence(evidence: Evidence) -> bytes:
    """The bytes of a node's evidence."""
    return _packed(evidence.entry(), {_SAID: evidence.said})


def _packed(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    whole = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    entry = {**entry, _WEIGHTS: tensors_digest(whole)}
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
    entry = entry_of(head)
    entry["slices"] = tuple(entry["slices"])
    entry["prefix"] = tuple(entry["prefix"])
    return NodeMeta(**entry)


def entry_of(head: bytes) -> dict[str, Any]:
    """The entry of metadata in a head, of a node or of its evidence; its digest is checked.

    Raises:
        ValueError, KeyError, …: one of ``MALFORMED``.
    """
    header = json.loads(head[8:])
    entry: dict[str, Any] = json.loads(header["__metadata__"][_ENTRY])
    check = entry.pop(_CHECK)
    if check != digest(entry):
        raise ValueError("its metadata are not what was written")
    return entry


def evidence_of(content: bytes) -> Evidence:
    """The evidence in its plain bytes. Its own digests are checked; whose it is, is not.

    Raises:
        ValueError, KeyError, …: one of ``MALFORMED``.
    """
    entry, tensors = entry_of(head_of(lambda count: content[:count])), tensors_of(content)
    if entry.pop(_WEIGHTS) != tensors_digest(tensors):
        raise ValueError("its numbers are not what was written")
    return Evidence(said=tensors[_SAID], **entry)


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
