"""The durable truth of a run: its samples, deletions and receipts. The one door to SQLAlchemy.

Ledger (ledger) ──► registry     samples: written down once, listed ─┐
               ├──► deletion     one deletion, step by step ─────────┴─► counters
               │       └──► receipt    what is asked for, and what was done
               ├──► counts       what is left, when deletions were made
               ├──► deleted      the deleted samples; a purge ──► purging   what stays of them
               ├──► planning     steps of planning and training ──► generations   plans and nodes
               ├──► replicas     who answers, which deletions are effective
               ├──► outbox       accepted and not done: large deletions (jobs), callbacks
               ├──► tables       all tables at one moment, for audits
               ├──► log/         chain ──► signing; state: what follows from it; proof: tables held
               │                 against it
               └──► database/    connections, transactions ──► schema   the tables
                      └──► backend: sqlite │ postgres
"""

from __future__ import annotations

from s3t.ledger.database.database import Watch, without_password
from s3t.ledger.deletion import Decide
from s3t.ledger.generations import LedgerState, Witnessed, nodes_digest
from s3t.ledger.jobs import Job
from s3t.ledger.ledger import Ledger
from s3t.ledger.log.chain import GENESIS, LogEntry, link
from s3t.ledger.log.signing import Signer, Verifier
from s3t.ledger.log.state import Generation
from s3t.ledger.outbox import Callback, Holder, Outbox, host_claim, job_claim
from s3t.ledger.receipt import Deletion, PrefixChange, Receipt
from s3t.ledger.replicas import Lease, clock
from s3t.ledger.samples.counters import SlotPersons
from s3t.ledger.samples.purging import Forgotten, Gone
from s3t.ledger.samples.registry import SampleEntry
from s3t.ledger.tables import LedgerTables

__all__ = [
    "GENESIS",
    "Callback",
    "Decide",
    "Deletion",
    "Forgotten",
    "Generation",
    "Gone",
    "Holder",
    "Job",
    "Lease",
    "Ledger",
    "LedgerState",
    "LedgerTables",
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
