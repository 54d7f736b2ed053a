"""The durable truth of a run: its samples, deletions and receipts. The one door to SQLAlchemy.

Ledger (ledger) ──► registry    samples: written down once, listed ─┐
               ├──► deletion    one deletion, step by step ─────────┴─► counters   what is left
               └──► database    connections, transactions ──► migrations ──► schema   the tables
"""

from __future__ import annotations

from s3t.ledger.counters import SlotPersons
from s3t.ledger.deletion import Decide, Deleted, Deletion
from s3t.ledger.ledger import Ledger
from s3t.ledger.registry import Entry

__all__ = ["Decide", "Deleted", "Deletion", "Entry", "Ledger", "SlotPersons"]
