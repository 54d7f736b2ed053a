"""An export: the adapters of what a run serves now, in a folder that peft and engines read.

    view ─► dead adapters leave the folder ─► members, proved ─► checked against the engine
         ─► names into RUN/exports.json ─► adapters, whole or not at all ─► manifest ─► same view?

Invariants: dead adapters leave the folder before anything is made, and stay away whatever fails
afterwards. When an export returns, no adapter in the folder holds a node that was dead by then. An
export that was killed is finished by the same command; what is there is not written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3t.errors import InputError, S3TError
from s3t.export.adapter import Adapter, sha256
from s3t.export.assembly import Assembly
from s3t.export.options import Export, ExportOptions, Merge
from s3t.export.probe import PROBE
from s3t.model.inputs.encoders import TextEncoder
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.run.files.exports import MANIFEST, ExportFolder, ExportRecords, export_tag
from s3t.run.kept_nodes import is_dead, kept_nodes
from s3t.run.opened import OpenRun
from s3t.serving.predictor import Predictor
from s3t.version import __version__

__all__ = ["Exporter", "remove_dead"]

_SEALED = (
    "the adapters are plain files, though the run's nodes are sealed: backups of this folder do "
    "not forget what a purge takes away"
)


class Exporter:
    """Exports of one run into one folder.

    Args:
        opened: the run.
        model: gives the model of the run, loaded when first needed.
        folder: for the adapters: new, empty, or of earlier exports of this run.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(self, opened: OpenRun, model: Callable[[], Predictor], folder: str | Path) -> None:
        self._opened, self._model = opened, model
        self._run = opened.run
        path = _usable(Path(folder), self._run.root)
        self.folder = ExportFolder(path, export_tag(opened.ledger))
        self.records = ExportRecords(self._run.root)
        self._assembly = Assembly(opened, model, self.folder.tag)
        if self.folder.manifest() is None:
            strays = self.folder.strays() if path.is_dir() else []
            if strays:
                raise InputError(
                    f"{path} holds {strays[0]!r}{' and more' if len(strays) > 1 else ''}, which no "
                    "export of this run wrote: give a new or empty folder"
                )

    def export(self, options: ExportOptions) -> Export:
        """Bring the folder to what the run serves now.

        Raises:
            InputError: the engine cannot serve it, or the merged adapter loses too much.
            IntegrityError: a node that should serve is damaged.
            S3TError: the folder cannot be written.
        """
        started, removed = time.perf_counter(), list[str]()
        options.limits()
        while True:
            removed += self.remove_dead()
            view, nodes, plan = self._opened.catch_up()
            if all(node is None for node in nodes):
                self._opened.prove_exhausted()
            self._opened.prove()
            adapters, merge = self._assembly.adapters(nodes, plan, view, options)
            self._begin()
            self.records.add(self.folder.path, {one.name: one.nodes for one in adapters})
            with self.folder.alone():
                entries, written = self._write(adapters)
                replaced = self._close(entries, plan, view, nodes, options, merge)
            if self._opened.catch_up()[0] == view:
                break  # else a deletion came meanwhile: look again at what is dead
        removed += self.remove_dead()
        return Export(
            folder=str(self.folder.path),
            plan=plan.digest,
            view=view,
            adapters=tuple(entries),
            without=tuple(shard for shard, node in enumerate(nodes) if node is None),
            written=tuple(written),
            removed=tuple(dict.fromkeys(removed)),
            replaced=tuple(replaced),
            strays=tuple(self.folder.strays()),
            engine_rank=_engine_rank(adapters, options),
            merge=merge,
            notes=(_SEALED,) if self._run.store.sealer is not None else (),
            seconds=round(time.perf_counter() - started, 3),
        )

    def planned(self, options: ExportOptions) -> tuple[int, tuple[str, ...], tuple[int, ...]]:
        """View, names and shards without a prefix, as ``export`` would have them; writes nothing.

        Raises:
            S3TError: as ``export``.
        """
        view, nodes, plan = self._opened.catch_up()
        if all(node is None for node in nodes):
            self._opened.prove_exhausted()
        self._opened.prove()
        adapters, _ = self._assembly.adapters(nodes, plan, view, options)
        without = tuple(shard for shard, node in enumerate(nodes) if node is None)
        return view, tuple(one.name for one in adapters), without

    def remove_dead(self) -> list[str]:
        """Remove adapters that hold dead nodes from the folder; returns their names.

        Raises:
            S3TError: one cannot be removed.
        """
        return remove_dead(self._opened, self.folder, self.records)

    def remove(self, names: Sequence[str]) -> None:
        """Remove adapters that are no longer served.

        Raises:
            S3TError: one cannot be removed.
        """
        with self.folder.alone():
            _removed(self.folder, self.records, names)

    def _begin(self) -> None:
        """Make the folder, and say whose it is before anything lies there."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            with self.folder.alone():
                self.folder.sweep()
                if self.folder.manifest() is None:
                    self.folder.write_manifest({"adapters": []})
        except OSError as error:
            raise InputError(f"{self.folder.path} cannot be written ({error})") from None

    # ── what is written ──────────────────────────────────────────────────────────────────────

    def _write(self, adapters: Sequence[Adapter]) -> tuple[list[dict[str, Any]], list[str]]:
        """Write what is not there; the manifest's entries, and the names that are new."""
        told = {one["name"]: one for one in (self.folder.manifest() or {}).get("adapters", [])}
        entries, written = [], []
        for adapter in adapters:
            digests = self._there(adapter, told.get(adapter.name, {}).get("files", {}))
            if digests is None:
                model = self._model()
                files = adapter.probed(model.base, _vocabulary(model))
                try:
                    self.folder.put(adapter.name, files)
                except OSError as error:
                    raise S3TError(
                        f"{self.folder.path / adapter.name} cannot be written ({error})"
                    ) from None
                written.append(adapter.name)
                digests = {name: sha256(content) for name, content in sorted(files.items())}
            entries.append(adapter.entry(digests))
        return entries, written

    def _there(self, adapter: Adapter, told: dict[str, str]) -> dict[str, str] | None:
        """Digests of the adapter's files, if all of them are there as they should be."""
        expected = {name: sha256(content) for name, content in adapter.files.items()}
        expected[PROBE] = told.get(PROBE, "")
        place = self.folder.path / adapter.name
        try:
            there = {
                str(path.relative_to(place)): sha256(path.read_bytes())
                for path in sorted(place.rglob("*"))
                if path.is_file()
            }
        except OSError:
            return None
        return there if there == expected else None

    def _close(
        self,
        entries: Sequence[dict[str, Any]],
        plan: Plan,
        view: int,
        nodes: Sequence[Node | None],
        options: ExportOptions,
        merge: Merge | None,
    ) -> list[str]:
        """Write the manifest; names of what lies there and is no longer served."""
        config, names = self._opened.config, {one["name"] for one in entries}
        replaced = [name for name in self.folder.names() if name not in names]
        if options.prune:
            _removed(self.folder, self.records, replaced)
            replaced = []
        known = {**self.folder.told(), **self.records.of(self.folder.path)}
        base_name = self._assembly.base_name
        self.folder.write_manifest(
            {
                "s3t": __version__,
                "plan": plan.digest,
                "view": view,
                "task": config.task,
                "target": options.target,
                "base": {
                    "fingerprint": plan.base,
                    "name": base_name.name,
                    "revision": base_name.revision,
                    "dtype": config.model.dtype,
                    "quantization": config.model.quantization,
                },
                "shards": plan.shards,
                "without": [shard for shard, node in enumerate(nodes) if node is None],
                "merge": None if merge is None else asdict(merge),
                "adapters": list(entries),
                "replaced": [{"name": one, "nodes": list(known.get(one, ()))} for one in replaced],
            }
        )
        return replaced


def remove_dead(opened: OpenRun, folder: ExportFolder, records: ExportRecords) -> list[str]:
    """Remove adapters that hold dead nodes, or whose nodes are not known.

    Returns:
        their names.

    Raises:
        S3TError: one cannot be removed.
    """
    if not folder.path.is_dir():
        return []
    with folder.alone():
        held = records.of(folder.path)  # once: another export may add to them at any time
        known = {**folder.told(), **held}
        kept = kept_nodes(opened.run, opened.ledger)
        dead = [name for name in folder.names() if is_dead(known.get(name), kept)]
        _removed(folder, records, dead)
        gone = [name for name in held if not (folder.path / name).exists()]
        records.drop(folder.path, [one for one in gone if is_dead(held[one], kept)])
    return dead


def _removed(folder: ExportFolder, records: ExportRecords, names: Sequence[str]) -> None:
    left = folder.remove(names)
    if left:
        raise S3TError(
            f"{left[0]}{f' and {len(left) - 1} more' if len(left) > 1 else ''} cannot be removed: "
            "let this process write there, then run the same command again"
        )
    records.drop(folder.path, names)


def _engine_rank(adapters: Sequence[Adapter], options: ExportOptions) -> int | None:
    """The least rank that the engine must be started with; None without an engine."""
    limits = options.limits()
    ranks = [] if limits is None else [limits.rank(one.rank) for one in adapters]
    return max(ranks, default=None)


def _vocabulary(model: Predictor) -> int:
    """Token ids that both the base and the tokenizer know; 0 for images."""
    encoder = model.encoder
    if not isinstance(encoder, TextEncoder):
        return 0
    return min(int(model.base.model.config.vocab_size), len(encoder.tokenizer))


def _usable(folder: Path, root: Path) -> Path:
    """The folder's absolute path."""
    path, run = folder.resolve(), root.resolve()
    if path.is_relative_to(run) or run.is_relative_to(path):
        raise InputError(
            f"{folder} lies in the run {root}, or holds it: exports are copies that others read, "
            "so give a folder elsewhere"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{folder} is no folder: give one for {MANIFEST} and the adapters")
    return path
