"""The files of a run's plans: the one in force, one that is trained before it is served.

    RUN/plan.json, RUN/plan.<16 hex>.json      URL/run/plans/<digest>.json

Invariant: the ledger names plans by their digest, and a plan is believed only under the digest that
it names; so it does not matter which file holds it, and a kill while one replaces the other does no
harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

from s3t.errors import IntegrityError
from s3t.plan import Plan
from s3t.store import Depot, write_durably
from s3t.system.durable import sync_folder
from s3t.types import Digest

__all__ = ["PlanFiles", "plan_in"]

_PLANS = "run/plans"
_NAME = re.compile(r"[0-9a-f]{64}\.json")


class PlanFiles:
    """The plans of one run.

    Args:
        root: the run directory.
        depot: gives what is at ``store.url``, if anything is.
    """

    def __init__(self, root: Path, depot: Callable[[], Depot | None]) -> None:
        self._root, self._depot = root, depot
        self.path = root / "plan.json"

    def find(self, named: Callable[[], Digest | None]) -> Plan:
        """The plan whose digest ``named`` gives, asked again if a plan was replaced meanwhile.

        One that another machine has made is fetched from the store's URL, and kept here.

        Raises:
            IntegrityError: no file holds it, or what holds it proves to be damaged.
        """
        asked = named()
        while True:
            problem, moved = None, False
            for path in (self.path, *self.others()):
                try:
                    plan = plan_in(path)
                except IntegrityError as error:
                    if path == self.path:
                        problem = error
                    moved = moved or (path != self.path and not path.exists())
                    continue
                if asked is None or plan.digest == asked:
                    return plan
            if moved:
                continue  # it was given its place between two of these looks
            if (again := named()) == asked:
                fetched = None if asked is None else self.fetched(asked)
                if fetched is not None:
                    self.write(fetched)
                    return fetched
                raise problem or IntegrityError(
                    f"{self.path} is not the plan {asked} that the ledger names: restore it "
                    "from a copy"
                )
            asked = again

    def others(self) -> list[Path]:
        """Files of plans that are not in force, or were not a moment ago."""
        return sorted(self._root.glob("plan.*.json"))

    def write(self, plan: Plan) -> None:
        """Keep a plan that is not yet in force."""
        write_durably(self._path_of(plan.digest), plan.to_json().encode())

    def publish(self, plan: Plan) -> None:
        """Put a plan where machines that share no folder find it by its digest."""
        depot = self._depot()
        if depot is not None and not depot.has(name := f"{_PLANS}/{plan.digest}.json"):
            depot.put(name, plan.to_json().encode())

    def fetched(self, asked: Digest) -> Plan | None:
        """A plan that another machine has published; None if there is none of this digest."""
        depot = self._depot()
        if depot is None:
            return None
        try:
            content = depot.get(f"{_PLANS}/{asked}.json")
            plan = Plan.from_json(content.decode())
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return plan if plan.digest == asked else None

    def superseded(self, kept: Collection[Digest]) -> list[str]:
        """Names of plans at the store's URL but some: their digests are of deleted samples too."""
        depot = self._depot()
        names = () if depot is None else depot.names(_PLANS)
        return [name for name in names if _NAME.fullmatch(name) and name[:64] not in kept]

    def forget(self, superseded: Collection[str]) -> None:
        """Remove such plans, and what the store keeps of them."""
        depot = self._depot()
        if depot is not None and superseded:
            depot.under(_PLANS).remove_all(superseded)
            depot.under(_PLANS).remove_versions(superseded)

    def settle(self, plan: Plan, newest: Digest | None) -> None:
        """Give a plan that is in force its place, and remove files of any but it and the newest.

        Needs the training lock.
        """
        own, kept = self._path_of(plan.digest), newest and self._path_of(newest)
        for path in self.others():
            if path == own and plan_in(self.path).digest != plan.digest:
                os.replace(path, self.path)
            elif path != kept or path == own:
                path.unlink()
            sync_folder(self._root)

    def _path_of(self, plan: Digest) -> Path:
        return self._root / f"plan.{plan[:16]}.json"


def plan_in(path: Path) -> Plan:
    """The plan in a file, proved.

    Raises:
        IntegrityError: it cannot be read, or proves to be damaged.
    """
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})") from None
