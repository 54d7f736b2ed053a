"""A run at one glance, as JSON values: what the page draws, and the report.

Invariant: no sample id and no subject; nodes by their keys, slices by their numbers.
"""

from __future__ import annotations

from typing import Any

from s3t.plan.trie import Node
from s3t.run.opened import OpenRun
from s3t.run.status import Status, status

__all__ = ["overview", "survey"]


def overview(opened: OpenRun) -> dict[str, Any]:
    """Shards × slices, what serves, and the state of every node, at the ledger's present view.

    Returns:
        ``name`` of the run; ``hits`` as [shard, slice]; ``jobs`` and ``callbacks`` that wait;
        ``evaluations`` since the last purge, each with its ``view`` and the samples ``deleted`` by
        then; ``serving`` the prefix of each shard; ``nodes`` with ``state`` ``serving`` (part of
        the prefix that serves), ``alive``, ``dead`` or ``missing``.
    """
    now, generation, nodes = survey(opened)
    return {
        "name": opened.config.name,
        "view": now.view,
        "generation": generation,
        "shards": len(now.shards),
        "slices": now.slices,
        "samples": now.samples,
        "deleted": now.deleted,
        "exhausted": now.exhausted,
        "expected_deletions_left": now.expected_deletions_left,
        "hits": [[one.shard, part] for one in now.shards for part in one.slices_hit],
        "jobs": now.jobs,
        "callbacks": now.callbacks,
        "evaluations": opened.ledger.served.history(),
        "serving": [list(one.prefix) for one in now.shards],
        "nodes": [
            {
                "key": node.key,
                "parent": node.parent,
                "shard": node.shard,
                "prefix": list(node.prefix),
                "stage": node.stage,
                "state": state,
                "score": opened.scores.get(node.key),
            }
            for node, state in nodes
        ],
    }


def survey(opened: OpenRun) -> tuple[Status, int, list[tuple[Node, str]]]:
    """The state now, the number of the plan in force, and what became of each of its nodes:
    ``serving``, ``alive``, ``dead`` or ``missing``."""
    with opened.held():
        now, found = status(opened), []
        forest = opened.plan.forest
        ends = [one.node for one in now.shards if one.node is not None]
        serving = {node.key for end in ends for node in forest.lineage(end)}
        for shard in range(opened.plan.shards):
            alive, dead = opened.schedule.alive(shard), opened.schedule.dead(shard)
            for node in forest.of_shard(shard):
                if node.key in dead:
                    state = "dead"
                elif node.key in serving:
                    state = "serving"
                else:
                    state = "alive" if node.key in alive else "missing"
                found.append((node, state))
        return now, opened.known.generation, found
