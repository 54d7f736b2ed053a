"""One file of a node at one place: plain, or encrypted ("sealed") if the store encrypts.

    take ─► bytes as they lie ─► opened, if the store encrypts ─► head ─► metadata, proved
                                                              └─► whole ─► tensors, proved
                                                              └─► whole ─► evidence, proved

Invariant: a node that is read is whole, was written for this very key, and its lineage proves the
key. Anything else is a ``DamagedNodeError`` that names the place. A plain file in a store that
encrypts is refused, and so is a sealed file in one that does not: this store wrote neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3t.errors import DamagedNodeError, UnavailableError, unavailable
from s3t.plan.lineage import FORMAT, node_key
from s3t.store.content import (
    MALFORMED,
    Evidence,
    NodeMeta,
    evidence_of,
    head_of,
    meta_of,
    tensors_digest,
    tensors_of,
)
from s3t.store.keyring import MissingKeyError
from s3t.store.seal import Kind, Sealer, is_sealed
from s3t.types import NodeKey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NodeFile"]

_FIRST = 16 * 2**10
"""Bytes read of a node for its metadata: the head of most is shorter."""


@dataclass(frozen=True, slots=True)
class NodeFile:
    """A file that should hold a node, or its evidence.

    Attributes:
        key: the node's key.
        where: path or URL, for messages.
        take: gives the file's first so many bytes, or all of them for None.
        sealer: opens it; None if the store does not encrypt.
        kind: which of the two it should hold.
    """

    key: NodeKey
    where: str
    take: Callable[[int | None], bytes]
    sealer: Sealer | None
    kind: Kind = "node"

    def meta(self) -> NodeMeta:
        """The metadata; proves the lineage, not the tensors."""
        with self._readable():
            if self.sealer is None:
                head = head_of(self._plain, _FIRST)
            else:
                head = self.sealer.head(self.key, self.take, _FIRST)
        return self._proved(head)

    def content(self) -> bytes:
        """All plain bytes, proved or not."""
        with self._readable():
            return self._opened(self.take(None))

    def read(self) -> tuple[NodeMeta, dict[str, Tensor], bytes]:
        """Metadata and tensors, verified, and the bytes as they lie there."""
        with self._readable():
            there = self.take(None)
            content = self._opened(there)
            head = head_of(lambda count: content[:count])
        meta = self._proved(head)
        with self._readable():
            tensors = tensors_of(content)
        if tensors_digest(tensors) != meta.weights:
            raise self._damaged("has tensors that its digest does not match")
        return meta, tensors, there

    def evidence(self) -> tuple[Evidence, bytes]:
        """The evidence, proved to be whole and this node's, and the bytes as they lie there."""
        with self._readable():
            there = self.take(None)
            found = evidence_of(self._opened(there))
        if found.key != self.key:
            raise self._damaged("is another node's")
        return found, there

    def _opened(self, there: bytes) -> bytes:
        if self.sealer is not None:
            return self.sealer.content(self.key, there, self.kind)
        return _unsealed(there)

    def _plain(self, count: int) -> bytes:
        return _unsealed(self.take(count))

    def _proved(self, head: bytes) -> NodeMeta:
        with self._readable():
            meta = meta_of(head)
        if meta.format != FORMAT:
            raise self._damaged(f"has format {meta.format}, not {FORMAT}")
        lineage = node_key(meta.base, meta.recipe, meta.parent, meta.slices, meta.environment)
        if meta.key != self.key or self.key != lineage:
            raise self._damaged("holds another lineage than its name says")
        return meta

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What reading a file that is not there or not sound may raise, in our words."""
        try:
            yield
        except FileNotFoundError:
            raise self._damaged("is missing") from None
        except (OSError, MissingKeyError, *MALFORMED) as error:
            # what may not be read now is not damaged: no shorter prefix takes its place
            raise _unreadable(error) or self._damaged(f"cannot be read ({error})") from None

    def _damaged(self, what: str) -> DamagedNodeError:
        named = what if self.kind == "node" else f"has evidence that {what}"
        return DamagedNodeError(self.key, named, self.where)


def _unreadable(error: Exception) -> UnavailableError | None:
    if not isinstance(error, OSError) or isinstance(error, NotADirectoryError):
        return None
    return unavailable(error)


def _unsealed(content: bytes) -> bytes:
    """Bytes as they are, unless they are sealed."""
    if is_sealed(content):
        raise ValueError("it is sealed, and store.encrypt is off: turn it on, with its store.keys")
    return content
