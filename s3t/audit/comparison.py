"""What only training can show: E2 by training some nodes again, E3 by training the whole run again.

    some living nodes  ──trained again, without the deleted samples──► the same bytes?
    config, data       ──a new run that has never seen them──────────► the same nodes?

Invariant: what is trained lies in a scratch folder of the run, which is removed afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Literal

from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import Findings
from s3t.system.scratch import scratch
from s3t.types import NodeKey

__all__ = ["Count", "retrain_some", "train_from_scratch"]

Count = int | Literal["all"]
"""Number of nodes to train again, at least 1, or all."""


def retrain_some(audited: AuditedRun, count: Count, found: Findings) -> None:
    """Train living nodes again, drawn at random, and compare the bytes of their files."""
    from s3t.training.retrain import retrain

    if _unfinished(audited, found):
        return
    sound = [node for node in audited.living if audited.files.sound(node.key) is not None]
    there = [node.key for node in sound if node.environment == audited.here]
    keys = _drawn(there, count)
    with scratch(audited.run.root) as folder:
        same = retrain(audited.run, keys, folder / "nodes")
    found.each(
        [
            f"node {key}, trained again without the deleted samples, has other bytes than the file "
            "of the run: remove the file, and run s3t train CONFIG again"
            for key in sorted(key for key, equal in same.items() if not equal)
        ],
        "nodes",
    )
    found.checked(
        f"{len(same)} nodes, {len(keys)} of {len(there)} drawn at random and what they grew on, "
        f"trained again: {sum(same.values())} have the same bytes" + _elsewhere(len(sound), there)
    )


def train_from_scratch(audited: AuditedRun, found: Findings) -> None:
    """Train a run that has never seen the deleted samples, and compare all nodes."""
    from s3t.training.retrain import from_scratch, retrain

    if _unfinished(audited, found):
        return
    with scratch(audited.run.root) as folder:
        compared = from_scratch(audited.run, folder / "run")
    # what grew on a node of another environment has another key in a run of this one alone
    forest = audited.plan.forest
    comparable = {
        node.key
        for node in audited.living
        if all(one.environment == compared.environment for one in forest.lineage(node.key))
    }
    over_others = [
        node.key
        for node in audited.living
        if node.environment == compared.environment and node.key not in comparable
        if audited.files.sound(node.key) is not None
    ]
    different = list(compared.different)
    if over_others:
        with scratch(audited.run.root) as folder:
            again = retrain(audited.run, over_others, folder / "nodes")
        different += sorted(key for key in over_others if not again[key])
    living = comparable | audited.wanted()
    for what, keys in (
        ("has other bytes in a run from scratch without the deleted samples", different),
        (
            "is in no run from scratch without the deleted samples",
            tuple(key for key in compared.only_here if key in living),
        ),
    ):
        wrong = [f"node {key} {what}: do not serve it, and report this" for key in keys]
        found.each(wrong, "nodes")
    known = {node.key for node in forest}
    absent = [key for key in compared.only_there if key in known]
    found.each(
        [
            f"node {key} is in a run from scratch without the deleted samples, and not here: run "
            "s3t train CONFIG again"
            for key in absent
        ],
        "nodes",
    )
    more = 0 if len(audited.plan.environments) > 1 else len(compared.only_there) - len(absent)
    found.checked(
        f"a run from scratch without the deleted samples has {compared.same} nodes with the very "
        "bytes of this one"
        + (f", and {more} that s3t repair RUN would train" if more else "")
        + (
            f"; {len(over_others)} over nodes of another environment trained again"
            * bool(over_others)
        )
        + _elsewhere(len(audited.living), [*comparable, *over_others])
    )


def _elsewhere(count: int, compared: Collection[NodeKey]) -> str:
    """A sentence about nodes of other environments; empty if there are none."""
    if len(compared) == count:
        return ""
    return (
        f"; {len(compared)} of {count} can be compared here, the others are of another environment "
        "(s3t status names it): not comparable here"
    )


def _unfinished(audited: AuditedRun, found: Findings) -> bool:
    """Whether new samples are being added, so that the data are those of the plan to come."""
    if audited.ledger.pending is None:
        return False
    found.pending("new samples are being taken in, nothing was trained again: run s3t add RUN")
    found.tried = False
    return True


def _drawn(there: list[NodeKey], count: Count) -> list[NodeKey]:
    if count == "all" or count >= len(there):
        return there
    return sorted(secrets.SystemRandom().sample(there, count))
