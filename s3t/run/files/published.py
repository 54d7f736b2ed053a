"""What a run tells those who cannot ask its ledger: whose a store is, who is hit, and who is gone.

    ledger ──► URL/run/ledger.json              whose the store is, and the key of the hashes
           ──► URL/run/training.json            the plan to train, and the view it was made at
           ──► URL/run/deletions/<view>.json    slots hit and hashes of the samples, for good

Each deletion is an object of its own that never changes and follows from the ledger alone. So
several processes may tell at the same time, and none can take back what another has told.

Invariants: what is read is what was told, proved by a digest, and no deletion before the last one
is missing. Each names its entry in the log, which commits to all entries before it; so a ledger
that holds the entry of the last deletion told holds those of all. A store belongs to the ledger
that claimed it: another one, or one that does not hold what was told from here, is refused before
it puts anything there.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from s3t.errors import InputError, IntegrityError, S3TError, named
from s3t.ledger import Forgotten, Gone, Ledger
from s3t.store import Depot
from s3t.types import Digest, Slot, digest

__all__ = ["Notices"]

_OWNER, _TRAINING, _DELETIONS = "run/ledger.json", "run/training.json", "run/deletions"
_PLAN = "run/plan.json"
_FIELDS = {_OWNER: ("ledger", "secret", "at"), _TRAINING: ("plan", "view")}
_DELETION = ("view", "after", "hits", "hashes", "entry")
_NAME = re.compile(r"(0|[1-9][0-9]*)\.json")
_NONE = -1
"""A view before all."""


class Notices:
    """The notices of one run. Threads may share them.

    Args:
        root: the run directory, for messages.
        depot: at ``store.url``; None if the config names none, over which nothing can be told.
        place: path of the ledger, where it is a file.
    """

    def __init__(self, root: str, depot: Depot | None, place: Callable[[], Path | None]) -> None:
        self._root, self._where, self._place = root, depot, place
        self._lock = threading.Lock()
        self._last: int | None = None
        self._looked: int | None = None
        self._read: dict[int, dict[str, Any]] = {}

    # ── with the ledger ──────────────────────────────────────────────────────────────────────

    def refuse_owned(self) -> None:
        """Refuse a store that some ledger has claimed, for a run that has none yet.

        Raises:
            InputError: it is claimed.
        """
        if self._told(_OWNER) is not None or self._depot.has(_PLAN):
            raise self._of_another()

    def tell(self, ledger: Ledger, *, again: bool = False) -> None:
        """Tell every deletion of the ledger that the store was not told yet; durable at return.

        Args:
            ledger: of the run; a store of none is claimed for it.
            again: look at the store again, even if this object has told it all.

        Raises:
            InputError: the store is another ledger's, or that of the run this one is a copy of.
            IntegrityError: it was told of deletions from here that the ledger does not hold.
            UnavailableError: it cannot be reached; what was told by then is told.
        """
        with self._lock:
            view = ledger.view()
            if again or self._last is None:
                self._last = self._looked = None
                self._claim(ledger)
                self._last = self._agreed(ledger)
            if view == self._looked:
                return  # who was deleted is looked up among all samples
            for made in ledger.deleted.after(self._last):
                name, content = _name(made.view), _packed(_body(made, self._last))
                if not self._depot.create(name, content):
                    raise self._forked(name)
                self._last = made.view
            self._looked = view

    def prove(self, ledger: Ledger) -> None:
        """Refuse a store that is another ledger's; writes nothing.

        Raises:
            InputError: it is.
        """
        owner = self._told(_OWNER)
        if owner is None:
            if self._depot.has(_PLAN):
                raise self._of_another()
        elif owner["ledger"] != ledger.identity:
            raise self._of_another()
        elif (original := self._original(owner, ledger)) is not None:
            raise InputError(
                f"{self._root} is a copy of the run whose ledger is {original}, and "
                f"{self._depot.url} keeps the nodes of that one: use it, remove it, or give the "
                "copy a place of its own with store.url=URL"
            )

    def tell_plan(self, plan: Digest, view: int) -> None:
        """Tell which plan is to be trained, made of the samples left at a view."""
        self._depot.put(_TRAINING, _packed({"plan": plan, "view": view}))

    def views(self) -> list[int]:
        """Views of the deletions that were told, in order; one listing."""
        names = self._depot.names(_DELETIONS)
        strange = [name for name in names if not _NAME.fullmatch(name)]
        if strange:
            raise IntegrityError(
                f"{self._depot.where(_DELETIONS)} holds {named(strange)}, which no run puts there: "
                "move it away, and see who can write there"
            )
        return sorted(int(name.removesuffix(".json")) for name in names)

    def last_entry(self) -> tuple[int, Digest | None] | None:
        """View of the last deletion that was told, and the entry of the log that it names."""
        views = self.views()
        body = self._told(_name(views[-1])) if views else None
        return None if body is None else (body["view"], body["entry"])

    # ── without it ───────────────────────────────────────────────────────────────────────────

    def told(self) -> tuple[Digest, set[Slot]] | None:
        """The plan that was told last, and its hits; None before the first time.

        Raises:
            IntegrityError: what lies there is not what was told.
        """
        body = self._told(_TRAINING)
        if body is None:
            return None
        hits = {
            (shard, part)
            for made in self._deletions()
            if made["view"] > body["view"]
            for shard, part in made["hits"]
        }
        return body["plan"], hits

    def hits_of(self, plan: Digest) -> set[Slot]:
        """The hits that were told for a plan.

        Raises:
            IntegrityError: nothing was told, or what lies there is not what was told.
            S3TError: another plan is trained by now.
        """
        told = self.told()
        if told is None:
            raise IntegrityError(
                f"{self._depot.where(_TRAINING)} is missing, so it is not known what was "
                "deleted: train on the machine that prepared the run, which tells it"
            )
        if told[0] != plan:
            raise S3TError(
                f"{self._depot.where(_TRAINING)} is of another plan by now: run the same "
                "command again, which trains that one"
            )
        return told[1]

    def gone(self) -> Gone:
        """The deleted samples that were told, as keyed hashes; none before the first time."""
        owner, made = self._told(_OWNER), self._deletions()
        if owner is None or not made:
            return Gone(b"", frozenset())
        hashes = frozenset(one for body in made for one in body["hashes"])
        return Gone(bytes.fromhex(owner["secret"]), hashes, made[-1]["view"])

    # ── inside ───────────────────────────────────────────────────────────────────────────────

    def _claim(self, ledger: Ledger) -> None:
        """Make the store this ledger's, or prove that it is."""
        self.prove(ledger)
        place = self._place()
        mine = {
            "ledger": ledger.identity,
            "secret": ledger.deleted.secret.hex(),
            "at": None if place is None else str(place.resolve()),
        }
        found = self._told(_OWNER)
        if found is None:
            if self.views():
                raise self._of_another()
            self._depot.create(_OWNER, _packed(mine))
            found = self._told(_OWNER)  # where there is no conditional put another may have won
            if found is None or found["ledger"] != mine["ledger"]:
                raise self._of_another()
        elif found != mine:  # it was moved
            self._depot.put(_OWNER, _packed(mine))

    def _original(self, owner: dict[str, Any], ledger: Ledger) -> str | None:
        """The ledger that claimed the store, if this one is a copy of it and it is still there."""
        place, at = self._place(), owner["at"]
        if place is None or at is None or not Path(at).is_file():
            return None
        if Path(at).samefile(place):
            return None
        with suppress(S3TError), Ledger.open(at, read_only=True) as other:
            if other.identity != ledger.identity:
                return None  # this one was moved, and that is a later run
        return str(at)

    def _agreed(self, ledger: Ledger) -> int:
        """View of the last deletion that was told, which the ledger must hold as it was told."""
        views = self.views()
        if not views:
            return _NONE
        last, before = views[-1], (_NONE, *views)[-2]
        held = [made for made in ledger.deleted.after(last - 1) if made.view == last]
        if not held or self._told(_name(last)) != _body(held[0], before):
            raise self._forked(_name(last))
        return last

    def _deletions(self) -> list[dict[str, Any]]:
        """All that was told of deletions, by view, with none left out before the last."""
        found, before = [], _NONE
        for view in self.views():
            if view not in self._read:
                body = self._told(_name(view))
                if body is not None:
                    self._read[view] = body
            made = self._read.get(view)
            if made is None or made["view"] != view or made["after"] != before:
                raise IntegrityError(
                    f"{self._depot.where(_DELETIONS)} does not hold all deletions up to view "
                    f"{view}: something has removed what the run told there. Remove the folder, "
                    "and run s3t train on the machine that prepared the run, which tells it again"
                )
            found.append(made)
            before = view
        return found

    def _told(self, name: str) -> dict[str, Any] | None:
        """What was told under a name, proved; None before the first time."""
        try:
            body: dict[str, Any] = json.loads(self._depot.get(name))
            check = body.pop("check")
            if check == digest(body) and body.keys() == set(_FIELDS.get(name, _DELETION)):
                return body
            reason = "its digest differs" if check != digest(body) else "it is of another s3t"
        except FileNotFoundError:
            return None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = str(error)
        where = self._depot.where(name)
        raise IntegrityError(
            f"{where} cannot be used ({reason}): remove it, and train on the machine that "
            "prepared the run, which tells it again"
        )

    def _of_another(self) -> InputError:
        return InputError(
            f"{self._depot.url} keeps the nodes of another run than {self._root}, with a ledger of "
            "its own, so nothing was done: give an empty place with store.url=URL, use the "
            "directory of that run, or join it with s3t attach if its ledger is a database"
        )

    def _forked(self, name: str) -> IntegrityError:
        return IntegrityError(
            f"{self._depot.where(name)} tells of a deletion that the ledger of {self._root} does "
            "not hold, so that is an older copy: restore the newest one. If that is lost, repeat "
            f"the deletions since, remove the folder {self._depot.where(_DELETIONS)}, and run "
            "s3t status RUN, which tells all of them again"
        )

    @property
    def _depot(self) -> Depot:
        if self._where is None:
            raise InputError(f"{self._root} names no store.url, over which machines are told")
        return self._where


def _name(view: int) -> str:
    return f"{_DELETIONS}/{view}.json"


def _body(made: Forgotten, before: int) -> dict[str, Any]:
    return {
        "view": made.view,
        "after": before,
        "hits": [list(slot) for slot in made.slots],
        "hashes": list(made.hashes),
        "entry": made.entry,
    }


def _packed(body: dict[str, Any]) -> bytes:
    return json.dumps(body | {"check": digest(body)}, sort_keys=True).encode()
