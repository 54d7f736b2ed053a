"""An audit of a run: every claim judged by what lies there, by none of the code that serves.

    Case ◄── config, ledger, plans, node files, base
      └──► log, receipts, lineage, weights, sources, serving, remains, trials ──► Audit

Invariant: nothing is written to the run, by no claim and in no state of it; other processes may go
on serving and deleting meanwhile, and all claims judge one moment of the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3t.audit.claim import Audit, Findings, judged
from s3t.audit.claims.clusters import judge_clusters
from s3t.audit.claims.lineage import judge_lineage, judge_places
from s3t.audit.claims.log import judge_ledger
from s3t.audit.claims.receipts import judge_receipts
from s3t.audit.claims.remains import judge_remains
from s3t.audit.claims.served import judge_deleted, judge_served
from s3t.audit.claims.sources import judge_sources
from s3t.audit.claims.weights import judge_blocks, judge_heads, judge_weights
from s3t.audit.evidence import Case
from s3t.audit.retrain import Count, retrain_some, train_from_scratch
from s3t.errors import InputError, S3TError
from s3t.ledger import Verifier
from s3t.run import RunDir
from s3t.system.pinned import Arithmetic, call_elsewhere, pin

__all__ = ["audit"]


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
        run: its directory.
        retrain: train so many living nodes again, drawn at random; the public head too, and
            reckon clusters again.
        from_scratch: train the whole run again without the deleted samples.
        public_key: PEM file; every entry of the log since the first that is signed has to be
            signed by it. Several, the oldest first, where the key was changed: none may sign
            again after a later one.
        receipts: files of ``s3t receipt --json`` that were kept: they have to be in the log.

    Raises:
        InputError: no run, or one that was prepared on another machine; a file that cannot be used.
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
    trains, arithmetic = retrain is not None or from_scratch, _arithmetic(directory)
    if not trains or pin(arithmetic):
        return _audit(directory, retrain, from_scratch, keys, receipts)
    found = call_elsewhere(
        arithmetic,
        audit_words,
        run=str(run),
        retrain=retrain,
        from_scratch=from_scratch,
        public_key=[str(key) for key in keys],
        receipts=[str(path) for path in receipts],
    )
    return Audit.of(found)


def audit_words(run: str, **words: Any) -> dict[str, Any]:
    """``audit`` of JSON values, in a process whose arithmetic is pinned."""
    return audit(run, **words).to_dict()


def _arithmetic(run: RunDir) -> Arithmetic:
    """How a run's nodes are trained; native where its config cannot be read, which claims tell."""
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
    return _judge(Case(directory), retrain, from_scratch, verifiers, kept)


def _judge(
    case: Case,
    retrain: Count | None,
    from_scratch: bool,
    verifiers: Sequence[Verifier],
    kept: Mapping[str, Any],
) -> Audit:
    try:
        view: int | None = case.books.view
    except (S3TError, LookupError, ValueError):  # which the claims will tell
        view = None

    def weights(found: Findings) -> None:
        judge_weights(case, found)
        found.tried = retrain is not None
        if retrain is not None:
            retrain_some(case, retrain, found)
        else:
            found.checked("none trained again (--retrain)")

    def places(found: Findings) -> None:
        with found.part():
            judge_places(case, found)
        if retrain is not None or from_scratch:
            with found.part():
                judge_clusters(case, found)
        found.tried = from_scratch
        if from_scratch:
            train_from_scratch(case, found)
        else:
            found.checked("no run trained from scratch (--from-scratch)")

    judges = {
        "ledger": lambda found: judge_ledger(case, found, verifiers, kept),
        "receipts": lambda found: judge_receipts(case, found),
        "E1": lambda found: judge_lineage(case, found),
        "E2": weights,
        "E3": places,
        "E4": lambda found: judge_heads(case, found),
        "E5": lambda found: judge_sources(case, found, retrain is not None),
        "E6": lambda found: judge_deleted(case, found),
        "E7": lambda found: judge_remains(case, found),
        "E8": lambda found: judge_served(case, found),
        "E9": lambda found: judge_blocks(case, found),
    }
    claims = tuple(judged(name, judge) for name, judge in judges.items())
    return Audit(str(case.run.root), view, claims)


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
