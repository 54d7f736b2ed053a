"""One deletion of a run: the ledger's transaction, and the schedule's part of it. No torch here.

    Deletion ─► Ledger.delete ─► decide (what dies, what serves instead) ─► committed ─► Receipt

Invariant: the schedule is brought up to the ledger's state inside the transaction, before it
decides; it counts the deletion in only once that is committed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from s3t.config import Config
from s3t.data import cut_names
from s3t.errors import InputError, PublicSampleError, UnknownSampleError
from s3t.ledger import Deletion, LedgerState, PrefixChange, Receipt
from s3t.plan.trie import Node
from s3t.run.opened import OpenRun

__all__ = ["delete", "prefix_of"]


def delete(opened: OpenRun, deletion: Deletion) -> Receipt:
    """Make one deletion; it is durable when this returns, unless ``dry_run``.

    Raises:
        InputError: nothing to delete, an unknown id or subject, or one that is cut aside as public,
            or a request id in use; or one whose deletion was made before samples that it names
            were taken in.
        IntegrityError: the ledger contradicts itself.
    """
    try:
        with opened.held():
            opened.prove_ledger()
            receipt = opened.ledger.delete(deletion, _Decision(opened).decide, opened.known)
            if not receipt.dry_run and not receipt.replayed:
                opened.made(receipt)
    except UnknownSampleError as error:
        raise _public_or(error, opened.config) from None
    return receipt


def _public_or(error: UnknownSampleError, config: Config) -> UnknownSampleError:
    """The error that names which of the unknown are public, if any are and the data are here."""
    try:
        ids, subjects = cut_names(config)
    except InputError:
        return error
    public_ids = [one for one in error.sample_ids if one in ids]
    public_subjects = [one for one in error.subjects if one in subjects]
    if not public_ids and not public_subjects:
        return error
    return PublicSampleError(public_ids, public_subjects, error.run)


@dataclass(frozen=True, slots=True)
class _Decision:
    """The schedule's part of a deletion."""

    opened: OpenRun

    def decide(self, receipt: Receipt, state: LedgerState) -> Receipt:
        """See ``s3t.ledger.Decide``."""
        self.opened.follow(state)
        plan, schedule = self.opened.plan, self.opened.schedule
        outcome = schedule.outcome(receipt.slots)
        now = schedule.prefixes
        then = list(now)
        for change in outcome.changes:
            then[change.shard] = change.after
        lost = sum(plan.forest[key].parent is None for key in outcome.died)
        return replace(
            receipt,
            nodes_dead=outcome.died,
            prefixes=tuple(
                PrefixChange(shard, prefix_of(before), prefix_of(after))
                for shard, (before, after) in enumerate(zip(now, then, strict=True))
            ),
            expected_deletions_left=self.opened.expected(schedule.first_slices_left - lost),
        )


def prefix_of(node: Node | None) -> tuple[int, ...]:
    """The slice numbers of the prefix that ends at a node; empty for none."""
    return () if node is None else node.prefix
