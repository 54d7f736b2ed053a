"""The plan of a run: pure maths, no I/O and no torch.

sequences ──► prefixes ──► nodes with keys (lineage) ──► Forest (trie) ──► Plan (layout)
"""

from __future__ import annotations

from s3t.plan.layout import PLAN_FORMAT, Plan, make_plan
from s3t.plan.lineage import FORMAT, node_key, node_seed, slice_digest
from s3t.plan.sequences import STRATEGIES, Sequences, Strategy, cyclic, explicit, sequences_for
from s3t.plan.survival import expected_deletions
from s3t.plan.trie import Forest, Node, prefixes

__all__ = [
    "FORMAT",
    "PLAN_FORMAT",
    "STRATEGIES",
    "Forest",
    "Node",
    "Plan",
    "Sequences",
    "Strategy",
    "cyclic",
    "expected_deletions",
    "explicit",
    "make_plan",
    "node_key",
    "node_seed",
    "prefixes",
    "sequences_for",
    "slice_digest",
]
