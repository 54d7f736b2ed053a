"""A run that looks trained: real data, ledger, plans and node files; the weights are made up.

    rows of a CSV ──► ledger, plan, nodes ──► deletions ──► planned again: plan, missing nodes

All that is written goes the ways of the product but for the training, so that a second is enough
for many kills. Which samples each slice's digest stands for is kept beside the run, so that what
a node has seen is known without the ledger.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from s3t.config import Config, dump_config
from s3t.data import label_names, load_private
from s3t.data.partition import Partition, partition
from s3t.errors import S3TError
from s3t.ledger import Gone, Witnessed
from s3t.plan import Plan, make_plan
from s3t.plan.sequences import cyclic
from s3t.run import RunDir
from s3t.store import NodeMeta, write_durably
from s3t.types import Digest, NodeKey, digest

__all__ = ["make_run", "seen_by", "train_again"]

_BUDGET = 2
_BASE = digest("no base")
_ROWS = digest("no rows")
_ENVIRONMENT = {"torch": "none", "transformers": "none"}

Step = Callable[[str], None]
"""Told the name of each step before it is taken."""


def make_run(root: Path, samples: int, shards: int = 6, slices: int = 4) -> RunDir:
    """A run of so many samples, two of each person, as if it were trained."""
    root.mkdir(parents=True)
    rows = root.with_name("rows.csv")
    with rows.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "who", "text", "label"])
        for number in range(samples):
            label = ("bad", "good")[number % 2]
            writer.writerow([f"s{number:05}", f"p{number // 2:05}", f"text {number}", label])
    source = {"format": "csv", "files": str(rows)}
    tree = {
        "name": "made",
        "output": str(root),
        "task": "text-classification",
        "data": {
            "private": source,
            "public": {"validation": source, "test": source, "adapt": source},
            "columns": {"id": "id"},
            "max_length": 32,
        },
        "model": {"base": "make:bert"},
        "partition": {"shards": shards, "slices": slices, "salt": "made", "subject": "who"},
    }
    config = Config.model_validate(tree)
    run = RunDir(root)
    write_durably(run.config_path, dump_config(config).encode())
    members = _members(config, Gone(b"", frozenset()))
    plan = _planned(run, members, None)
    with run.ledger(create=True) as ledger:
        ledger.register(members.slots())
        write_durably(run.plan_path, plan.to_json().encode())
        ledger.plans.put_in_force(ledger.plans.propose(plan.digest, 0))
    _train(run, plan)
    return run


def train_again(run: RunDir, step: Step = lambda name: None) -> None:
    """Plan the samples left again, and make up the nodes that are missing, as a repair does.

    Raises:
        S3TError: another process trains the run, or the ledger cannot be used.
    """
    with run.training_lock(), run.ledger() as ledger:
        step("plan")
        gone = ledger.deleted.all()
        members = _members(run.config(), gone)
        ledger.register(members.slots())
        now = run.plans.find(lambda: ledger.plans.in_force().plan)
        run.plans.settle(now, ledger.plans.newest().plan)
        plan = _planned(run, members, now)
        if plan.digest != ledger.plans.newest().plan:
            run.plans.write(plan)
            ledger.plans.propose(plan.digest, gone.view)
        ledger.plans.put_in_force(ledger.plans.newest().generation)
        run.plans.settle(plan, plan.digest)
        step("train")
        _train(run, plan)


def seen_by(run: RunDir, plan: Plan, key: NodeKey) -> frozenset[str]:
    """Ids of all samples that a node of a plan has seen."""
    node = plan.forest[key]
    found: set[str] = set()
    for part in node.prefix:
        slice_ = plan.digests[node.shard][part]
        found |= set(_kept(run, slice_).read_text(encoding="utf-8").split())
    return frozenset(found)


def _members(config: Config, gone: Gone) -> Partition:
    private = load_private(config, label_names(config)).without(gone)
    shape = config.partition
    return partition(
        private.samples, shape.shards, shape.slices, shape.salt, allow_empty=bool(len(gone))
    )


def _planned(run: RunDir, members: Partition, before: Plan | None) -> Plan:
    for row, digests in zip(members.members, members.digests(), strict=True):
        for samples, slice_ in zip(row, digests, strict=True):
            path = _kept(run, slice_)
            if not path.exists():
                write_durably(path, "\n".join(sample.id for sample in samples).encode())
    return make_plan(
        sizes=members.sizes(),
        digests=members.digests(),
        sequences=cyclic(members.slices, _BUDGET),
        base=_BASE,
        recipe={"labels": ["bad", "good"]},
        epochs=1,
        cumulative=True,
        stage_bytes=[100] * members.slices,
        leave_out_empty=True,
        environment=_ENVIRONMENT,
        before=before,
        there=run.store.keys(),
    )


def _train(run: RunDir, plan: Plan) -> None:
    """Make up the nodes that are missing, each after its parent; announce and seal them."""
    hits = run.hits()
    for node in sorted(plan.forest, key=lambda node: node.stage):
        if run.store.has(node.key) or node.is_hit(hits):
            continue
        meta = NodeMeta(
            key=node.key,
            parent=node.parent,
            base=plan.base,
            recipe=digest(plan.recipe),
            environment=node.environment,
            slices=tuple(plan.digests[node.shard][part] for part in node.prefix),
            shard=node.shard,
            prefix=node.prefix,
            score=1.0,
            rows=_ROWS,
        )
        said = torch.tensor([[-0.5, -1.0]]) * node.samples
        run.store.write(meta, {"head.weight": torch.tensor([float(node.samples)])}, said)
    with run.ledger() as ledger:
        found = {}
        for key in sorted(run.store.keys() - ledger.plans.nodes().keys()):
            with suppress(S3TError):  # purged a moment ago
                there, said = run.store.meta(key), run.store.read_evidence(key)
                found[key] = Witnessed(there.weights, there.score, there.rows, said.digest)
        ledger.plans.announce(found)
        ledger.plans.seal()


def _kept(run: RunDir, slice_: Digest) -> Path:
    return run.root.with_name("members") / slice_
