"""The durable truth of a run: its samples, deletions and receipts. The one door to SQLAlchemy.

Ledger (ledger) ──► registry     samples: written down once, listed ─┐
               ├──► deletion     one deletion, step by step ─────────┴─► counters   what is left
               ├──► purging      what stays of a purged sample
               ├──► planning     steps of planning and training ──► generations   plans and nodes
               ├──► outbox       accepted and not done: large deletions, callbacks
               ├──► logstate     what the log says is deleted, in force, hit
               ├──► proof        the tables held against the log
               ├──► evidence     all tables at one moment, for audits
               ├──► chain        the log of all that was done ──► signing
               └──► database     connections, transactions ──► schema   the tables
                      └──► backend: sqlite │ postgres
"""

from __future__ import annotations

from s3t.ledger.counters import SlotPersons
from s3t.ledger.database.database import Watch, without_password
from s3t.ledger.deletion import Decide
from s3t.ledger.evidence import Evidence
from s3t.ledger.generations import LedgerState, Witnessed, nodes_digest
from s3t.ledger.ledger import Ledger
from s3t.ledger.log.chain import GENESIS, link
from s3t.ledger.log.chain import Entry as LogEntry
from s3t.ledger.log.signing import Signer, Verifier
from s3t.ledger.log.state import Generation
from s3t.ledger.outbox import Callback, Claim, Job, Outbox, host_claim, job_claim
from s3t.ledger.purging import Forgotten, Gone
from s3t.ledger.receipt import Deletion, PrefixChange, Receipt
from s3t.ledger.registry import SampleEntry
from s3t.ledger.replicas import Lease, clock

__all__ = [
    "GENESIS",
    "Callback",
    "Claim",
    "Decide",
    "Deletion",
    "Evidence",
    "Forgotten",
    "Generation",
    "Gone",
    "Job",
    "Lease",
    "Ledger",
    "LedgerState",
    "LogEntry",
    "Outbox",
    "PrefixChange",
    "Receipt",
    "SampleEntry",
    "Signer",
    "SlotPersons",
    "Verifier",
    "Watch",
    "Witnessed",
    "clock",
    "host_claim",
    "job_claim",
    "link",
    "nodes_digest",
    "without_password",
]
