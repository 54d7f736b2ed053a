"""The node files of a run, each read once and reduced to facts. Nothing is written, nothing kept.

    file ──opened, proved──► metadata, digest of the tensors, names and shapes, digest of the head

Invariant: a fact is of the very bytes that lie there. With ``store.url`` those at the URL are the
truth, and copies are facts of their own; reading never makes a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.errors import DamagedNodeError
from s3t.store import NodeMeta, NodeStore, tensors_digest
from s3t.store.files import NodeFile
from s3t.types import Digest, NodeKey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NodeFacts", "NodeFiles"]

HEAD = "head."
"""How the names of a head's tensors begin."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one file holds.

    Attributes:
        meta: its metadata, which prove its key.
        weights: digest of its tensors, reckoned anew.
        shapes: of its tensors, by name.
        head: digest of the head's tensors, None if there are none.
        zero: names of tensors that are zero throughout.
        odd: names of tensors that hold infinity or no number, or are not float32.
    """

    meta: NodeMeta
    weights: Digest
    shapes: Mapping[str, tuple[int, ...]]
    head: Digest | None
    zero: tuple[str, ...]
    odd: tuple[str, ...]

    @classmethod
    def of(cls, meta: NodeMeta, tensors: Mapping[str, Tensor]) -> NodeFacts:
        """Facts of a node that was read."""
        import torch

        head = {name: tensors[name] for name in tensors if name.startswith(HEAD)}
        return cls(
            meta=meta,
            weights=tensors_digest(tensors),
            shapes={name: tuple(tensors[name].shape) for name in sorted(tensors)},
            head=tensors_digest(head) if head else None,
            zero=tuple(name for name in sorted(tensors) if not tensors[name].any()),
            odd=tuple(
                name
                for name in sorted(tensors)
                if tensors[name].dtype != torch.float32
                or not bool(torch.isfinite(tensors[name]).all())
            ),
        )


class NodeFiles:
    """All node files of a run.

    Args:
        store: the run's; only its places and its sealer are used.
    """

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._read: dict[NodeKey, NodeFacts | DamagedNodeError] = {}
        self.there = store.keys()
        """Nodes that lie where the truth is."""
        folder = store.root.glob("*.safetensors") if store.depot is not None else ()
        self.copies = frozenset(NodeKey(path.stem) for path in folder)
        """Nodes of which a copy lies on this machine."""

    def facts(self, key: NodeKey) -> NodeFacts:
        """What the node's file holds.

        Raises:
            DamagedNodeError: missing, unreadable, or not what its key or its digest says.
        """
        if key not in self._read:
            try:
                self._read[key] = NodeFacts.of(*self._original(key).read()[:2])
            except DamagedNodeError as error:
                self._read[key] = error
        found = self._read[key]
        if isinstance(found, DamagedNodeError):
            raise found
        return found

    def sound(self, key: NodeKey) -> NodeFacts | None:
        """The same, None for a node that is not sound."""
        try:
            return self.facts(key)
        except DamagedNodeError:
            return None

    def copy(self, key: NodeKey) -> NodeFacts:
        """What the copy on this machine holds.

        Raises:
            DamagedNodeError: as ``facts``.
        """
        return NodeFacts.of(*NodeStore(self._store.root, None, self._store.sealer).read(key))

    def where(self, key: NodeKey) -> str:
        """Where the node's file lies, or would."""
        return self._original(key).where

    def _original(self, key: NodeKey) -> NodeFile:
        store, path = self._store, self._store.path(key)
        if store.depot is None:
            return NodeFile(key, str(path), lambda first: _bytes_of(path, first), store.sealer)
        depot, name = store.depot, path.name
        return NodeFile(key, depot.where(name), lambda first: depot.get(name, first), store.sealer)


def _bytes_of(path: Path, first: int | None) -> bytes:
    with path.open("rb") as file:
        return file.read() if first is None else file.read(first)
