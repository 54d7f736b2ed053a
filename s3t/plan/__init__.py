"""The plan of a run: pure maths, no I/O and no torch.

sequences ──► prefixes ──► nodes with keys (lineage) ──► Forest (trie) ──► Plan (layout)
    ▲
strategies ◄── survival: how long prefixes last    not imported here: loading scipy takes long
"""

from __future__ import annotations

from s3t.plan.layout import PLAN_FORMAT, Plan, make_plan
from s3t.plan.lineage import FORMAT, environment_name, node_key, node_seed
from s3t.plan.sequences import Sequences, cyclic, explicit
from s3t.plan.survival import expected_deletions
from s3t.plan.trie import Forest, Node, prefixes

__all__ = [
    "FORMAT",
    "PLAN_FORMAT",
    "Forest",
    "Node",
    "Plan",
    "Sequences",
    "cyclic",
    "environment_name",
    "expected_deletions",
    "explicit",
    "make_plan",
    "node_key",
    "node_seed",
    "prefixes",
]
