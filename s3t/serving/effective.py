"""When a deletion is effective: once no answer of any process can come from what it switched off.

    committed ─► answers on older views end, here and behind ``readers``
              ─► every replica has left the older views, or has lost its lease
              ─► the store at ``store.url`` knows ─► the moment is written down

Invariant: the moment is written down by the ledger, in a transaction that sees no replica behind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from s3t.errors import S3TError
from s3t.ledger import Ledger, Receipt
from s3t.ledger.replicas import Observer
from s3t.serving.readers import Readers

__all__ = ["Tell", "settle_pending", "stored_receipt", "wait_until_effective"]

Tell = Callable[[], str | None]
"""Tells the store of deletions; why that failed, None if it knows of all, or there is none."""

_log = logging.getLogger(__name__)

_POLL = 0.002
_POLL_MOST = 0.05


def _nothing_to_tell() -> None:
    """A ``Tell`` where there is no store."""


def wait_until_effective(
    ledger: Ledger,
    receipt: Receipt,
    readers: Readers | None,
    *,
    patience: float,
    own: str,
    told: bool,
) -> str | None:
    """Wait for the answers of other processes on views before a deletion's.

    A process without a lease may hang, so it is waited for no longer than an answer may take. Its
    lock stays, and a later look settles the deletion.

    Args:
        ledger: of the run.
        receipt: of the deletion, which is durable.
        readers: those that answer for the run without a lease, if there can be any.
        patience: seconds to wait for these.
        own: this process's replica, which has left the older views already; empty for none.
        told: whether the store knows of the deletion; it is not effective before.

    Returns:
        when the deletion was effective, ISO 8601; None if it is not yet, or that cannot be seen:
        then the log says why.
    """
    try:
        if readers is not None and not readers.wait(receipt.view, patience):
            _log.error(
                "request %s is durable and not yet effective: a process has not ended an "
                "answer of before for %g s (fuser -v %s names it)",
                receipt.request_id,
                patience,
                readers.path,
            )
            return None
        at = _wait_for_replicas(ledger, receipt, own, told)
        if readers is not None and told:
            settle_pending(ledger, readers)
        return at
    except S3TError as error:
        _log.error("request %s is durable; %s", receipt.request_id, error)
        return None


def _wait_for_replicas(ledger: Ledger, receipt: Receipt, own: str, told: bool) -> str | None:
    """Wait until each replica has left the older views or has lost its lease, then write down the
    moment, if the store was told."""
    observer, pause = Observer(ledger.replicas), _POLL
    while True:
        if not observer.look(ledger.replicas.behind(receipt.view, own)):
            if not told:
                return None
            at = ledger.replicas.settle(receipt.request_id, own)
            if at is not None:
                return at
        time.sleep(pause)
        pause = min(2 * pause, _POLL_MOST)


def settle_pending(ledger: Ledger, readers: Readers | None, tell: Tell = _nothing_to_tell) -> None:
    """Write down that deletions are effective which were not yet when they were acknowledged.

    Args:
        ledger: of the run.
        readers: those that answer for the run without a lease, if there can be any.
        tell: tells the store first.

    Raises:
        UnavailableError: the ledger cannot be reached.
    """
    pending = ledger.replicas.pending()
    if not pending or tell() is not None:
        return
    for request in pending:
        if readers is None or not readers.behind(ledger.receipt(request).view):
            ledger.replicas.settle(request)


def stored_receipt(ledger: Ledger, request_id: str, tell: Tell = _nothing_to_tell) -> Receipt:
    """The receipt that the log holds; looks whether the deletion is effective by now.

    Raises:
        InputError: no such request.
    """
    found = ledger.receipt(request_id)
    if found.effective_at is None:
        with suppress(S3TError):  # the receipt can be told all the same
            settle_pending(ledger, Readers.of(ledger), tell)
            found = ledger.receipt(request_id)
    return found
