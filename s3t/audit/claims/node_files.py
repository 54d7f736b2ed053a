"""The facts of a run's node files. Each file is read once; nothing is written.

    file ──opened, proved──► metadata, digest of the tensors, names and shapes, digest of the head

Invariant: facts come from the bytes of the file itself. With ``store.url`` the files there are the
run's nodes; copies on this machine have facts of their own. Reading never makes a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.errors import DamagedNodeError
from s3t.store import Evidence, NodeMeta, NodeStore, tensors_digest
from s3t.store.files import NodeFile
from s3t.types import Digest, NodeKey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NodeFacts", "NodeFiles"]

HEAD = "head."
"""Prefix of the names of a head's tensors."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What one file holds.

    Attributes:
        meta: its metadata, which prove its key.
        weights: digest of its tensors, computed from their values.
        shapes: shape of each tensor, by name.
        head: digest of the head's tensors; None if there are none.
        zero: names of tensors whose values are all zero.
        odd: names of tensors that are not float32, or hold infinity or NaN.
    """

    meta: NodeMeta
    weights: Digest
    shapes: Mapping[str, tuple[int, ...]]
    head: Digest | None
    zero: tuple[str, ...]
    odd: tuple[str, ...]

    @classmethod
    def of(cls, meta: NodeMeta, tensors: Mapping[str, Tensor]) -> NodeFacts:
        """The facts of a node, from its metadata and tensors."""
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
        store: the run's store; only its paths, its depot and its sealer are used.
    """

    def __init__(self, store: NodeStore) -> None:
        self._store = store
        self._read: dict[NodeKey, NodeFacts | DamagedNodeError] = {}
        self.there = store.keys()
        """Keys of the nodes in the store."""
        folder = store.root.glob("*.safetensors") if store.depot is not None else ()
        self.copies = frozenset(NodeKey(path.stem) for path in folder)
        """Keys of the nodes that this machine has a copy of; empty without ``store.url``."""
        self.evidence_there = store.evidence_keys()
        """Keys of the nodes whose evidence is in the store."""
        self.traces = self.there | self.evidence_there | store.copies()
        """Keys of the nodes of which a file of any kind is in the store or on this machine."""

    def facts(self, key: NodeKey) -> NodeFacts:
        """The facts of a node's file.

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
        """The facts of a node's file; None if it is missing or damaged."""
        try:
            return self.facts(key)
        except DamagedNodeError:
            return None

    def copy(self, key: NodeKey) -> NodeFacts:
        """The facts of the copy on this machine.

        Raises:
            DamagedNodeError: as ``facts``.
        """
        return NodeFacts.of(*NodeStore(self._store.root, None, self._store.sealer).read(key))

    def evidence(self, key: NodeKey) -> Evidence:
        """A node's evidence.

        Raises:
            DamagedNodeError: missing, damaged, or another node's.
        """
        return self._store.read_evidence(key)

    def same_copy_of_evidence(self, key: NodeKey) -> bool:
        """Whether this machine's copy of a node's evidence, if it has one, is of other public rows
        than what lies in the store, or is the same."""
        here = NodeStore(self._store.root, None, self._store.sealer)
        if key not in here.evidence_keys():
            return True
        try:
            copy, original = here.read_evidence(key), self.evidence(key)
        except DamagedNodeError:
            return key not in self.evidence_there
        return copy.rows != original.rows or copy.digest == original.digest

    def where(self, key: NodeKey) -> str:
        """Path or URL of the node's file, which may be missing."""
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
