"""An audit of a run: each claim is judged by the files and the ledger, not by code that serves.

    AuditedRun ◄── config, ledger, plans, node files, base
      └──► the judges of ``CLAIMS``, one after the other ──► Audit

To add a claim: write its judge in ``claims/`` and name it in ``CLAIMS``.

Invariant: an audit writes nothing to the run. Other processes may serve and delete meanwhile; all
claims judge one moment of the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.clusters import judge_clusters
from s3t.audit.claims.lineage import judge_lineage, judge_slots
from s3t.audit.claims.log import judge_ledger
from s3t.audit.claims.receipts import judge_receipts
from s3t.audit.claims.remains import judge_remains
from s3t.audit.claims.served import judge_deleted, judge_served
from s3t.audit.claims.sources import judge_sources
from s3t.audit.claims.weights import judge_blocks, judge_heads, judge_weights
from s3t.audit.comparison import Count, retrain_some, train_from_scratch
from s3t.audit.findings import Audit, Findings, judged
from s3t.errors import InputError, S3TError
from s3t.ledger import Verifier
from s3t.run import RunDir
from s3t.system.pinned import Arithmetic, call_pinned
from s3t.system.progress import Progress

__all__ = ["CLAIMS", "audit"]


def audit(
    run: str | Path,
    *,
    retrain: Count | None = None,
    from_scratch: bool = False,
    public_key: str | Path | Sequence[str | Path] = (),
    receipts: Sequence[str | Path] = (),
) -> Audit:
    """Judge every claim about a run.

    Args:
        run: the run directory.
        retrain: number of living nodes, drawn at random, to train again and compare byte for byte,
            or ``"all"``. The public head is trained again and clusters are computed again too.
        from_scratch: train the whole run again without the deleted samples, and compare all nodes.
        public_key: path of a PEM file. Every entry of the log from the first signed one on must be
            signed by this key. Where the key was changed, several paths, the oldest key first: no
            key may sign after a later one has.
        receipts: paths of files that ``s3t receipt --json`` printed. Each must be in the log.

    Raises:
        InputError: no run; a directory where another machine trained for a run; or a key or receipt
            that cannot be used.
    """
    directory = RunDir(run)
    if not (directory.prepared or directory.ledger_path.is_file()):
        RunDir.existing(run)  # says why
    if directory.joined:
        raise InputError(
            f"{directory.root} is where another machine trained for a run: audit the run where its "
            "ledger is"
        )
    if isinstance(retrain, int) and retrain < 1:
        raise InputError(f"retrain {retrain}: give a number of nodes, at least 1, or 'all'")
    keys = [public_key] if isinstance(public_key, str | Path) else public_key
    arguments = directory, retrain, from_scratch, keys, receipts
    if retrain is None and not from_scratch:
        return _audit(*arguments)
    return call_pinned(_arithmetic(directory), _audit, *arguments)


def _arithmetic(run: RunDir) -> Arithmetic:
    """``training.arithmetic`` of the run; native if its config is unreadable (a claim says so)."""
    try:
        return run.config().training.arithmetic
    except S3TError:
        return "native"


def _audit(
    directory: RunDir,
    retrain: Count | None,
    from_scratch: bool,
    keys: Sequence[str | Path],
    receipts: Sequence[str | Path],
) -> Audit:
    verifiers = [Verifier.load(key) for key in keys]
    kept = {str(path): _receipt(Path(path)) for path in receipts}
    return _judge(AuditedRun(directory), Asked(retrain, from_scratch, verifiers, kept))


@dataclass(frozen=True, slots=True)
class Asked:
    """What the caller of an audit asked for, as ``audit`` explains."""

    retrain: Count | None = None
    from_scratch: bool = False
    verifiers: Sequence[Verifier] = ()
    receipts: Mapping[str, Any] = field(default_factory=dict)


Judge = Callable[[AuditedRun, Asked, Findings], None]


def _ledger(audited: AuditedRun, asked: Asked, found: Findings) -> None:
    judge_ledger(audited, found, asked.verifiers, asked.receipts)


def _weights(audited: AuditedRun, asked: Asked, found: Findings) -> None:
    judge_weights(audited, found)
    found.tried = asked.retrain is not None
    if asked.retrain is not None:
        retrain_some(audited, asked.retrain, found)
    else:
        found.checked("none trained again (--retrain)")


def _slots(audited: AuditedRun, asked: Asked, found: Findings) -> None:
    with found.part():
        judge_slots(audited, found)
    if asked.retrain is not None or asked.from_scratch:
        with found.part():
            judge_clusters(audited, found)
    found.tried = asked.from_scratch
    if asked.from_scratch:
        train_from_scratch(audited, found)
    else:
        found.checked("no run trained from scratch (--from-scratch)")


def _sources(audited: AuditedRun, asked: Asked, found: Findings) -> None:
    judge_sources(audited, found, asked.retrain is not None)


def _always(judge: Callable[[AuditedRun, Findings], None]) -> Judge:
    """A claim that is judged the same way whatever was asked for."""
    return lambda audited, asked, found: judge(audited, found)


CLAIMS: Mapping[str, tuple[str, Judge]] = {
    "ledger": ("the log is whole, and the tables are what it tells", _ledger),
    "receipts": (
        "each receipt is of a deletion that is in force, and says what it did",
        _always(judge_receipts),
    ),
    "E1": (
        "keys prove what nodes have seen, and no living node has seen a deleted sample",
        _always(judge_lineage),
    ),
    "E2": ("weights are what training gave, and training again gives the same bytes", _weights),
    "E3": (
        "no place depends on another sample, so a run without the deleted gives the same nodes",
        _slots,
    ),
    "E4": ("each node carries its own head", _always(judge_heads)),
    "E5": (
        "config and public data alone give labels, recipe, sequences; no file names a sample",
        _sources,
    ),
    "E6": ("what is served and what is deleted have nothing in common", _always(judge_deleted)),
    "E7": ("nothing dead lies on disk", _always(judge_remains)),
    "E8": ("all that would be served is there and proved", _always(judge_served)),
    "E9": ("only the named blocks are trained, over the base of the plan", _always(judge_blocks)),
}
"""Title and judge of each claim by its name, in the order in which they are judged."""


def _judge(audited: AuditedRun, asked: Asked) -> Audit:
    try:
        view: int | None = audited.ledger.view
    except (S3TError, LookupError, ValueError):  # the claims report it
        view = None
    claims = []
    with Progress("auditing", len(CLAIMS)) as progress:
        for name, (title, judge) in CLAIMS.items():
            progress.note(claim=name)
            claims.append(judged(name, partial(judge, audited, asked), title))
            progress.update(1)
    return Audit(str(audited.run.root), view, tuple(claims))


def _receipt(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {"number", "previous", "digest", "accepted_at"} <= found.keys():
            return found
        reason = "it lacks number, digest or what stands before it"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise InputError(
        f"receipt {path} cannot be used ({reason}): give what s3t receipt RUN REQUEST_ID --json "
        "printed"
    )
