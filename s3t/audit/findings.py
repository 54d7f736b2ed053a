"""What an audit finds: claims, each with a status, what was checked, and what is wrong.

    judge ──► Findings ──► Claim: holds | broken | pending | not tried ──► Audit ──► exit code

*Pending*: nothing is wrong, and the claim does not hold yet. Something has died and awaits
``s3t purge``, or was begun and not finished. *Not tried*: only training can show it, and the caller
did not ask for that.

Invariant: what cannot be judged does not hold. Damage to one part of a run breaks the claims that
need that part; the other claims are judged all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from s3t.errors import S3TError

__all__ = ["RESTORE", "Audit", "Claim", "ClaimStatus", "Findings", "judged"]

Part = TypeVar("Part")
ClaimStatus = Literal["holds", "broken", "pending", "not tried"]

RESTORE = "restore the ledger from a copy"

MOST_NAMED = 20
"""So many problems of one kind are named; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, judged.

    Attributes:
        name: ``ledger``, ``receipts``, or that of an invariant, ``E1`` to ``E9``.
        title: what the claim says, in a sentence.
        status: as the module's docstring explains.
        checked: what was looked at, with counts.
        problems: what is wrong or pending, each with the next step.
    """

    name: str
    title: str
    status: ClaimStatus
    checked: str
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        run: the run directory.
        view: the ledger's view that was judged; None if the ledger could not be read.
        claims: all claims, in the order of ``audit.CLAIMS``.
    """

    run: str
    view: int | None
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether no claim is broken or pending."""
        return all(claim.status in ("holds", "not tried") for claim in self.claims)

    @property
    def pending(self) -> bool:
        """Whether none is broken, and some await a purge or the end of a training."""
        return not self.holds and all(claim.status != "broken" for claim in self.claims)

    def __getitem__(self, name: str) -> Claim:
        return next(claim for claim in self.claims if claim.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "run": self.run,
            "view": self.view,
            "holds": self.holds,
            "claims": [asdict(claim) for claim in self.claims],
        }


class Findings:
    """Collects what is found while one claim is judged.

    Attributes:
        tried: False if a check was left out because it takes training.
    """

    def __init__(self) -> None:
        self.tried = True
        self._broken: list[str] = []
        self._pending: list[str] = []
        self._checked: list[str] = []

    def broken(self, problem: str) -> None:
        """Note a problem that breaks the claim."""
        self._broken.append(problem)

    def pending(self, problem: str) -> None:
        """Note something that awaits a purge, or is not finished."""
        self._pending.append(problem)

    def each(self, problems: Sequence[str], what: str) -> None:
        """Note problems of one kind: the first ``MOST_NAMED`` in full, and how many more there are.

        Args:
            problems: one sentence each.
            what: plural noun for the rest, such as "nodes".
        """
        self._broken.extend(problems[:MOST_NAMED])
        if len(problems) > MOST_NAMED:
            self._broken.append(f"and {len(problems) - MOST_NAMED} more {what}")

    def checked(self, what: str) -> None:
        """Note what was looked at, with counts."""
        self._checked.append(what)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Judge one part of a claim: an error inside becomes a problem of the claim."""
        try:
            yield
        except S3TError as error:
            self._broken.append(f"not judged: {error}")
        except Exception as error:
            # a damaged part may raise anything, and what cannot be judged does not hold
            self._broken.append(
                f"not judged, since what is there cannot be understood ({type(error).__name__}: "
                f"{error}): restore it from a copy, or report this"
            )

    def parts(self, *judges: Callable[[Part, Findings], None], of: Part) -> None:
        """Judge parts of a claim, one after the other, each as ``part`` does."""
        for judge in judges:
            with self.part():
                judge(of, self)

    def claim(self, name: str, title: str = "") -> Claim:
        """The claim, with the status that follows from all that was noted."""
        problems = tuple(dict.fromkeys([*self._broken, *self._pending]))
        rest: ClaimStatus = "holds" if self.tried else "not tried"
        status: ClaimStatus = "broken" if self._broken else "pending" if self._pending else rest
        return Claim(name, title, status, "; ".join(self._checked), problems)


def judged(name: str, judge: Callable[[Findings], None], title: str = "") -> Claim:
    """Judge a claim by a function that notes what it finds; its errors break the claim."""
    findings = Findings()
    with findings.part():
        judge(findings)
    return findings.claim(name, title)
