"""Kinds of damage to files: nodes, plan, config, base, head, and what should not be there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from s3t.ledger import Witnessed, nodes_digest
from s3t.plan import make_plan
from s3t.store import write_durably
from s3t.types import digest
from tests.harness.damage.kind import Kind, kinds_of
from tests.harness.damage.victim import HIT, Victim

__all__ = ["KINDS"]

KINDS: list[Kind] = []
kind = kinds_of(KINDS)


@kind("a bit of a node's tensors flipped", "E8", "E2")
def _(victim: Victim) -> str:
    key = victim.living[-1]
    victim.flip(victim.file(key), -5)
    return key


@kind("a bit of a node's metadata flipped", "E8", "E2")
def _(victim: Victim) -> str:
    key = victim.living[-1]
    path = victim.file(key)
    victim.flip(path, path.read_bytes().index(b"score") + 12)
    return key


@kind("a node's file put in another's place", "E8", "E2")
def _(victim: Victim) -> str:
    one, other = victim.living[-2:]
    shutil.copy(victim.file(other), victim.file(one))
    return one


@kind("a node's file cut off", "E8", "E2")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.file(key).write_bytes(victim.file(key).read_bytes()[:-100])
    return key


@kind("a node's file removed", "E8")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.file(key).unlink()
    return key


@kind("a node's weights changed, all digests in its file made again", "E2")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.remake(key, lambda tensors: {name: t + 0.01 for name, t in tensors.items()})
    return key


def _weights_made_anew(victim: Victim) -> str:
    key = victim.living[0]
    victim.remake(key, lambda tensors: {name: t + 0.01 for name, t in tensors.items()})
    weights = victim.run.store.meta(key).weights
    victim.sql("UPDATE nodes SET weights = ? WHERE key = ?", weights, key)
    _seal_again(victim)
    return key


def _seal_again(victim: Victim) -> None:
    """Make the digest over all nodes in the log that of the table."""
    rows = victim.sql("SELECT key, weights, score, rows, evidence FROM nodes")
    told = {key: Witnessed(*known) for key, *known in rows}
    number = victim.sql("SELECT MAX(number) FROM log WHERE kind = 'nodes'")[0][0]
    victim.rewrite(number, lambda body: body.update(digest=nodes_digest(told)))


@kind("a node's weights changed, all digests, the ledger and the log made again", "E2",
      asks=lambda victim: {"retrain": "all"})  # fmt: skip
def _(victim: Victim) -> str:
    return _weights_made_anew(victim)


@kind("the same, with the public key at hand", "ledger",
      asks=lambda victim: {"public_key": victim.public_key})  # fmt: skip
def _(victim: Victim) -> str:
    _weights_made_anew(victim)
    return "(nodes) has a signature that is not of its digest"


@kind("a bit of a node's evidence flipped", "E2")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.flip(victim.evidence(key), -5)
    return f"node {key} has evidence that cannot be read"


@kind("a node's evidence put beside another", "E2")
def _(victim: Victim) -> str:
    one, other = victim.living[-2:]
    shutil.copy(victim.evidence(other), victim.evidence(one))
    return f"node {one} has evidence that is another node's"


def _evidence_made_anew(victim: Victim) -> tuple[str, str]:
    """Give a node other evidence, whose digests are right; returns its key and the digest."""
    key, store = victim.living[0], victim.run.store
    said = store.read_evidence(key)
    other = replace(said, said=said.said.roll(1, 0))
    store.write_evidence(other)
    return key, other.digest


@kind("a node's evidence changed, all digests in its file made anew", "E2")
def _(victim: Victim) -> str:
    return f"node {_evidence_made_anew(victim)[0]} has other evidence beside it"


@kind("a node's evidence changed, and the ledger's digest of it with it", "ledger")
def _(victim: Victim) -> str:
    key, found = _evidence_made_anew(victim)
    victim.sql("UPDATE nodes SET evidence = ? WHERE key = ?", found, key)
    return "nodes"


@kind("a node's evidence changed, all digests, the ledger and the log made anew", "E2",
      asks=lambda victim: {"retrain": "all"})  # fmt: skip
def _(victim: Victim) -> str:
    key, found = _evidence_made_anew(victim)
    victim.sql("UPDATE nodes SET evidence = ? WHERE key = ?", found, key)
    _seal_again(victim)
    return key


@kind("a node's evidence removed", "E2", status="pending")
def _(victim: Victim) -> str:
    victim.evidence(victim.living[0]).unlink()
    return "1 living nodes have no evidence"


def _head_swapped(victim: Victim) -> str:
    """Give the last living node the head of the one before."""
    one, other = victim.living[-2:]
    theirs = victim.run.store.read(one)[1]

    def change(tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
        return {n: theirs[n] if n.startswith("head") else t for n, t in tensors.items()}

    victim.remake(other, change)
    return other


@kind("a head swapped, all digests in its file made again", "E4", "E2")
def _(victim: Victim) -> str:
    return _head_swapped(victim)


@kind("a head swapped, and the ledger's digest of the node with it", "E4", "ledger")
def _(victim: Victim) -> str:
    other = _head_swapped(victim)
    weights = victim.run.store.meta(other).weights
    victim.sql("UPDATE nodes SET weights = ? WHERE key = ?", weights, other)
    return other


@kind("an adapter set back to where training begins, digests made again", "E9", "E2")
def _(victim: Victim) -> str:
    key = victim.living[0]
    victim.remake(
        key,
        lambda tensors: {
            name: torch.zeros_like(t) if name.endswith("lora_B") else t
            for name, t in tensors.items()
        },
    )
    return key


@kind("an adapter moved to a layer outside the block, digests made again", "E9", "E2")
def _(victim: Victim) -> str:
    key = victim.living[0]

    def change(tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
        name = next(name for name in tensors if name.endswith("lora_A"))
        number = int(name.split(".")[1])
        other = name.replace(f"layers.{number:03d}", f"layers.{(number + 2) % 4:03d}")
        return {other if old == name else old: tensor for old, tensor in tensors.items()}

    victim.remake(key, change)
    return key


@kind("a plan edited", "E1")
def _(victim: Victim) -> str:
    path = victim.run.plan_path
    body = json.loads(path.read_text(encoding="utf-8"))
    body["sizes"][0][0] += 1
    path.write_text(json.dumps(body), encoding="utf-8")
    return path.name


@kind("a plan edited, its digest made again", "E1")
def _(victim: Victim) -> str:
    path = victim.run.plan_path
    body = json.loads(path.read_text(encoding="utf-8"))
    body["digests"][0][0] = digest("other samples")
    body["digest"] = digest({key: body[key] for key in body if key != "digest"})
    path.write_text(json.dumps(body), encoding="utf-8")
    return path.name


@kind("a plan edited, its digest and all keys made again", "E1")
def _(victim: Victim) -> str:
    write_durably(victim.run.plan_path, _other_plan(victim).to_json().encode())
    return "plan.json is another plan"


@kind("a plan edited, its digest, all keys, the ledger and the log made again", "E1", "E5")
def _(victim: Victim) -> str:
    plan = _other_plan(victim)
    write_durably(victim.run.plan_path, plan.to_json().encode())
    for kind_of, number in victim.sql("SELECT kind, number FROM log ORDER BY number"):
        if kind_of in ("plan", "force"):
            victim.rewrite(number, lambda body: body.update(digest=plan.digest))
    return "slice 0 of shard 1"


def _other_plan(victim: Victim) -> Any:
    """The plan with other samples in a slice, and one sequence less."""
    plan = victim.plan
    digests = [list(row) for row in plan.digests]
    digests[1][0] = digest("other samples")
    return make_plan(
        sizes=plan.sizes,
        digests=digests,
        sequences=plan.sequences[0][:1],
        base=plan.base,
        recipe=plan.recipe,
        epochs=plan.epochs,
        cumulative=plan.cumulative,
        stage_bytes=plan.stage_bytes,
    )


def _edit_config(victim: Victim, before: str, after: str) -> None:
    path = victim.run.config_path
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


@kind("the salt in the config edited", "E3")
def _(victim: Victim) -> str:
    _edit_config(victim, "salt: digits", "salt: other")
    return "partition in config.yaml"


@kind("the learning rate in the config edited", "E5")
def _(victim: Victim) -> str:
    _edit_config(victim, "learning_rate: 0.003", "learning_rate: 0.002")
    return "stage is"


@kind("the budget in the config edited", "E5")
def _(victim: Victim) -> str:
    _edit_config(victim, "budget: 2", "budget: 1")
    return "sequences of shard 0"


@kind("the config made unreadable", "E5", "E3")
def _(victim: Victim) -> str:
    victim.run.config_path.write_text("task: [", encoding="utf-8")
    return "config.yaml"


@kind("a bit of the base's weights flipped", "E9")
def _(victim: Victim) -> str:
    victim.flip(victim.run.base_path / "model.safetensors", -5)
    return "base"


@kind("the public head swapped", "E5")
def _(victim: Victim) -> str:
    victim.flip(victim.run.head_path, -5)
    return "base_head.safetensors"


@kind("the public head swapped, its proof made again", "E5")
def _(victim: Victim) -> str:
    from s3t.model.head import read_public_head, write_public_head

    base = victim.plan.base
    head = read_public_head(victim.run.head_path, base)
    other = {name: tensor.flip(0) for name, tensor in head.items()}
    write_public_head(victim.run.head_path, other, base)
    return "head is"


@kind("a dead node put back after the purge", "E7")
def _(victim: Victim) -> str:
    path = victim.dead[0]
    shutil.copy(path, victim.run.store.root)
    return f"{path.stem} came back after the purge"


@kind("evidence of a dead node put back after the purge", "E7")
def _(victim: Victim) -> str:
    path = victim.dead[0].with_suffix(".evidence")
    shutil.copy(path, victim.run.store.root)
    return f"evidence of node {path.stem} came back after the purge"


@kind("a node dead since the last purge", "E7", status="pending")
def _(victim: Victim) -> str:
    one = victim.sql(
        "SELECT sample_id FROM samples WHERE shard = 1 AND slice = 0 AND deleted_view IS NULL"
    )[0][0]
    from s3t.ledger import Deletion
    from s3t.run.deletion import delete
    from s3t.run.opened import OpenRun

    forgetting = OpenRun(victim.run)
    dead = delete(forgetting, Deletion([one], request_id="third")).nodes_dead
    forgetting.close()
    return f"{dead[0]} died at view 3 and awaits a purge"


@kind("a node of another run put there", "E7")
def _(victim: Victim) -> str:
    key = digest("a node of nobody")
    shutil.copy(victim.file(victim.living[0]), victim.run.store.root / f"{key}.safetensors")
    return key


@kind("hidden states left by a killed training", "E7", status="pending")
def _(victim: Victim) -> str:
    cut = victim.run.trunk_path / "0123456789abcdef" / "cut-002"
    cut.mkdir(parents=True)
    (cut / "hidden").write_bytes(bytes(4096))
    return str(victim.run.trunk_path)


@kind("a half-written node left by a killed training", "E7", status="pending")
def _(victim: Victim) -> str:
    path = victim.run.store.root / f".{victim.living[0]}.safetensors.17.ab.tmp"
    path.write_bytes(bytes(99))
    return str(path)


@kind("a stale copy of a node beside store.url", "E7")
def _(victim: Victim) -> str:
    key, shared = victim.living[0], victim.root.with_name("shared")
    shutil.copytree(victim.run.store.root, shared)
    _edit_config(victim, "url: null", f"url: {shared}")
    meta, tensors = victim.run.store.read(key)
    from s3t.store import NodeStore

    NodeStore(victim.run.store.root).write(meta, {n: t * 2 for n, t in tensors.items()})
    return f"copy of node {key}"


@kind("a damaged copy of a node's evidence beside store.url", "E7")
def _(victim: Victim) -> str:
    key, shared = victim.living[0], victim.root.with_name("shared")
    shutil.copytree(victim.run.store.root, shared)
    _edit_config(victim, "url: null", f"url: {shared}")
    victim.flip(victim.evidence(key), -5)
    return f"copy of node {key}'s evidence"


@kind("a copy of the nodes left in the run", "E7")
def _(victim: Victim) -> str:
    shutil.copytree(victim.aside / "nodes", victim.root / "nodes.old")
    return "nodes.old"


@kind("a tracker's file with the id of a sample", "E5")
def _(victim: Victim) -> str:
    found = "SELECT sample_id FROM samples WHERE shard = ? LIMIT 1"
    name = victim.sql(found, HIT[0])[0][0]
    folder = victim.root / "tracking"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(f'{{"loss": 0.1, "of": "{name}"}}\n', encoding="utf-8")
    return "metrics.jsonl"
