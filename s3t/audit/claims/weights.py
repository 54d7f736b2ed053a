"""Claims E2, E4 and E9: the bytes of living nodes, their heads, and the blocks that they train.

    tensors ──► digest ◄── metadata ◄── what the trainer announced to the ledger
       ├── head.*                     each node has its own
       └── layers.007.….lora_A        7 lies in the block of the node's stage
        or prompt.002                 2 is the node's stage

Invariant: names of tensors are parsed, and layers compared as integers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from s3t.audit.audited_run import AuditedRun
from s3t.audit.claims.node_files import HEAD, NodeFacts
from s3t.audit.findings import Findings
from s3t.errors import DamagedNodeError, InputError, S3TError
from s3t.plan import Plan
from s3t.plan.trie import Node
from s3t.types import Digest, NodeKey

__all__ = ["judge_blocks", "judge_heads", "judge_weights"]

_ADAPTER = re.compile(r"layers\.(\d+)\.(.+)\.lora_([AB])")
_PROMPT = re.compile(r"prompt\.(\d+)")
_AGAIN = "remove the file, and run s3t train CONFIG again"


def judge_weights(audited: AuditedRun, found: Findings) -> None:
    """Judge what E2 says of files: the weights are those that the trainer announced."""
    told, living = audited.ledger.nodes, audited.living
    wrong, count = [], 0
    for node in living:
        try:
            facts = audited.files.facts(node.key)
        except DamagedNodeError as error:
            if node.key in audited.files.there:
                wrong.append(str(error))
            continue
        if node.key not in told and audited.ledger.nodes_growing:
            found.pending(
                f"node {node.key} was not announced yet: a training was not finished; run s3t "
                "train CONFIG or s3t repair RUN again"
            )
        elif node.key not in told:
            wrong.append(
                f"node {node.key} was announced by no trainer, so its weights may not be "
                f"what training gave: {_AGAIN}"
            )
        elif told[node.key].weights != facts.weights:
            wrong.append(
                f"node {node.key} has other weights than its trainer told the ledger, though its "
                f"file proves itself: it was written again; {_AGAIN}"
            )
        elif told[node.key].rows == facts.meta.rows and told[node.key].score != facts.meta.score:
            wrong.append(
                f"node {node.key} has the score {facts.meta.score:g} in its file, and its trainer "
                f"told the ledger {told[node.key].score:g}: the file was edited; {_AGAIN}"
            )
        else:
            count += 1
    found.each(wrong, "nodes")
    found.checked(f"{count} of {len(living)} living nodes have the weights that training gave")
    found.parts(_said, _scored, of=audited)


def _said(audited: AuditedRun, found: Findings) -> None:
    """Judge that evidence beside nodes is what was announced; a node serves without it too."""
    told, files = audited.ledger.nodes, audited.files
    wrong, missing, count = [], 0, 0
    for node in audited.living:
        if node.key not in told or node.key not in files.there:
            continue  # judged above
        if node.key not in files.evidence_there:
            missing += 1
            continue
        try:
            said = files.evidence(node.key)
        except DamagedNodeError as error:
            wrong.append(str(error))
            continue
        if said.digest != told[node.key].evidence:
            wrong.append(
                f"node {node.key} has other evidence beside it than its trainer told the ledger: "
                "it was written again, or a scoring was killed; remove the file "
                f"{node.key}.evidence, and run s3t train CONFIG again"
            )
            continue
        count += 1
    found.each(wrong, "nodes")
    if missing:
        found.pending(
            f"{missing} living nodes have no evidence of the public validation rows beside them, "
            "so no weights are fitted: run s3t train CONFIG, which computes it and trains nothing"
        )
    found.checked(f"{count} living nodes say of the public validation rows what was announced")


def _scored(audited: AuditedRun, found: Findings) -> None:
    """Judge that scores were computed on the public validation rows as they are now."""
    from s3t.data import load_public

    config, told = audited.config, audited.ledger.nodes
    try:
        now = load_public(config, "validation", audited.labels).digest()
    except InputError as error:
        found.checked(
            f"scores not held against data.public.validation, which is not here ({error})"
        )
        return
    others = sum(node.key in told and told[node.key].rows != now for node in audited.living)
    if others:
        found.pending(
            f"{others} living nodes were scored on other rows than data.public.validation holds "
            "now, so other prefixes may be preferred: run s3t train CONFIG, which scores again "
            "and trains nothing"
        )


def judge_heads(audited: AuditedRun, found: Findings) -> None:
    """Judge E4: each living node has a head of its own, of the right shape."""
    plan, files = audited.plan, audited.files
    classes = len(plan.recipe["labels"])
    hidden = _hidden(audited)
    wrong, owner, count = [], dict[Digest, NodeKey](), 0
    for node in audited.living:
        facts = files.sound(node.key)
        if facts is None:
            continue
        count += 1
        shapes = {name: shape for name, shape in facts.shapes.items() if name.startswith(HEAD)}
        if not _is_head(shapes, classes, hidden):
            wrong.append(f"node {node.key} has the head {_text(shapes)}: {_AGAIN}")
        if facts.head is not None:
            first = owner.setdefault(facts.head, node.key)
            if first != node.key:
                wrong.append(
                    f"node {node.key} carries the very head of node {first}, and no two trainings "
                    f"end alike: one was swapped; {_AGAIN}"
                )
    found.each(wrong, "nodes")
    kind = f"{classes} classes, all different" if classes else "none, the base's own answers"
    found.checked(f"heads of {count} living nodes: {kind}")


def judge_blocks(audited: AuditedRun, found: Findings) -> None:
    """Judge E9: the base is the plan's, and a node holds tensors of its stage's block alone."""
    plan = audited.plan
    shapes: Mapping[str, tuple[int, ...]] | None = None
    with found.part():
        base = audited.loaded.base
        if base.fingerprint != plan.base:
            found.broken(
                "the base is not the one of the plan, a weight of it differs: restore "
                f"{audited.run.base_path if audited.run.base_path.is_dir() else 'model.base'}"
            )
        else:
            found.checked(
                f"{len(base.weights.tensors)} frozen tensors are those of the plan's base"
            )
        rank = plan.recipe.get("lora", {}).get("rank")
        shapes = {t.a: (rank, t.inputs) for t in base.targets}
        shapes |= {t.b: (t.outputs, rank) for t in base.targets}
    wrong, count = [], 0
    for node in audited.living:
        facts = audited.files.sound(node.key)
        if facts is not None:
            count += 1
            wrong += [
                f"node {node.key} {what}: {_AGAIN}" for what in _odd(node, facts, plan, shapes)
            ]
    found.each(wrong, "nodes")
    found.checked(
        f"prompts of {count} living nodes are those of their stage alone; they adapt no layer"
        if "prompt" in plan.recipe
        else f"adapters of {count} living nodes lie in their blocks and are not as they began"
    )


def _odd(
    node: Node, facts: NodeFacts, plan: Plan, shapes: Mapping[str, tuple[int, ...]] | None
) -> Iterator[str]:
    """Problems of a node's tensors: names, shapes or values that its stage does not train."""
    if "prompt" in plan.recipe:
        yield from _odd_prompts(node, facts, plan)
    else:
        yield from _odd_adapters(node, facts, plan, shapes)
    for name in facts.odd:
        yield f"has {name!r} with values that are no finite float32"


def _odd_prompts(node: Node, facts: NodeFacts, plan: Plan) -> Iterator[str]:
    tokens, there = plan.recipe["prompt"]["tokens"], False
    for name, shape in facts.shapes.items():
        if name.startswith(HEAD):
            continue
        parts = _PROMPT.fullmatch(name)
        if parts is None or int(parts[1]) != node.stage:
            yield f"has the tensor {name!r}, which is no prompt of its stage {node.stage}"
            continue
        there = True
        if len(shape) != 2 or shape[0] != tokens:
            yield f"has {name!r} of shape {list(shape)}, where the recipe has {tokens} tokens"
    if not there:
        yield f"lacks the prompts of its stage {node.stage}"
    for name in facts.zero:
        if _PROMPT.fullmatch(name):
            yield f"has {name!r} at zero, which no training ends with"


def _odd_adapters(
    node: Node, facts: NodeFacts, plan: Plan, shapes: Mapping[str, tuple[int, ...]] | None
) -> Iterator[str]:
    lo, hi = plan.recipe["blocks"][node.stage - 1]
    paths = {*plan.recipe["targets"]}
    there: set[tuple[int, str, str]] = set()
    for name, shape in facts.shapes.items():
        if name.startswith(HEAD):
            continue
        parts = _ADAPTER.fullmatch(name)
        if parts is None or parts[2] not in paths:
            yield f"has the tensor {name!r}, which is no adapter of the recipe"
            continue
        layer = int(parts[1])
        there.add((layer, parts[2], parts[3]))
        if not lo <= layer < hi:
            yield f"adapts layer {layer}, outside its block of layers {lo} to {hi - 1}"
        if shapes is not None and shapes.get(name) != shape:
            yield f"has {name!r} of shape {list(shape)}, where the base takes {shapes.get(name)}"
    for layer, path, matrix in sorted(_trained(shapes, lo, hi, paths) - there):
        yield f"lacks matrix {matrix} of {path} in layer {layer}"
    for name in facts.zero:
        if name.endswith("lora_B"):
            yield f"has {name!r} at zero, where training begins: it was never trained"


def _trained(
    shapes: Mapping[str, tuple[int, ...]] | None, lo: int, hi: int, paths: Collection[str]
) -> set[tuple[int, str, str]]:
    """Layer, map and matrix of all that a stage trains; by the recipe if the base is not there."""
    if shapes is None:
        return {(layer, path, half) for layer in range(lo, hi) for path in paths for half in "AB"}
    parts = (_ADAPTER.fullmatch(name) for name in shapes)
    return {(int(p[1]), p[2], p[3]) for p in parts if p is not None and lo <= int(p[1]) < hi}


def _hidden(audited: AuditedRun) -> int | None:
    """Hidden size of the base; None if the base cannot be loaded (E9 reports that)."""
    try:
        return audited.loaded.base.hidden_size
    except S3TError:
        return None


def _is_head(shapes: Mapping[str, tuple[int, ...]], classes: int, hidden: int | None) -> bool:
    if not classes:
        return not shapes
    weight = shapes.get(f"{HEAD}weight", ())
    return (
        shapes.keys() == {f"{HEAD}weight", f"{HEAD}bias"}
        and shapes[f"{HEAD}bias"] == (classes,)
        and len(weight) == 2
        and weight[0] == classes
        and hidden in (None, weight[1])
    )


def _text(shapes: Mapping[str, tuple[int, ...]]) -> str:
    listed = (f"{name} {list(shape)}" for name, shape in shapes.items())
    return ", ".join(listed) or "of no tensors"
