"""Bearer tokens of a run, and the file that stores their hashes.

    s3t_delete_9f0c…  ──SHA-256──►  tokens.json  {id, name, roles, created, expires, sha256}
                                        ▲ mode 0600, replaced whole, read again when it changes

Invariants: a token is shown once, when it is created, and is stored nowhere. It has 192 random
bits, so an unsalted hash is enough. All hashes are compared, each in constant time, so the time of
a refusal reveals nothing about them. If the file cannot be read, or others may write it, all
requests are refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from s3t.config.aggregation import ServeConfig
from s3t.errors import InputError, UnavailableError
from s3t.store import held_folder, write_durably

__all__ = ["ROLES", "Role", "Token", "TokenFile", "token_path"]

Role = Literal["predict", "delete", "audit", "repair"]
ROLES: tuple[Role, ...] = get_args(Role)
"""The roles that a token may have, in the order in which tokens name them."""

_FORMAT = 1
_LOOK = 1.0
"""Seconds between two checks of the file's time stamp: a revoked token is refused after that."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is stored of a token.

    Attributes:
        id: names the token for ``revoke``; it does not reveal the token.
        name: name of the holder.
        roles: in the order of ``ROLES``.
        created: ISO 8601 in UTC.
        expires: ISO 8601; from then on the token is refused. None for never.
        sha256: SHA-256 of the token, hex.
    """

    id: str
    name: str
    roles: tuple[Role, ...]
    created: str
    expires: str | None
    sha256: str

    def expired(self, now: datetime) -> bool:
        """Whether it has expired."""
        return self.expires is not None and now >= datetime.fromisoformat(self.expires)

    def shown(self) -> dict[str, Any]:
        """As JSON values, without the hash."""
        values = asdict(self)
        del values["sha256"]
        return values


def token_path(root: Path, config: ServeConfig) -> Path:
    """The path of a run's token file."""
    return root / "tokens.json" if config.tokens is None else Path(config.tokens)


class TokenFile:
    """The tokens of a run. Safe to share between threads, and the file between processes.

    Args:
        path: of the file. If it does not exist, there are no tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._looked = float("-inf")
        self._tokens: tuple[Token, ...] = ()
        self._problem: UnavailableError | None = None

    # ── for the service ──────────────────────────────────────────────────────────────────────

    def find(self, text: str, now: datetime | None = None) -> Token | None:
        """The stored token that ``text`` is; None if there is none or it has expired.

        Args:
            text: of the request.
            now: the moment at which it must not have expired; the present one by default.

        Raises:
            UnavailableError: the file cannot be read, is malformed, or others may write it.
        """
        asked = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        found: Token | None = None
        for token in self._present():
            if hmac.compare_digest(token.sha256, asked):
                found = token  # no break: the time must not depend on which one matches
        if found is None or found.expired(now or datetime.now(UTC)):
            return None
        return found

    def reload(self) -> None:
        """Check the file at the next request, however recently it was checked."""
        with self._lock:
            self._stamp, self._looked = None, float("-inf")

    def _present(self) -> tuple[Token, ...]:
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK:
                self._looked = time.monotonic()
                try:
                    stamp = _stamp(self.path)
                    if stamp != self._stamp or self._problem is not None:
                        self._tokens, self._stamp = _read(self.path), stamp
                    self._problem = None
                except InputError as error:
                    self._tokens, self._stamp = (), None
                    self._problem = UnavailableError(str(error))
            if self._problem is not None:
                raise self._problem
            return self._tokens

    # ── for the command line ─────────────────────────────────────────────────────────────────

    def tokens(self) -> tuple[Token, ...]:
        """All tokens, in the order in which they were created.

        Raises:
            InputError: the file cannot be read, is malformed, or others may write it.
        """
        return _read(self.path)

    def create(
        self, name: str, roles: Iterable[str], lasts: timedelta | None = None
    ) -> tuple[str, Token]:
        """Create a token. Returns its text, which cannot be shown again, and what is stored of it.

        Args:
            name: name of the holder, 1 to 200 printable characters.
            roles: at least one of ``ROLES``.
            lasts: how long it is valid; None for ever.

        Raises:
            InputError: an unknown role or none, a bad name or duration, or the file cannot be read
                or written.
        """
        wanted = _roles(roles)
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise InputError(f"token name {name!r:.80}: give 1 to 200 printable characters")
        if lasts is not None and lasts <= timedelta(0):
            raise InputError("the token expires before it is created: give a duration above 0")
        text = f"s3t_{'-'.join(wanted)}_{secrets.token_hex(24)}"
        now = datetime.now(UTC)
        token = Token(
            id=secrets.token_hex(4),
            name=name,
            roles=wanted,
            created=now.isoformat(timespec="seconds"),
            expires=None if lasts is None else (now + lasts).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        with held_folder(self.path.parent):
            _write(self.path, [*_read(self.path), token])
        return text, token

    def revoke(self, token_id: str) -> Token:
        """Remove a token. Services of the run refuse it within a second.

        Raises:
            InputError: there is no token of that id, or the file cannot be read or written.
        """
        with held_folder(self.path.parent):
            tokens = _read(self.path)
            kept = [token for token in tokens if token.id != token_id]
            if len(kept) == len(tokens):
                raise InputError(f"there is no token {token_id!r:.80}: s3t token list names them")
            _write(self.path, kept)
        return next(token for token in tokens if token.id == token_id)


def _roles(roles: Iterable[str]) -> tuple[Role, ...]:
    asked = list(roles)
    strange = [role for role in asked if role not in ROLES]
    if strange or not asked:
        named = f"role {strange[0]!r:.80}" if strange else "no role"
        raise InputError(f"{named}: give one or several of {', '.join(ROLES)}")
    return tuple(role for role in ROLES if role in asked)


def _stamp(path: Path) -> tuple[int, ...]:
    """Values that change when the file is replaced or written; empty if it does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"the token file cannot be read ({error.strerror})") from None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode


def _read(path: Path) -> tuple[Token, ...]:
    """The tokens of a file, all checked to be well formed."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise InputError(f"{path} may be written by others: chmod 600 it")
            text = file.read()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    try:
        body = json.loads(text)
        if body["format"] != _FORMAT:
            raise ValueError(f"format {body['format']!r:.20}")
        return tuple(map(_token, body["tokens"]))
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no token file ({type(error).__name__}): move it away, and make new tokens "
            "with s3t token create"
        ) from None


def _token(values: dict[str, Any]) -> Token:
    token = replace(Token(**values), roles=_roles(values["roles"]))
    if len(bytes.fromhex(token.sha256)) != hashlib.sha256().digest_size:
        raise ValueError("a hash of another length")
    if token.expires is not None and datetime.fromisoformat(token.expires).tzinfo is None:
        raise ValueError("a time without a time zone")
    if not isinstance(token.id, str) or not isinstance(token.name, str):
        raise TypeError("an id or a name that is no text")
    return token


def _write(path: Path, tokens: Sequence[Token]) -> None:
    body = {"format": _FORMAT, "tokens": [asdict(token) for token in tokens]}
    try:
        write_durably(path, (json.dumps(body, indent=1) + "\n").encode(), 0o600)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
