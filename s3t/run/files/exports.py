"""Copies of nodes that a run has written elsewhere: adapters in folders of the user's own.

    RUN/exports.json    whose they are, and
                        {"/srv/adapters": {"s3t-1f0c…-shard-003-9c0d…": [keys of its nodes], …}, …};
                        those that left a folder, and the engines that have ended with each
    DIR/                one folder an adapter, and s3t-export.json, which says what each of them is

Invariants: a name is written down here before anything of it lies in a folder, so a purge knows of
it even if the export was killed; names and keys are digests, so nothing here names a sample. Only
what bears a name of this run is ever removed from a folder, whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3t.errors import InputError, IntegrityError
from s3t.ledger import Ledger
from s3t.system.durable import (
    fresh_beside,
    held_folder,
    remove_whole,
    sync_folder,
    write_durably,
)
from s3t.types import NodeKey

__all__ = ["MANIFEST", "ExportFolder", "ExportRecords", "Exported", "Left", "export_tag"]

MANIFEST = "s3t-export.json"
_RECORDS = "exports.json"
_FORMAT = 1
_NAME = r"s3t-{tag}-(?:shard-[0-9]{{3,}}|merged)-[0-9a-f]{{16}}"

Nodes = tuple[NodeKey, ...]


def export_tag(ledger: Ledger) -> str:
    """What all names of a run's adapters have in common: 8 hex digits that stand for its ledger."""
    return ledger.deleted.keyed("adapters")[:8]


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder that adapters were written to.

    Attributes:
        path: absolute.
        adapters: name of each adapter → keys of all nodes whose weights it holds.
    """

    path: Path
    adapters: Mapping[str, Nodes]


@dataclass(frozen=True, slots=True)
class Left:
    """An adapter that left a folder, and that an engine may still have.

    Attributes:
        nodes: keys of all nodes whose weights it held; empty if that is not known.
        ended: URLs of the engines that were seen to refuse it, with no answer of it under way.
    """

    nodes: Nodes
    ended: frozenset[str]


class ExportRecords:
    """What a run remembers of its exports (``RUN/exports.json``).

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / _RECORDS

    def owner(self) -> Path | None:
        """Another run that these exports are of: this one is a copy of it, and it is still there.

        None if they are of this run, wherever it was moved to.
        """
        if not self._path.exists():
            return None
        wrote = Path(str(self._document().get("run", self._root)))
        copied = wrote != self._root.resolve() and (wrote / _RECORDS).exists()
        return wrote if copied else None

    def all(self) -> list[Exported]:
        """All folders that hold, or may hold, adapters of the run, by path.

        Raises:
            IntegrityError: the file is damaged.
        """
        return [
            Exported(Path(path), {name: tuple(map(NodeKey, keys)) for name, keys in held.items()})
            for path, held in sorted(self._read().items())
        ]

    def of(self, folder: Path) -> Mapping[str, Nodes]:
        """What is remembered of one folder."""
        return next((one.adapters for one in self.all() if one.path == folder), {})

    def add(self, folder: Path, adapters: Mapping[str, Sequence[NodeKey]]) -> None:
        """Remember adapters, durably, before they are written."""
        with self._alone() as document:
            held = document["exports"].setdefault(str(folder), {})
            held |= {name: list(keys) for name, keys in adapters.items()}
            for name in adapters:
                document["left"].get(str(folder), {}).pop(name, None)

    def drop(self, folder: Path, names: Collection[str]) -> None:
        """Adapters are gone from a folder: they lie there no more, but an engine may have them."""
        if not names:
            return
        with self._alone() as document:
            held = document["exports"].get(str(folder), {})
            left = document["left"].setdefault(str(folder), {})
            for name in {*names} & held.keys():
                left.setdefault(name, {"nodes": held[name], "ended": []})
                del held[name]

    def left(self, folder: Path) -> dict[str, Left]:
        """What an engine that reads a folder may still have, though the folder has it no more."""
        return {
            name: Left(tuple(map(NodeKey, one["nodes"])), frozenset(one["ended"]))
            for name, one in self._document()["left"].get(str(folder), {}).items()
        }

    def doom(self, folder: Path, adapters: Mapping[str, Sequence[NodeKey]]) -> None:
        """Remember, durably, that engines have to end with these, before any is asked to."""
        if not adapters:
            return
        with self._alone() as document:
            left = document["left"].setdefault(str(folder), {})
            left |= {name: {"nodes": list(keys), "ended": []} for name, keys in adapters.items()}

    def end(self, folder: Path, names: Collection[str], url: str) -> None:
        """An engine was seen to refuse these, with no answer of them under way."""
        with self._alone() as document:
            left = document["left"].get(str(folder), {})
            for name in {*names} & left.keys():
                left[name]["ended"] = sorted({*left[name]["ended"], url})

    @contextmanager
    def _alone(self) -> Iterator[dict[str, Any]]:
        """What is known, to be changed; written when the block ends well."""
        with held_folder(self._root):
            # a copy of a run begins empty: what the other has written is the other's
            known = self._document() if self.owner() is None else {"exports": {}, "left": {}}
            before = json.dumps(known, sort_keys=True)
            yield known
            if json.dumps(known, sort_keys=True) != before:
                document = {**known, "format": _FORMAT, "run": str(self._root.resolve())}
                write_durably(self._path, json.dumps(document, indent=1, sort_keys=True).encode())

    def _read(self) -> dict[str, dict[str, list[str]]]:
        held: dict[str, dict[str, list[str]]] = self._document()["exports"]
        return held

    def _document(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self._path.read_bytes())
            if document["format"] > _FORMAT:
                raise IntegrityError(f"{self._path} was written by a newer s3t: upgrade s3t")
            document["exports"] = {
                str(path): {str(name): [str(key) for key in keys] for name, keys in held.items()}
                for path, held in document["exports"].items()
            }
            document["left"] = {
                str(path): {
                    str(name): {
                        "nodes": [*map(str, one["nodes"])],
                        "ended": [*map(str, one["ended"])],
                    }
                    for name, one in left.items()
                }
                for path, left in document.get("left", {}).items()
            }
            return document
        except FileNotFoundError:
            return {"exports": {}, "left": {}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{self._path} cannot be read ({error}), so it is unknown where copies of nodes "
                "lie: restore it from a copy, or remove it and every export by hand"
            ) from None


class ExportFolder:
    """A folder of adapters of one run.

    Args:
        path: the folder.
        tag: of the run, see ``export_tag``.
    """

    def __init__(self, path: Path, tag: str) -> None:
        self.path, self.tag = path, tag
        name = _NAME.format(tag=tag)
        self._name, self._half = re.compile(name), re.compile(rf"\.{name}\..*\.tmp")

    def is_ours(self, name: str) -> bool:
        """Whether an adapter of this name is the run's."""
        return self._name.fullmatch(name) is not None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other exports and purges out of the folder meanwhile."""
        with held_folder(self.path):
            yield

    def names(self) -> list[str]:
        """Names of the run's adapters that lie there, sorted."""
        return sorted(path.name for path in self._entries() if self.is_ours(path.name))

    def strays(self) -> list[str]:
        """What else lies there, sorted: not ours, never touched."""
        return sorted(
            path.name
            for path in self._entries()
            if path.name != MANIFEST
            and not self.is_ours(path.name)
            and not self._half.fullmatch(path.name)
            and not re.fullmatch(rf"\.{re.escape(MANIFEST)}\..*\.tmp", path.name)
        )

    def manifest(self) -> dict[str, Any] | None:
        """What the folder says of itself; None if it says nothing.

        Raises:
            InputError: it cannot be understood, or is another run's.
        """
        path = self.path / MANIFEST
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            tag, version = document["run"], document["format"]
            if not isinstance(document["adapters"], list):
                raise TypeError("adapters")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be understood ({error}): remove it with the adapters beside it, or "
                "give another folder"
            ) from None
        if version > _FORMAT:
            raise InputError(f"{path} was written by a newer s3t: upgrade s3t")
        if tag != self.tag:
            raise InputError(
                f"{self.path} holds the adapters of another run (s3t-{tag}): give another folder"
            )
        return document

    def told(self) -> dict[str, Nodes]:
        """Adapters that the manifest names, and their nodes."""
        document = self.manifest() or {"adapters": []}
        listed = [*document["adapters"], *document.get("replaced", [])]
        return {str(one["name"]): tuple(map(NodeKey, one["nodes"])) for one in listed}

    def write_manifest(self, document: Mapping[str, Any]) -> None:
        """Say what lies there, durably."""
        whole = {"format": _FORMAT, "run": self.tag, **document}
        content = json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"
        if not (self.path / MANIFEST).exists() or (self.path / MANIFEST).read_bytes() != content:
            write_durably(self.path / MANIFEST, content)

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put an adapter there, whole and durably; what lies under its name makes room.

        Args:
            name: of the adapter.
            files: contents by path inside its folder.
        """
        assert self.is_ours(name)
        target = self.path / name
        half = fresh_beside(target)
        for inner, content in sorted(files.items()):
            write_durably(half / inner, content)
        sync_folder(half)
        self._away(name)
        os.rename(half, target)
        sync_folder(self.path)

    def remove(self, names: Collection[str]) -> list[str]:
        """Remove adapters of the run, durably, and tell the manifest.

        Returns:
            names of those that cannot be removed, with the reason.
        """
        left = []
        for name in sorted(names):
            try:
                if self.is_ours(name):
                    self._away(name)
            except OSError as error:
                left.append(f"{self.path / name} ({error.strerror or error})")
        document = None
        with suppress(InputError):  # one that cannot be understood is left as it is
            document = self.manifest()
        if document is not None:
            for kind in ("adapters", "replaced"):
                document[kind] = [
                    one for one in document.get(kind, []) if (self.path / one["name"]).exists()
                ]
            rest = {key: document[key] for key in document if key not in ("format", "run")}
            self.write_manifest(rest)
        if self.path.is_dir():
            sync_folder(self.path)
        return left

    def sweep(self) -> int:
        """Remove what killed exports left half-written; returns how many there were."""
        half = [path for path in self._entries() if self._half.fullmatch(path.name)]
        for path in half:
            remove_whole(path)
        return len(half)

    def _away(self, name: str) -> None:
        """Remove an adapter; from the first moment on nothing of it can be taken for whole."""
        target = self.path / name
        if not os.path.lexists(target):
            return
        gone = fresh_beside(target)
        os.rename(target, gone)
        remove_whole(gone)

    def _entries(self) -> list[Path]:
        return list(self.path.iterdir()) if self.path.is_dir() else []
