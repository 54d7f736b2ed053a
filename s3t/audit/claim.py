"""What an audit says: claims, each with a status, what was looked at, and what is wrong.

    judge ──► Findings ──► Claim: holds | broken | pending | not tried ──► Audit ──► exit code

*Pending* is what has died and awaits ``s3t purge``, or was begun and not finished: nothing is
wrong, but it does not hold yet. *Not tried* is what only training can show, and nobody asked for.

Invariant: what cannot be judged does not hold. No damage to one part ends the audit: it breaks the
claims that need that part, and the others are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from s3t.errors import S3TError

__all__ = ["TITLES", "Audit", "Claim", "Findings", "Status", "judged"]

Status = Literal["holds", "broken", "pending", "not tried"]

TITLES = {
    "ledger": "the log is whole, and the tables are what it tells",
    "receipts": "each receipt is of a deletion that is in force, and says what it did",
    "E1": "keys prove what nodes have seen, and no living node has seen a deleted sample",
    "E2": "weights are what training gave, and training again gives the same bytes",
    "E3": "no place depends on another sample, so a run without the deleted gives the same nodes",
    "E4": "each node carries its own head",
    "E5": "config and public data alone give labels, recipe, sequences; no file names a sample",
    "E6": "what is served and what is deleted have nothing in common",
    "E7": "nothing dead lies on disk",
    "E8": "all that would be served is there and proved",
    "E9": "only the named blocks are trained, over the base of the plan",
}
"""Names and titles of all claims, in the order in which they are judged."""

MOST_NAMED = 20
"""Problems of one kind that are named; beyond them they are counted."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, judged.

    Attributes:
        name: ``ledger``, ``receipts``, or that of an invariant, ``E1`` to ``E9``.
        title: what it says.
        status: see the module.
        checked: what was looked at, with counts.
        problems: what is wrong or pending, each with the next step.
    """

    name: str
    title: str
    status: Status
    checked: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        run: the run directory.
        view: the ledger's view that was judged; None if it could not be read.
        claims: all of them.
    """

    run: str
    view: int | None
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether no claim is broken or pending."""
        return all(claim.status in ("holds", "not tried") for claim in self.claims)

    def __getitem__(self, name: str) -> Claim:
        return next(claim for claim in self.claims if claim.name == name)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Audit:
        """From ``to_dict``."""
        claims = ({**one, "problems": tuple(one["problems"])} for one in values["claims"])
        return cls(values["run"], values["view"], tuple(Claim(**one) for one in claims))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "run": self.run,
            "view": self.view,
            "holds": self.holds,
            "claims": [asdict(claim) for claim in self.claims],
        }


class Findings:
    """What judging one claim brings to light.

    Attributes:
        tried: False if something was left out that only training can show.
    """

    def __init__(self) -> None:
        self.tried = True
        self._broken: list[str] = []
        self._pending: list[str] = []
        self._checked: list[str] = []

    def broken(self, problem: str) -> None:
        """Something is wrong."""
        self._broken.append(problem)

    def pending(self, problem: str) -> None:
        """Something awaits a purge, or is not finished."""
        self._pending.append(problem)

    def each(self, problems: Sequence[str], what: str) -> None:
        """Many things are wrong in one way: those beyond the first are counted.

        Args:
            problems: one sentence each.
            what: of what there are more.
        """
        self._broken.extend(problems[:MOST_NAMED])
        if len(problems) > MOST_NAMED:
            self._broken.append(f"and {len(problems) - MOST_NAMED} more {what}")

    def checked(self, what: str) -> None:
        """Something was looked at."""
        self._checked.append(what)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Judge one part of a claim; what keeps it from being judged is a problem of it."""
        try:
            yield
        except S3TError as error:
            self._broken.append(f"not judged: {error}")
        except Exception as error:
            # damaged evidence may raise anything, and what cannot be judged does not hold
            self._broken.append(
                f"not judged, since what is there cannot be understood ({type(error).__name__}: "
                f"{error}): restore it from a copy, or report this"
            )

    def claim(self, name: str) -> Claim:
        """The claim, judged by all that was found."""
        problems = tuple(dict.fromkeys([*self._broken, *self._pending]))
        rest: Status = "holds" if self.tried else "not tried"
        status: Status = "broken" if self._broken else "pending" if self._pending else rest
        return Claim(name, TITLES[name], status, "; ".join(self._checked), problems)


def judged(name: str, judge: Callable[[Findings], None]) -> Claim:
    """A claim judged by a function that reports what it finds."""
    findings = Findings()
    with findings.part():
        judge(findings)
    return findings.claim(name)
