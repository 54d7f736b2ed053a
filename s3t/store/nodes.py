"""Content-addressed node weights, and beside each what the node says of public rows.

    of the run         RUN/nodes/<key>.safetensors, <key>.evidence
    at ``store.url``   URL/<key>.safetensors  ──read──►  RUN/nodes/<key>.safetensors, a copy

    write:  evidence, then tensors ─► whole file, sealed if asked for ─► put at the URL, if any
                                                                      ─► file of the run
    read:   file ─► opened ─► the key follows from the lineage, the digest from the tensors
    remove: data keys destroyed ─► files of the run ─► files at the URL

Invariant: a node that ``read`` returns is whole, was written for this very key, and its lineage
proves the key (see ``NodeFile``). With a URL the files there decide; the copies on this machine are
a cache in one folder, sealed as the files are, and a copy that does not prove its key is fetched
again. A node that ``remove`` has reported is gone from both places with its evidence, or neither
can be opened.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from s3t.errors import DamagedNodeError, IntegrityError, S3TError, unavailable
from s3t.store.content import Evidence, NodeMeta, pack, pack_evidence
from s3t.store.depot import Depot, open_depot
from s3t.store.files import NodeFile
from s3t.store.seal import Kind, Sealer, is_sealed
from s3t.system.durable import other_names, sync_folder, write_durably
from s3t.types import Digest, NodeKey

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["STALE", "NodeStore", "Removal", "Stamp", "folder_stamp"]

_log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_EVIDENCE = ".evidence"
_SUFFIXES = _SUFFIX, _EVIDENCE
_KINDS: tuple[Kind, ...] = ("node", "evidence")
_OF_NODE = re.compile(r"[0-9a-f]{64}\.(safetensors|evidence)")
_HALF_WRITTEN = ".*.tmp"
_BESIDE = ("run", "run/base", "run/deletions", "run/plans", "work", "work/beats", "work/claims")
"""Folders at the URL that belong to the run (see ``s3t.run``)."""

STALE = 3600.0
"""Seconds after which no process is at a half-written file, on whatever machine it was begun."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``NodeStore.remove`` has done.

    Attributes:
        files: paths and URLs of the files that were there and are gone, sorted.
        unknown: with encryption, the nodes that the key ring holds no data key of and never did, as
            far as it can tell: never trained under it, so it cannot make any backup forget them.
        left: why the store at the URL still holds older versions of the files of some nodes.
        linked: under which names the bytes of some nodes stay: links, which are not ours to follow.
    """

    files: tuple[str, ...]
    unknown: frozenset[NodeKey]
    left: Mapping[NodeKey, str] = field(default_factory=dict)
    linked: Mapping[NodeKey, str] = field(default_factory=dict)


Stamp = tuple[int, int, int, int]
"""Device, inode, bytes and moment of change of a file."""


class NodeStore:
    """The nodes of one run.

    Args:
        root: the folder ``nodes`` of the run, made when first written to; with ``depot`` it holds
            the copies of what lies there, and nothing else does.
        depot: where the nodes lie that all machines share; None if ``root`` is that place.
        sealer: seals and opens them; None if they lie there plain.
    """

    def __init__(
        self, root: Path, depot: Depot | None = None, sealer: Sealer | None = None
    ) -> None:
        self.root, self.depot, self.sealer = root, depot, sealer

    def path(self, key: NodeKey) -> Path:
        """Where the node, or its copy, lies on this machine, or would lie."""
        return self.root / _name(key)

    def has(self, key: NodeKey) -> bool:
        """Whether the node is there (not whether it is sound: ``read`` tells)."""
        return self._has(key, "node")

    def keys(self) -> frozenset[NodeKey]:
        """Keys of all nodes there, by one listing."""
        return frozenset(_key(name) for name in self._names() if name.endswith(_SUFFIX))

    def evidence_keys(self) -> frozenset[NodeKey]:
        """Keys of the nodes whose evidence is there, by one listing."""
        return frozenset(_key(name) for name in self._names() if name.endswith(_EVIDENCE))

    def traces(self) -> frozenset[NodeKey]:
        """Keys of the nodes of which anything is left, here or at the URL: the node, its evidence,
        a copy or, where the store tells of them, an older version."""
        there = frozenset(_key(name) for name in self._names() if name.endswith(_SUFFIXES))
        return there | self.copies() | (self.versions() or frozenset())

    def write(
        self, meta: NodeMeta, tensors: Mapping[str, Tensor], said: Tensor | None = None
    ) -> None:
        """Publish a node: it is there whole, durably, or not at all.

        Args:
            meta: its metadata.
            tensors: its tensors, by name.
            said: its evidence (see ``Evidence``), which is there before the node is; None to leave
                what there is.
        """
        if said is not None:
            self.write_evidence(Evidence(meta.key, meta.rows, meta.environment, said))
        self._put(meta.key, pack(meta, tensors), "node")

    def write_evidence(self, evidence: Evidence) -> None:
        """Publish a node's evidence, in place of what there was, whole and durably."""
        self._put(evidence.key, pack_evidence(evidence), "evidence")

    def _put(self, key: NodeKey, content: bytes, kind: Kind) -> None:
        name = _name(key, kind)
        if self.sealer is not None:
            content = self.sealer.seal(key, content, kind)
        if self.depot is not None:
            self.depot.put(name, content)
        write_durably(self.root / name, content)

    def stamps(self, keys: Iterable[NodeKey]) -> dict[NodeKey, Stamp | None]:
        """The stamp of each node's file, which changes with the file; None where there is none.

        Nodes that lie at a URL have no entry: files here are copies, fetched again at need. Files
        that may not be looked at have none either: they are neither gone nor replaced.
        """
        if self.depot is not None:
            return {}
        found = {}
        for key in keys:
            with suppress(PermissionError):
                found[key] = _stamp(self.path(key))
        return found

    def meta(self, key: NodeKey) -> NodeMeta:
        """The node's metadata; proves the lineage, not the tensors.

        Raises:
            DamagedNodeError: missing, unreadable, or written for another key.
            S3TError: the URL or the key ring cannot be reached.
        """
        here, *far = self._files(key)
        try:
            return here.meta()
        except DamagedNodeError:
            if not far:
                raise
        return far[0].meta()

    def read(self, key: NodeKey) -> tuple[NodeMeta, dict[str, Tensor]]:
        """The node's metadata and tensors, verified.

        Raises:
            DamagedNodeError: missing, damaged, or written for another key.
            S3TError: the URL or the key ring cannot be reached.
        """
        here, *far = self._files(key)
        try:
            return here.read()[:2]
        except DamagedNodeError:
            if not far:
                raise
        meta, tensors, there = far[0].read()
        write_durably(self.path(key), there)
        return meta, tensors

    def evidence(self, key: NodeKey, rows: Digest) -> Tensor | None:
        """What a node says of the public validation rows, float32: log probabilities of all
        classes [rows, classes], or of the scored tokens, row by row, [tokens].

        Ask for living nodes alone: evidence has seen what its node has seen.

        Args:
            key: the node's key.
            rows: digest of the validation rows; ``training.node.rows.evidence_rows`` tells which of
                them the evidence is of.

        Returns:
            None if there is none of these rows, or it is damaged, which is logged.

        Raises:
            S3TError: the URL or the key ring cannot be reached.
        """
        wrong, files = None, self._files(key, "evidence")
        for file in files:
            try:
                found, there = file.evidence()
            except DamagedNodeError as error:
                wrong = error
                continue
            if found.rows == rows:
                if file is not files[0]:
                    write_durably(self.root / _name(key, "evidence"), there)
                return found.said
            wrong = None  # a copy may be of rows of before
        if wrong is not None and self._has(key, "evidence"):
            _log.warning("%s; it is not used", wrong)
        return None

    def read_evidence(self, key: NodeKey) -> Evidence:
        """A node's evidence where it counts: at the URL, if there is one. No copy is made.

        Raises:
            DamagedNodeError: missing, damaged, or another node's.
            S3TError: the URL or the key ring cannot be reached.
        """
        return self._files(key, "evidence")[-1].evidence()[0]

    def content(self, key: NodeKey) -> bytes:
        """The node's plain bytes, proved or not: sealed ones are other ones each time.

        Raises:
            DamagedNodeError: missing, or it cannot be opened.
            S3TError: the URL or the key ring cannot be reached.
        """
        return self._files(key)[-1].content()

    def remove(self, keys: Collection[NodeKey]) -> Removal:
        """Remove nodes and their evidence for good, here and at the URL, durably when this returns.

        Name all nodes that must be gone, whether they are there or not: then backups forget too,
        and the same call finishes what a killed one began. Data keys go first, so nothing can be
        opened from then on. Half-written files are ``sweep``'s; other machines remove their copies
        themselves (``forget_copies``).

        Raises:
            IntegrityError: the key ring cannot be used, or a file is sealed and no data key of it
                could be destroyed; no file was removed.
            S3TError: the URL or the key ring cannot be reached, or a file cannot be removed.
        """
        unknown = frozenset() if self.sealer is None else self.sealer.destroy(keys)
        self._refuse_other_seals(keys if self.sealer is None else unknown)
        linked = self._linked(keys if self.sealer is None else unknown)
        gone = self._remove_here(keys)
        left = {}
        if self.depot is not None:
            gone += self.depot.remove_all(_names_of(keys))
            kept = self.depot.remove_versions({*_names_of(keys)})
            left = {_key(name): why for name, why in kept.items()}
        return Removal(tuple(sorted(gone)), unknown, left, linked)

    def versions(self) -> frozenset[NodeKey] | None:
        """Nodes of which the store at the URL holds older versions, or marks that it was removed,
        or of whose evidence it does.

        No listing of the nodes shows those. None where the store does not let us see them.
        """
        found = {} if self.depot is None else self.depot.versions()
        if found is None:
            return None
        return frozenset(_key(name) for name in found if _is_of_node(name))

    def copies(self) -> frozenset[NodeKey]:
        """Keys of the nodes at the URL of which, or of whose evidence, this machine has a copy;
        none without a URL."""
        names = () if self.depot is None else _names_in(self.root)
        return frozenset(_key(name) for name in names if name.endswith(_SUFFIXES))

    def forget_copies(self, keys: Collection[NodeKey]) -> list[str]:
        """Remove copies on this machine of dead nodes, where there is a URL; else nothing.

        The nodes at the URL are removed by the process that purges.

        Returns:
            paths of copies that are still there, since they cannot be removed.
        """
        if self.depot is None:
            return []
        left = []
        for path in self._paths(keys):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                left.append(str(path))
        return left

    def strays(self) -> list[str]:
        """Paths and URLs of what lies among the nodes and is neither one nor half-written, sorted.

        Half-written files that ``sweep`` does not know how to remove are among them.
        """
        found = set()
        if self.root.is_dir():
            half = {*self.root.glob(_HALF_WRITTEN)}
            others = (path for path in self.root.iterdir() if not _is_of_node(path.name))
            found = {str(path) for path in others if path not in half}
        if self.depot is not None:
            shared = self.depot.folder
            half = set() if shared is None else {*shared.glob(_HALF_WRITTEN)}
            known = {*_BESIDE, *(path.name for path in half)}
            names = (name for name in self.depot.names() if name not in known)
            found |= {self.depot.where(name) for name in names if not _is_of_node(name)}
        return sorted(found)

    def sweep(self, seconds: float = 0) -> int:
        """Remove what killed writers left half-written; returns how many files.

        Args:
            seconds: leave nodes alone that are younger, since another process may be at them. What
                lies beside the nodes is others' at any time, and has to be ``STALE``.
        """
        now = time.time()
        swept = open_depot(str(self.root.absolute())).sweep(now - seconds)
        if self.depot is not None:
            swept += self.depot.sweep(now - seconds)
            for folder in _BESIDE:
                swept += self.depot.under(folder).sweep(now - max(seconds, STALE))
        return swept

    def _names(self) -> list[str]:
        return _names_in(self.root) if self.depot is None else self.depot.names()

    def _has(self, key: NodeKey, kind: Kind) -> bool:
        name = _name(key, kind)
        return (self.root / name).is_file() if self.depot is None else self.depot.has(name)

    def _paths(self, keys: Collection[NodeKey]) -> list[Path]:
        return [self.root / name for name in _names_of(keys)]

    def _files(self, key: NodeKey, kind: Kind = "node") -> list[NodeFile]:
        """The file on this machine, a copy where there is a URL; and the one at the URL."""
        name, depot = _name(key, kind), self.depot
        path = self.root / name
        places = [(str(path), partial(_bytes_of, path))]
        if depot is not None:
            places.append((depot.where(name), partial(depot.get, name)))
        return [NodeFile(key, where, take, self.sealer, kind) for where, take in places]

    def _linked(self, keys: Collection[NodeKey]) -> dict[NodeKey, str]:
        """Other names of the nodes' files, on file systems."""
        shared = None if self.depot is None else self.depot.folder
        folders = [self.root] if shared is None else [self.root, shared]
        places = (folder / name for name in _names_of(keys) for folder in folders)
        found = ((path, other_names(path)) for path in places)
        return {_key(path.name): name for path, name in found if name is not None}

    def _remove_here(self, keys: Collection[NodeKey]) -> list[str]:
        """Remove the files, or copies, on this machine; returns the paths of those there were."""
        gone = []
        try:
            for path in self._paths(keys):
                with suppress(FileNotFoundError):
                    path.unlink()
                    gone.append(str(path))
            if self.root.is_dir():
                sync_folder(self.root)
        except OSError as error:
            raise S3TError(
                f"{error.filename or self.root} cannot be removed ({error}): let this process "
                "write there, then run the same command again"
            ) from None
        return gone

    def _refuse_other_seals(self, keys: Collection[NodeKey]) -> None:
        """Refuse to remove sealed files whose data keys cannot be destroyed here: backups of them
        could still be opened, and the removal would claim more than it did."""
        there = set() if self.depot is None else {*self.depot.names()}
        for name in _names_of(keys):
            key, (here, *far) = _key(name), self._files(_key(name), _kind(name))
            for file in (here, *(far if name in there else ())):
                with suppress(OSError):
                    if is_sealed(file.take(8)):
                        raise IntegrityError(
                            f"node {key} is sealed under a key ring that store.keys does not name "
                            f"({file.where}): name it, with store.encrypt=true, or, if it is "
                            "lost, remove the file by hand; then run the same command again"
                        )


def folder_stamp(path: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if there is none.

    Raises:
        UnavailableError: it may not be looked at.
    """
    try:
        found = _stamp(path)
    except OSError as error:
        raise unavailable(error) or error from None
    return None if found is None else found[:2]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _names_in(folder: Path) -> list[str]:
    """Names in a folder; none if it is not there. One that may not be read is not empty."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unavailable(error) or error from None


def _name(key: NodeKey, kind: Kind = "node") -> str:
    return f"{key}{_SUFFIX if kind == 'node' else _EVIDENCE}"


def _names_of(keys: Collection[NodeKey]) -> list[str]:
    """Names of all files of nodes; a node's own before that of its evidence."""
    return [_name(key, kind) for key in sorted(keys) for kind in _KINDS]


def _key(name: str) -> NodeKey:
    return NodeKey(name.removesuffix(_SUFFIX).removesuffix(_EVIDENCE))


def _kind(name: str) -> Kind:
    return "evidence" if name.endswith(_EVIDENCE) else "node"


def _is_of_node(name: str) -> bool:
    return _OF_NODE.fullmatch(name) is not None


def _bytes_of(path: Path, first: int | None) -> bytes:
    with path.open("rb") as file:
        return file.read() if first is None else file.read(first)
