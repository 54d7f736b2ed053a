"""audit: every claim judged from ledger and store, and attacks on the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s3t.audit.leakage.report import lines as leakage_lines
from s3t.cli.app import AsJson, JsonProgress, Quiet, RunPath, app
from s3t.cli.output import print_json, quiet, telling
from s3t.errors import InputError, IntegrityError
from s3t.system.progress import say

if TYPE_CHECKING:
    from s3t.audit.comparison import Count
    from s3t.audit.findings import Audit
    from s3t.audit.leakage.report import Leakage

__all__: list[str] = []

PENDING = 6
"""Exit code of an audit in which nothing is broken, and something is not done yet."""

_FOLDED = 3
"""Lines that are shown of what awaits a purge, of each claim."""


Retrain = Annotated[
    str | None,
    typer.Option(metavar="K|all", help="train K living nodes again and compare their bytes"),
]
FromScratch = Annotated[
    bool,
    typer.Option(
        "--from-scratch", help="train the whole run without the deleted samples and compare"
    ),
]
PublicKey = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PEM", help="public key that signs the log; repeatable, the oldest key first"
    ),
]
ReceiptFile = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="output of s3t receipt --json to look for; repeatable"),
]
Leak = Annotated[
    bool, typer.Option("--leakage", help="also attack the answers about deleted samples")
]
LeakSamples = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="attack at most N deleted samples; default: all"),
]


@app.command()
def audit(
    run: RunPath,
    retrain: Retrain = None,
    from_scratch: FromScratch = False,
    public_key: PublicKey = None,
    receipt: ReceiptFile = None,
    leakage: Leak = False,
    leakage_samples: LeakSamples = None,
    quietly: Quiet = False,
    json_progress: JsonProgress = False,
    as_json: AsJson = False,
) -> None:
    """Check ledger, receipts and the claims E1 to E9 from the files.

    Exit code 4 if one is broken; 6 if none is, and something awaits a purge or the end of a
    training.

    --leakage prints figures with intervals beside the claims. They change no exit code.
    """
    telling(quietly, json_progress)
    with quiet():
        from s3t.audit.audit import audit as judge

        found = judge(
            run,
            retrain=_count(retrain),
            from_scratch=from_scratch,
            public_key=public_key or (),
            receipts=receipt or (),
        )
    if not as_json:
        for line in _lines(found):
            print(line)
    leaks = _leakage(run, leakage_samples) if leakage else None
    if as_json:
        print_json(found.to_dict() | ({} if leaks is None else {"leakage": leaks.to_dict()}))
    elif leaks is not None:
        for line in leakage_lines(leaks):
            print(line)
    if not found.holds:
        raise typer.Exit(PENDING if found.pending else IntegrityError.exit_code)


def _leakage(run: Path, samples: int | None) -> Leakage:
    """Attack the answers of a run; each step is told, since it takes long."""
    with quiet():
        from s3t.audit.leakage.leakage import leakage
        from s3t.run import RunDir

        return leakage(
            RunDir.existing(run),
            samples=samples,
            on_step=say,
        )


def _count(text: str | None) -> Count | None:
    """The value of ``--retrain``: a number of nodes, "all", or None where it was not given."""
    if text is None:
        return None
    if text == "all":
        return "all"
    if not text.isdecimal() or not int(text):
        raise InputError(f"--retrain {text}: give a number of nodes, at least 1, or all")
    return int(text)


def _lines(found: Audit) -> Iterator[str]:
    for claim in found.claims:
        yield f"{claim.status:9s}  {claim.name:8s}  {claim.title}: {claim.checked}"
        shown = claim.problems if claim.status == "broken" else claim.problems[:_FOLDED]
        for problem in shown:
            yield f"{'':21s}{problem}"
        if more := len(claim.problems) - len(shown):
            yield f"{'':21s}and {more:,} more (--json has all)"
    counts = [
        f"{count} {status}"
        for status in ("holds", "broken", "pending", "not tried")
        if (count := sum(claim.status == status for claim in found.claims))
    ]
    view = "an unknown view" if found.view is None else f"view {found.view}"
    yield f"{found.run} at {view}: {', '.join(counts)}"
