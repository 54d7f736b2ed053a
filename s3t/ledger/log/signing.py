"""Ed25519 signatures over the digests of the log. One of two doors to cryptography.

Invariant: a signature is over the digest of an entry, which holds all that came before it. The
private key lies outside the run; its fingerprint is the SHA-256 of the raw public key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = ["Signer", "Verifier"]

_MAKE = "openssl genpkey -algorithm ed25519 -out KEY.pem"


class Signer:
    """Signs with an Ed25519 private key.

    Args:
        path: a PEM file (PKCS 8), unencrypted.

    Raises:
        InputError: it cannot be read, or holds no such key.
    """

    def __init__(self, path: str | Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(Path(path).read_bytes(), None)
        except (OSError, TypeError, ValueError) as error:
            raise InputError(
                f"receipts.signing_key {path} cannot be used ({error}): give an unencrypted "
                f"Ed25519 key as PEM, such as {_MAKE} makes"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(
                f"receipts.signing_key {path} holds a {type(key).__name__}: give an Ed25519 key, "
                f"such as {_MAKE} makes"
            )
        self._key: Ed25519PrivateKey = key
        self.fingerprint = _fingerprint(key.public_key())

    def sign(self, digest: str) -> str:
        """Signature of a digest's ASCII, 128 hex digits."""
        return self._key.sign(digest.encode()).hex()

    def verifier(self) -> Verifier:
        """What checks this key's signatures."""
        return Verifier(self._key.public_key())


class Verifier:
    """Checks signatures of one Ed25519 public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.fingerprint = _fingerprint(key)

    @classmethod
    def load(cls, path: str | Path) -> Verifier:
        """From a PEM file with a public key.

        Raises:
            InputError: it cannot be read, or holds no such key.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            key = load_pem_public_key(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"public key {path} cannot be used ({error}): give a PEM") from None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"public key {path} is no Ed25519 key: give the one that signs")
        return cls(key)

    def holds(self, digest: str, signature: str) -> bool:
        """Whether the signature is this key's, of this digest."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(bytes.fromhex(signature), digest.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


def _fingerprint(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
