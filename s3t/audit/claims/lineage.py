"""Claims E1 and E3: what nodes have seen, and that no sample's slot depends on another sample.

    rows of samples left ──► digest of each slice ──► plan ──► key of each node ◄── its metadata
    subject or content ──keyed hash──► slot; only the slice where shards are clusters

Invariant: a node counts as clean if the digests in its own file are those of the samples left,
computed from their rows. The hits and the schedule are not used.
"""

from __future__ import annotations

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.node_files import NodeFacts
from s3t.audit.findings import Findings
from s3t.audit.ledger_facts import LedgerFacts
from s3t.errors import named
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.types import Digest, digest

__all__ = ["judge_lineage", "judge_slots"]


def judge_lineage(audited: AuditedRun, found: Findings) -> None:
    """Judge E1: each living node has seen the samples left of its slices, and no other."""
    plan = audited.plan
    row = audited.ledger.plan
    if row is not None:
        found.checked(f"plan {row.generation} is the one in force, and proves itself")
    with found.part():
        _slices(audited.ledger, plan, found)
    with found.part():
        _nodes(audited, plan, found)


def judge_slots(audited: AuditedRun, found: Findings) -> None:
    """Judge what E3 says of slots: each follows from the sample and the config alone."""
    ledger, shape = audited.ledger, audited.config.partition
    wrong = ledger.misplaced
    if wrong:
        found.broken(
            f"{len(wrong)} samples do not lie where salt, subject, content and tiers put them "
            f"({named(sorted(wrong), 3)}): the ledger or partition in config.yaml was changed; "
            "restore them"
        )
    there = sum(slot.samples for slot in ledger.recounted.values()) - ledger.purged
    if shape.clusters is not None:
        found.checked(f"slices of {there} samples computed from each alone")
        return
    found.checked(
        f"places of {there} samples in {shape.shards} × {shape.slices} slices computed from each "
        "alone"
    )


def _slices(ledger: LedgerFacts, plan: Plan, found: Findings) -> None:
    """Judge whether sizes and digests of slices in the plan follow from the rows."""
    added = _added_since(ledger)
    count = unknown = 0
    for shard in range(plan.shards):
        for part in range(plan.slices):
            slot = ledger.slot(shard, part)
            stated = plan.sizes[shard][part], plan.digests[shard][part]
            if slot.planned_digest is None:
                unknown += 1
            elif stated == (slot.planned, slot.planned_digest):
                count += 1
            elif added and slot.planned > stated[0]:
                found.pending(
                    f"slice {part} of shard {shard} got new samples since the plan was made: run "
                    "s3t add RUN, which trains them"
                )
            else:
                found.broken(
                    f"slice {part} of shard {shard} holds {slot.planned} samples in the ledger "
                    f"that are not the {stated[0]} of the plan: samples were removed, put in or "
                    "changed; restore ledger and plan from a copy"
                )
    outside = sorted(
        slot
        for slot, counts in ledger.recounted.items()
        if counts.samples and not (slot[0] < plan.shards and slot[1] < plan.slices)
    )
    for shard, part in outside:
        found.broken(f"the ledger has samples in slice {part} of shard {shard}: no such slice")
    found.checked(
        f"{count} of {plan.shards * plan.slices} slices are the samples left in the ledger"
        + (f", {unknown} hold purged ones and cannot be computed" if unknown else "")
    )


def _added_since(ledger: LedgerFacts) -> bool:
    """Whether samples were registered after the plan was made."""
    if ledger.plan is None:
        return False
    generation = ledger.plan.generation
    made = [e.number for e in ledger.of_kind("plan") if e.body["generation"] == generation]
    return any(entry.number > max(made, default=0) for entry in ledger.of_kind("samples"))


def _nodes(audited: AuditedRun, plan: Plan, found: Findings) -> None:
    """Judge whether each living node's file agrees with the plan, and saw only samples left."""
    ledger, recipe = audited.ledger, digest(plan.recipe)
    living = audited.living
    count = 0
    for node in living:
        facts = audited.files.sound(node.key)
        if facts is None:  # missing or damaged, which E8 names
            continue
        count += 1
        wrong = _differences(node, facts, plan, recipe)
        if wrong:
            found.broken(
                f"node {node.key} has another {', '.join(wrong)} than the plan: remove the file, "
                "and run s3t train CONFIG again"
            )
        for part, stated in zip(facts.meta.prefix, facts.meta.slices, strict=False):
            slot = ledger.slot(facts.meta.shard, part)
            if slot.digest != stated and not _added_since(ledger):
                found.broken(
                    f"node {node.key} has learnt slice {part} of shard {facts.meta.shard} as it "
                    "no longer is in the ledger: do not serve it; restore ledger and nodes"
                )
    seen = {(node.shard, part) for node in living for part in node.prefix}
    samples = sum(ledger.slot(*slot).left for slot in seen)
    found.checked(
        f"{count} of {len(living)} living nodes prove keys over {samples} samples, none deleted"
    )


def _differences(node: Node, facts: NodeFacts, plan: Plan, recipe: Digest) -> list[str]:
    meta = facts.meta
    slices = tuple(plan.digests[node.shard][part] for part in node.prefix)
    pairs = {
        "shard": (meta.shard, node.shard),
        "prefix": (meta.prefix, node.prefix),
        "parent": (meta.parent, node.parent),
        "base": (meta.base, plan.base),
        "recipe": (meta.recipe, recipe),
        "environment": (meta.environment, node.environment),
        "slices": (meta.slices, slices),
    }
    return [name for name, (there, stated) in pairs.items() if there != stated]
