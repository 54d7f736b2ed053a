"""Key rings: data keys of sealed nodes, kept outside the run, one for each node.

    RUN/nodes/<key>.safetensors ──sealed under──► data key of <key> ──kept in──► key ring

A backup of the run holds sealed files and no data key, so it forgets whatever the ring forgets. A
ring is a file, or what a hook brings for a key service (``python:package.module:factory``).

Invariant: a data key is given out only when it lies durably in the ring, and all callers get the
same one. When ``destroy`` returns, the ring's file does not hold the key: each change writes a new
file, under a lock, and removes half-written files of killed writers.

Limits: a file system or a disk may keep parts of files that were replaced (journals, snapshots,
wear levelling), and there may be copies of the ring. Restoring an old ring brings back keys that
were destroyed since; purge again after it.
"""

from __future__ import annotations

import fcntl
import glob
import importlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from s3t.errors import InputError, IntegrityError, is_full, unavailable
from s3t.system.durable import write_durably
from s3t.types import NodeKey, digest

__all__ = ["DATA_KEY_BYTES", "FileKeyRing", "KeyRing", "MissingKeyError", "open_ring"]

DATA_KEY_BYTES = 32
_FORMAT = 1
_HOOK = "python:"
_CHECK = "check"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE = 0o600


class MissingKeyError(IntegrityError):
    """A data key that a ring does not hold: it was destroyed, or never was in this ring."""


@runtime_checkable
class KeyRing(Protocol):
    """What keeps data keys: each of 32 random bytes, under the key of its node."""

    def get(self, key: NodeKey) -> bytes:
        """The data key of a node.

        Raises:
            MissingKeyError: it was destroyed, or never was here. Nothing else means that.
        """
        ...

    def create(self, key: NodeKey) -> bytes:
        """The data key of a node, made if there is none; callers at the same time get the same."""
        ...

    def destroy(self, keys: Collection[NodeKey]) -> frozenset[NodeKey]:
        """Destroy data keys durably; no error for those destroyed before.

        Returns:
            nodes for which there is none and never was one, as far as the ring can tell.
        """
        ...


def open_ring(keys: str, run: str, folders: Iterable[Path]) -> KeyRing:
    """The key ring that ``store.keys`` names.

    Args:
        keys: path of a file, or ``python:package.module:factory``.
        run: what a factory is called with: the run's ``store.url``, or the path of its directory.
        folders: where the run lies, and so its backups come from.

    Raises:
        InputError: the file lies in one of the folders, or the hook cannot be used.
    """
    if keys.startswith(_HOOK):
        return _hooked(keys, run)
    ring = FileKeyRing(keys)
    for folder in folders:
        if ring.path.is_relative_to(folder.resolve()):
            raise InputError(
                f"store.keys {keys} lies in {folder}, so a backup of the run would hold the data "
                "keys too: name a file elsewhere, such as store.keys=/secure/RUN.keys"
            )
    return ring


@dataclass(frozen=True, slots=True)
class _Held:
    """What a ring's file holds: data keys in hex by node, and whose were destroyed."""

    keys: dict[str, str]
    destroyed: frozenset[str]


class FileKeyRing:
    """A key ring in one file that only its owner can read.

    ``{"format": 1, "keys": {node: data key}, "destroyed": [nodes], "check": digest of the rest}``.
    Processes and machines that see the file share it; their file system must have locks.

    Args:
        path: the file, made when the first data key is.

    Attributes:
        path: the same with links resolved, since the file is replaced and not written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._known: tuple[tuple[int, ...], _Held] | None = None

    def get(self, key: NodeKey) -> bytes:
        """See ``KeyRing.get``.

        Raises:
            MissingKeyError: it was destroyed, or never was here.
            IntegrityError: the file is missing, damaged, or readable by others.
        """
        held = self._present(self._latest())
        if key not in held.keys:  # made on another machine, whose file system tells it late
            held = self._present(self._read())
        if key in held.keys:
            return bytes.fromhex(held.keys[key])
        if key in held.destroyed:
            raise MissingKeyError(f"its data key was destroyed in key ring {self.path}")
        raise MissingKeyError(
            f"its data key never was in key ring {self.path}: see whether store.keys names the "
            "ring of this run"
        )

    def create(self, key: NodeKey) -> bytes:
        """See ``KeyRing.create``.

        Raises:
            InputError: the file cannot be written.
            IntegrityError: the file is damaged, or readable by others.
        """
        held = self._latest()
        if held is None or key not in held.keys:
            with self._locked():
                held = self._read() or _Held({}, frozenset())
                if key not in held.keys:
                    keys = held.keys | {key: os.urandom(DATA_KEY_BYTES).hex()}
                    held = _Held(keys, held.destroyed - {key})
                    self._write(held)
        return bytes.fromhex(held.keys[key])

    def destroy(self, keys: Collection[NodeKey]) -> frozenset[NodeKey]:
        """See ``KeyRing.destroy``.

        Raises:
            InputError: the file cannot be written.
            IntegrityError: the file is missing, damaged, or readable by others.
        """
        if not keys:
            return frozenset()
        self._present(self._latest())  # before a lock is made beside what may not be the ring
        with self._locked():
            held = self._present(self._read())
            gone = held.keys.keys() & {*keys}
            if gone:
                kept = {node: secret for node, secret in held.keys.items() if node not in gone}
                self._write(_Held(kept, held.destroyed | gone))
        return frozenset(key for key in keys if key not in gone and key not in held.destroyed)

    def _present(self, held: _Held | None) -> _Held:
        if held is None:
            raise IntegrityError(
                f"key ring {self.path} is missing: mount or restore it, or name the ring under "
                "which the nodes were sealed with store.keys"
            )
        return held

    def _latest(self) -> _Held | None:
        """What the file holds, read again only when it was replaced."""
        try:
            status = self.path.stat()
        except OSError:
            return self._read()
        if self._known is None or self._known[0] != _signature(status):
            return self._read()
        return self._known[1]

    def _read(self) -> _Held | None:
        """What the file holds; None if there is none."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IntegrityError(
                f"key ring {self.path} cannot be read ({error}): let this process read it, or name "
                "another file with store.keys"
            ) from None
        self._check_private(status)
        held = self._parsed(content)
        self._known = _signature(status), held
        return held

    def _check_private(self, status: os.stat_result) -> None:
        if status.st_mode & _OTHERS:
            raise IntegrityError(
                f"key ring {self.path} can be read or written by others (mode "
                f"{stat.S_IMODE(status.st_mode):o}): see who did, then chmod 600 {self.path}"
            )
        if status.st_nlink > 1:
            raise IntegrityError(
                f"key ring {self.path} has {status.st_nlink} hard links, and what is destroyed "
                "would stay under the other names: remove those"
            )

    def _parsed(self, content: bytes) -> _Held:
        try:
            body: dict[str, Any] = json.loads(content)
            check = body.pop(_CHECK)
            if check != digest(body):
                raise ValueError("its digest differs")
            if body["format"] != _FORMAT:
                raise ValueError(f"it has format {body['format']}, not {_FORMAT}")
            return _Held(body["keys"], frozenset(body["destroyed"]))
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"key ring {self.path} cannot be used ({error}): restore it from a copy, then "
                "purge again, since a copy may hold what was destroyed after it was made"
            ) from None

    def _write(self, held: _Held) -> None:
        body = {"format": _FORMAT, "keys": held.keys, "destroyed": sorted(held.destroyed)}
        content = json.dumps(body | {_CHECK: digest(body)}, indent=1)
        write_durably(self.path, content.encode(), _PRIVATE)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the ring, which all processes that change it take."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.path.with_name(f".{self.path.name}.lock")
            with os.fdopen(os.open(lock, os.O_RDWR | os.O_CREAT, _PRIVATE), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                for left in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp"):
                    left.unlink()  # of a writer who was killed: the lock is ours
                yield
        except OSError as error:
            if is_full(error):
                raise unavailable(error) or error from None
            raise InputError(
                f"key ring {self.path} cannot be written ({error}): name another file with "
                "store.keys, or let this process write there"
            ) from None


def _signature(status: os.stat_result) -> tuple[int, ...]:
    """What differs between a file and the one that has replaced it."""
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


def _hooked(keys: str, run: str) -> KeyRing:
    """The ring that a factory of the user's own gives."""
    module, _, name = keys.removeprefix(_HOOK).partition(":")
    try:
        ring = getattr(importlib.import_module(module), name)(run)
    except Exception as error:  # a factory raises what it likes
        raise InputError(
            f"store.keys {keys!r} cannot be used ({type(error).__name__}: {error}): name an "
            "importable module and a function of it that takes the name of the run and returns "
            "a key ring"
        ) from error
    if not isinstance(ring, KeyRing):
        raise InputError(
            f"store.keys {keys!r} gave a {type(ring).__name__}, which lacks get, create or destroy"
        )
    return ring
