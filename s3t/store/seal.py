"""Sealed nodes: AES-256-GCM under a data key of the node's own. The door to ``cryptography``.

    24 bytes   "S3TSEAL", version, length of the sealed head, length of the sealed body
    head       nonce (12), the node's head encrypted, tag (16)
    body       nonce (12), the node's tensors encrypted, tag (16)

Head and body are sealed apart, so that metadata can be had without the weights. What each is bound
to beyond its data key: kind of the file, version of the seal, name of the part, key of the node.

Invariant: opening gives what was sealed for this very node, file and part, or an error. Nonces are
random, and a data key seals one node and its evidence only, each time that they are written. So
sealed bytes differ each time, and only plain bytes can be compared.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection
from typing import Literal, TypeVar

from s3t.errors import IntegrityError, S3TError
from s3t.store.content import HEAD_LIMIT, head_of
from s3t.store.keyring import DATA_KEY_BYTES, KeyRing, MissingKeyError
from s3t.types import NodeKey

__all__ = ["Kind", "Sealer", "is_sealed"]

_MAGIC, _VERSION = b"S3TSEAL", 1
_FRAME = struct.Struct("<7sBQQ")
_NONCE, _TAG = 12, 16

Result = TypeVar("Result")
Kind = Literal["node", "evidence"]
"""Which file of a node is sealed: its tensors, or what it says of the public validation rows."""


def is_sealed(content: bytes) -> bool:
    """Whether bytes, of which the first 7 are enough, are a seal's. No safetensors file's are: its
    header would be longer than any disk."""
    return content[: len(_MAGIC)] == _MAGIC


class Sealer:
    """Seals and opens the nodes of one run.

    Args:
        ring: keeps their data keys.
        name: what to call the ring in messages, ``store.keys`` of the config.
    """

    def __init__(self, ring: KeyRing, name: str) -> None:
        self._ring, self._name = ring, name

    def seal(self, key: NodeKey, content: bytes, kind: Kind = "node") -> bytes:
        """A node's bytes, sealed; its data key lies durably in the ring when this returns."""
        data_key = self._proper(self._asked(lambda: self._ring.create(key)))
        stop = len(head_of(lambda count: content[:count]))
        view = memoryview(content)
        head = self._locked(data_key, _bound(key, "head", kind), view[:stop])
        body = self._locked(data_key, _bound(key, "body", kind), view[stop:])
        return _FRAME.pack(_MAGIC, _VERSION, len(head), len(body)) + head + body

    def head(self, key: NodeKey, first: Callable[[int], bytes], guess: int) -> bytes:
        """The head of a sealed node of which ``first`` gives the first so many bytes.

        Raises:
            ValueError: not sealed, damaged, or sealed for another node or under another data key.
            MissingKeyError: its data key was destroyed, or is another ring's.
        """
        content = first(max(guess, _FRAME.size))
        head, _ = _frame(content)
        stop = _FRAME.size + head
        if stop > len(content):
            content = first(stop)
        return self._opened(key, "head", "node", memoryview(content)[_FRAME.size : stop])

    def content(self, key: NodeKey, sealed: bytes, kind: Kind = "node") -> bytes:
        """The plain bytes of a whole sealed node, or of its evidence.

        Raises:
            ValueError, MissingKeyError: as ``head``.
        """
        head, body = _frame(sealed)
        stop = _FRAME.size + head
        if len(sealed) != stop + body:
            raise ValueError(f"it is sealed and has {len(sealed)} bytes, not {stop + body}")
        view = memoryview(sealed)
        parts = (("head", view[_FRAME.size : stop]), ("body", view[stop:]))
        return b"".join(self._opened(key, part, kind, content) for part, content in parts)

    def destroy(self, keys: Collection[NodeKey]) -> frozenset[NodeKey]:
        """Destroy data keys for good, and see that the ring gives them no longer.

        Returns:
            nodes for which the ring has none and never had one, as far as it knows.

        Raises:
            IntegrityError: the ring cannot be used, or still gives a key that it destroyed.
        """
        unknown = self._asked(lambda: frozenset(self._ring.destroy(keys)))
        for key in sorted(keys):
            try:
                self._data_key(key)
            except MissingKeyError:
                continue
            raise IntegrityError(
                f"key ring {self._name} still gives the data key of {key}, which it was told "
                "to destroy: another process trains the node, or the ring does not do as it says"
            )
        return unknown

    def _locked(self, data_key: bytes, bound: bytes, plain: memoryview) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(data_key).encrypt(nonce, plain, bound)

    def _opened(self, key: NodeKey, part: str, kind: Kind, sealed: memoryview) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(sealed) < _NONCE + _TAG:
            raise ValueError(f"its sealed {part} is cut short")
        data_key = self._data_key(key)
        nonce, encrypted = bytes(sealed[:_NONCE]), sealed[_NONCE:]
        try:
            return AESGCM(data_key).decrypt(nonce, encrypted, _bound(key, part, kind))
        except InvalidTag:
            raise ValueError(
                f"the seal of its {part} is broken: the file was changed, is another node's, or "
                f"was sealed under another key ring than {self._name}"
            ) from None

    def _data_key(self, key: NodeKey) -> bytes:
        return self._proper(self._asked(lambda: self._ring.get(key)))

    def _proper(self, data_key: bytes) -> bytes:
        if not isinstance(data_key, bytes) or len(data_key) != DATA_KEY_BYTES:
            raise IntegrityError(
                f"key ring {self._name} gave something else than {DATA_KEY_BYTES} bytes as a data "
                "key: see what store.keys names"
            )
        return data_key

    def _asked(self, ask: Callable[[], Result]) -> Result:
        """What the ring answers; what a hook raises beyond its contract, in our words."""
        try:
            return ask()
        except S3TError:
            raise
        except Exception as error:  # a key service has an error tree of its own
            raise S3TError(
                f"key ring {self._name} failed ({type(error).__name__}: {error}): see what "
                "store.keys names, then run the same command again"
            ) from error


def _bound(key: NodeKey, part: str, kind: Kind) -> bytes:
    """What a sealed part holds for, without holding it."""
    return f"s3t {kind}|{_VERSION}|{part}|{key}".encode()


def _frame(content: bytes) -> tuple[int, int]:
    """Lengths of sealed head and body."""
    if not is_sealed(content):
        raise ValueError("it is not sealed, and store.encrypt is on")
    _, version, head, body = _FRAME.unpack_from(content)
    if version != _VERSION:
        raise ValueError(f"its seal has version {version}, not {_VERSION}")
    if head > HEAD_LIMIT:
        raise ValueError("header too long")
    return head, body
