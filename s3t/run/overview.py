"""A run at one glance, as JSON values: what the page draws, and the report.

Invariant: no sample id and no subject; nodes by their keys, slices by their numbers.
"""

from __future__ import annotations

from typing import Any

from s3t.run.deletion import Forgetting

__all__ = ["overview"]


def overview(forgetting: Forgetting) -> dict[str, Any]:
    """Shards × slices, what serves, and the state of every node, at the ledger's present view.

    Returns:
        ``hits`` as [shard, slice]; ``jobs`` and ``callbacks`` that wait; ``serving`` the prefix of
        each shard; ``nodes`` with ``state`` ``serving`` (part of the prefix that serves),
        ``alive``, ``dead`` or ``missing``.
    """
    status, generation, nodes = forgetting.survey()
    return {
        "view": status.view,
        "generation": generation,
        "shards": len(status.shards),
        "slices": status.slices,
        "samples": status.samples,
        "deleted": status.deleted,
        "exhausted": status.exhausted,
        "expected_deletions_left": status.expected_deletions_left,
        "hits": [[one.shard, part] for one in status.shards for part in one.slices_hit],
        "jobs": status.jobs,
        "callbacks": status.callbacks,
        "serving": [list(one.prefix) for one in status.shards],
        "nodes": [
            {
                "key": node.key,
                "parent": node.parent,
                "shard": node.shard,
                "prefix": list(node.prefix),
                "stage": node.stage,
                "state": state,
                "score": forgetting.scores.get(node.key),
            }
            for node, state in nodes
        ],
    }
