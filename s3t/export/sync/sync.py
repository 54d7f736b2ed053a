"""Brings an engine to what the run serves now; dead adapters come first.

    dead adapters     folders removed ─► unloaded ─► refused ─► no answer with them runs or waits;
                      reported one by one, even if all that follows fails
    living ones       exported ─► loaded under new names ─► probed, at every sync
    replaced ones     unloaded, if every new one answers; then their folders are removed

Invariants: the state is what the engine lists and what the run has recorded of adapters that left.
So a sync that was killed is finished by the next one, and a sync of a finished state changes
nothing. An adapter is dead if it holds a dead node, or has a name of this run that is not known. No
other name is ever unloaded. An adapter counts as forgotten only when the engine was seen to have
ended its use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from queue import Empty, SimpleQueue
from threading import Thread
from typing import NoReturn, TypeVar, cast

from s3t.errors import S3TError, UnavailableError
from s3t.export import Export, Exporter, ExportOptions
from s3t.export.sync.ending import EndedAdapter, end_with
from s3t.export.sync.engine import EngineAnswer, ListedModel, ServingEngine
from s3t.export.sync.http import EngineError
from s3t.export.sync.probing import Probing
from s3t.export.sync.report import Round, Sync, Told, Watching
from s3t.run.kept_nodes import is_dead, kept_nodes
from s3t.run.opened import OpenRun
from s3t.types import NodeKey

__all__ = ["Synchroniser"]


Found = TypeVar("Found")

_LOOK = 0.05
"""Seconds between two looks at the ledger while an engine has not answered."""


class Synchroniser:
    """Keeps one engine to one run.

    Args:
        opened: the run.
        exporter: of its adapters, to a folder that the engine can read.
        engine: the engine.
        options: what to export.
        seen_at: the folder's path as the engine sees it; default: as it is here.
    """

    def __init__(
        self,
        opened: OpenRun,
        exporter: Exporter,
        engine: ServingEngine,
        options: ExportOptions,
        seen_at: str | None = None,
    ) -> None:
        self._opened, self._exporter, self._engine = opened, exporter, engine
        self._options, self._seen_at = options, seen_at or str(exporter.folder.path)
        self._latest: Export | None = None
        self._probing = Probing(exporter.folder)

    def sync(self, told: Callable[[EndedAdapter], None] = lambda _: None) -> Sync:
        """Bring the engine to the run's present view.

        Args:
            told: gets each dead adapter as soon as the engine has ended with it, before anything
                is loaded or probed.

        Raises:
            UnavailableError: the engine cannot be reached; the message tells what it may still
                serve. All other problems are in the answer.
        """
        round_ = Round(time.perf_counter())
        while True:
            view = self._opened.ledger.view()
            self._forget(round_, told, view)
            if self._changed(view):
                continue
            export = self._export(round_)
            try:
                if export is not None and self._load(round_, export):
                    self._replace(round_, export)
            except _OvertakenError:
                continue
            if export is None or round_.problems:
                return round_.report(self._engine, export)
            if not self._changed(export.view):
                return round_.report(self._engine, export)

    def would(self) -> Sync:
        """What ``sync`` would do now; nothing is changed, in the folder or in the engine.

        Raises:
            UnavailableError, S3TError: as ``sync``.
        """
        round_ = Round(time.perf_counter())
        listed, alive = self._ours(), self._alive()
        view, names, without = self._exporter.planned(self._options)
        round_.forgotten = [name for name in listed if not alive(name)]
        round_.loaded = [name for name in names if name not in listed]
        round_.kept = [name for name in names if name in listed]
        gone = {*round_.forgotten, *names}  # a living name that was dropped is loaded again
        round_.replaced = [name for name in listed if name not in gone]
        return round_.report(self._engine, None, view, without, dry_run=True)

    def watch(self, seconds: float, told: Callable[[Told], None]) -> NoReturn:
        """Sync again at every change of the ledger, and every so many seconds; never ends.

        Args:
            seconds: between two looks at an engine that may have been started again.
            told: gets each outcome, before it each adapter that was forgotten, and a
                ``Watching`` when the first sync without a problem is done, again after the
                ledger was away.
        """
        while True:
            try:
                with self._opened.ledger.watch() as watching:
                    in_force = False
                    while True:
                        try:
                            told(found := self.sync(told))
                            if not in_force and not found.problems:
                                engine, in_force = self._engine, True
                                told(Watching(engine.target, engine.url, found.view, seconds))
                        except S3TError as error:
                            told(error)
                        watching.wait(seconds)
            except UnavailableError as error:  # the ledger is gone: look for it again
                told(error)
                time.sleep(seconds)

    # ── the steps ────────────────────────────────────────────────────────────────────────────

    def _forget(self, round_: Round, told: Callable[[EndedAdapter], None], view: int) -> None:
        """Have the engine end its use of dead adapters, whatever else goes wrong.

        Returns early if there is another view: what that kills must be unloaded first.
        """
        started = time.perf_counter()
        folder, records, url = self._exporter.folder, self._exporter.records, self._engine.url
        known, alive, left = self._known(), self._alive(), records.left(folder.path)
        gone = {name for name in left if not alive(name)}
        ended = {name for name in gone if url in left[name].ended}
        lying = {name for name in (*folder.told(), *records.of(folder.path)) if not alive(name)}
        self._doom(round_, {name: known[name] for name in lying - gone})
        try:
            self._exporter.remove_dead()  # an engine may read a folder again at any time
        except S3TError as error:
            round_.failed(error)
        except OSError as error:  # the disk may be full: what is dead is unloaded all the same
            round_.failed(S3TError(f"{folder.path} cannot be written ({error})"))
        dead = (gone | lying) - ended
        try:
            listed = {name for name in self._ours() if not alive(name)}
        except UnavailableError as error:
            served = f": it may still serve {', '.join(sorted(dead))}, which hold what was deleted"
            raise UnavailableError(f"{error}{served if dead else ''}") from None
        self._doom(round_, {name: known.get(name, ()) for name in listed - dead})
        dead, ended = dead | listed, ended - listed
        until = time.monotonic() + self._engine.client.timeout
        outcomes = end_with(self._engine, listed, dead, ended, until, lambda: self._changed(view))
        for name, problem in outcomes:
            if problem is not None:
                round_.failed(problem, "IT MAY STILL BE SERVED, and holds what was deleted")
                if name in ended:  # from now on it has to be seen to end again
                    self._doom(round_, {name: known.get(name, ())})
                continue
            try:
                records.end(folder.path, [name], url)
            except OSError as error:  # the next sync ends with it once more
                round_.failed(S3TError(f"{self._opened.run.root} cannot be written ({error})"))
            round_.forget(name)
            seconds = round(time.perf_counter() - started, 3)
            told(EndedAdapter(name, self._engine.target, url, seconds))

    def _doom(self, round_: Round, adapters: Mapping[str, tuple[NodeKey, ...]]) -> None:
        """Record in the run that the engine has to end its use of some adapters."""
        try:
            self._exporter.records.doom(self._exporter.folder.path, adapters)
        except OSError as error:  # the disk may be full: what is dead goes all the same
            round_.failed(S3TError(f"{self._opened.run.root} cannot be written ({error})"))

    def _export(self, round_: Round) -> Export | None:
        """The adapters of the present view, in the folder; None if there is a problem."""
        latest = self._latest
        if latest is not None and latest.view == self._opened.ledger.view():
            places = [self._exporter.folder.path / name for name in latest.names]
            if all(place.is_dir() for place in places):
                return latest
        try:
            self._latest = self._exporter.export(self._options)
        except S3TError as error:
            self._latest = None
            round_.failed(error)
        except OSError as error:
            self._latest = None
            round_.failed(S3TError(f"{self._exporter.folder.path} cannot be written ({error})"))
        return self._latest

    def _load(self, round_: Round, export: Export) -> bool:
        """Load what is not there or answers otherwise, and probe all; whether all is well."""
        listed, well = self._ours(), True
        for name in export.names:
            there = listed.get(name)
            try:
                if there is not None:
                    wrong = self._wrong(there, round_, export.view)
                    if wrong is None:
                        round_.kept.append(name)
                        continue
                    well = False
                    if isinstance(wrong, EngineError) and wrong.status >= 500:
                        round_.failed(wrong)  # the engine is at fault, not what it has loaded
                        continue
                    round_.failed(wrong, "it is loaded again")
                    self._engine.unload(name)
                path = f"{self._seen_at.rstrip('/')}/{name}"
                self._unless_changed(export.view, partial(self._engine.load, name, path))
                round_.difference = max(round_.difference, self._probe(name, export.view))
                round_.loaded.append(name)
            except S3TError as error:
                well = False
                needs = f"it needs --max-lora-rank {export.engine_rank}, or more"
                round_.failed(error, needs if isinstance(error, EngineError) else "")
                self._take_back(round_, name)
        return well

    def _wrong(self, there: ListedModel, round_: Round, view: int) -> S3TError | None:
        """What is wrong with an adapter that is loaded; a problem though it is put right.

        Raises:
            UnavailableError: the engine cannot be reached.
        """
        try:
            if there.root is not None and PurePosixPath(there.root).name != there.name:
                return S3TError(f"{there.name} is served from {there.root}")
            round_.difference = max(round_.difference, self._probe(there.name, view))
        except UnavailableError:
            raise
        except S3TError as error:
            return error
        return None

    def _take_back(self, round_: Round, name: str) -> None:
        """Unload what was loaded and does not answer as it should."""
        try:
            if name in self._ours():
                self._engine.unload(name)
        except S3TError as error:
            round_.failed(error)

    def _replace(self, round_: Round, export: Export) -> None:
        """Unload what others have taken the place of; all of those answer."""
        names = {*export.names}
        for name in self._ours():
            if name not in names:
                try:
                    self._engine.unload(name)
                    round_.replaced.append(name)
                except S3TError as error:
                    round_.failed(error)
        left = {*self._ours()} | names
        folder = self._exporter.folder
        self._exporter.remove([name for name in folder.names() if name not in left])

    def _probe(self, name: str, view: int) -> float:
        """See that an adapter answers as it should; left off when there is another view."""

        def ask(asked: str | None, prompts: list[list[int]]) -> list[EngineAnswer]:
            return self._unless_changed(view, lambda: self._engine.ask(asked, prompts))

        return self._probing.probe(name, ask)

    def _unless_changed(self, view: int, call: Callable[[], Found]) -> Found:
        """What a call gives; not waited for once there is another view.

        An engine with a long queue answers late, and one that reads a large adapter; forgetting
        must not wait for either.
        """
        answers: SimpleQueue[tuple[Found | None, BaseException | None]] = SimpleQueue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:
                answers.put((None, error))

        Thread(target=work, daemon=True).start()
        while True:
            try:
                found, error = answers.get(timeout=_LOOK)
            except Empty:
                if self._changed(view):
                    raise _OvertakenError from None
                continue
            if error is not None:
                raise error
            return cast(Found, found)

    # ── what there is ────────────────────────────────────────────────────────────────────────

    def _changed(self, view: int) -> bool:
        return self._opened.ledger.view() != view

    def _ours(self) -> dict[str, ListedModel]:
        """What the engine lists under names of this run."""
        folder = self._exporter.folder
        return {one.name: one for one in self._engine.listed() if folder.is_ours(one.name)}

    def _known(self) -> dict[str, tuple[NodeKey, ...]]:
        """All adapters that the run remembers, or the folder tells of, and their nodes."""
        folder, records = self._exporter.folder, self._exporter.records
        known = {name: one.nodes for name, one in records.left(folder.path).items()}
        known |= folder.told()
        for exported in records.all():
            known |= exported.adapters
        return known

    def _alive(self) -> Callable[[str], bool]:
        """Tells of a name whether all of its nodes are known, and live."""
        known = self._known()
        kept = kept_nodes(self._opened.run, self._opened.ledger)
        return lambda name: not is_dead(known.get(name), kept)


class _OvertakenError(Exception):
    """There is another view: what it kills must be forgotten first."""
