"""Keys of nodes: each is a digest of all that the node has seen (invariant E1).

    key(node) = digest(format, base, recipe, environment, key(parent), digests of its slices)

Invariant: nothing else may influence a node's weights. So resuming a training skips the keys that
exist, a repair trains the keys that are missing, and a deletion kills the nodes whose keys hold a
slice that was hit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from s3t.types import Digest, NodeKey, digest

__all__ = ["FORMAT", "environment_name", "node_key", "node_seed"]

FORMAT = 2
"""Version of the node format; part of every key."""


def node_key(
    base: Digest,
    recipe: Digest,
    parent: NodeKey | None,
    slices: Sequence[Digest],
    environment: Digest,
) -> NodeKey:
    """The key of a node.

    Args:
        base: fingerprint of the frozen base.
        recipe: digest of everything in the config and the code that shapes bytes.
        parent: key of the node whose prefix is one slice shorter; None at stage 1.
        slices: digests of all slices of the prefix, in the order of the sequence.
        environment: digest of the environment that trains this node; its parent may have another.
    """
    lineage = {
        "format": FORMAT,
        "base": base,
        "recipe": recipe,
        "environment": environment,
        "parent": parent,
        "slices": list(slices),
    }
    return NodeKey(digest(lineage))


def environment_name(environment: Mapping[str, Any]) -> str:
    """One line of text that describes an environment: versions, device, switches, short digest."""
    parts = ("arithmetic", "device", "machine", "capability", "libc", "gpu")
    kind = " ".join(str(environment[part]) for part in parts if part in environment)
    versions = f"torch {environment.get('torch')}, transformers {environment.get('transformers')}"
    switches = [f"{name}={value}" for name, value in environment.get("switches", {}).items()]
    return ", ".join([versions, kind, *switches, digest(environment)[:12]])


def node_seed(key: NodeKey, purpose: str) -> int:
    """A seed of 63 bits for one use of randomness in a node's training (``init``, ``order``, …)."""
    return int.from_bytes(hashlib.sha256(f"{key}/{purpose}".encode()).digest()[:8], "big") >> 1
