"""One adapter to be exported: what it holds, its name and its files.

    s3t-<run>-shard-003-<16 hex>     digest over the keys of its nodes, its weights, rank and scale
    s3t-<run>-merged-<16 hex>

Invariant: a name stands for one function of the base, for ever; other weights get another name. So
what an engine caches by name, such as prefixes of prompts, never mixes two generations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import Tensor

from s3t.export.probe import HEAD, PROBE, answers, pack_probe, probe_rows
from s3t.export.questions import pack_questions
from s3t.model.adapters.peft import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_files
from s3t.model.base import Base
from s3t.model.head import BIAS, WEIGHT
from s3t.serving.ensemble.ensemble import Member
from s3t.types import NodeKey, digest

__all__ = ["HEAD_CARD", "Adapter", "AdapterSource", "BaseName", "make_adapter"]

HEAD_CARD = "head.json"

_APPLY = (
    "features = last_hidden_state of the base under this adapter, pooled to one vector a row "
    "(first: the first token; last: the last real token; mean: the mean of the real tokens); "
    "logits = features @ weight.T + bias"
)


@dataclass(frozen=True, slots=True)
class BaseName:
    """How others find the base.

    Attributes:
        name: hub name, or path of a folder in transformers' format.
        revision: of a hub name.
    """

    name: str
    revision: str | None


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter, ready to be written.

    Attributes:
        name: unique for what it computes (see the module).
        shard: its number; None if all are merged.
        nodes: keys of all nodes whose weights it holds: of a lineage, or of all lineages.
        prefix: slice numbers, in order; empty if merged.
        samples: samples that its nodes have seen.
        rank: of all its maps.
        scale: alpha / rank.
        lowest: lowest layer that it adapts.
        member: its tensors by s3t's names.
        files: contents by path inside its folder, without the probe.
        pooling: of the features that the head takes; None without a head.
    """

    name: str
    shard: int | None
    nodes: tuple[NodeKey, ...]
    prefix: tuple[int, ...]
    samples: int
    rank: int
    scale: float
    lowest: int
    member: Member
    files: Mapping[str, bytes]
    pooling: str | None

    @property
    def config(self) -> Mapping[str, Any]:
        """What ``adapter_config.json`` says."""
        found: dict[str, Any] = json.loads(self.files[ADAPTER_CONFIG])
        return found

    def probed(self, base: Base, vocabulary: int) -> dict[str, bytes]:
        """All files, the probe included.

        Args:
            base: that it adapts.
            vocabulary: token ids are below this number; 0 for images.
        """
        tensors, more = self.member.tensors, dict[str, Tensor]()
        rows = probe_rows(base, vocabulary)
        logits = answers(base, tensors, self.scale, rows)
        if base.lm_head is not None:
            more = pack_questions(base, tensors, self.scale, vocabulary)
        return {**self.files, PROBE: pack_probe(rows, logits, more)}

    def entry(self, files: Mapping[str, str]) -> dict[str, Any]:
        """What the manifest says of it.

        Args:
            files: SHA-256 by path of what was written.
        """
        return {
            "name": self.name,
            "kind": "merged" if self.shard is None else "shard",
            "shard": self.shard,
            "node": None if self.shard is None else self.nodes[-1],
            "nodes": list(self.nodes),
            "prefix": list(self.prefix),
            "samples": self.samples,
            "rank": self.rank,
            "scale": self.scale,
            "lowest_layer": self.lowest,
            "pooling": self.pooling,
            "files": dict(files),
        }


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """What an adapter is made from.

    Attributes:
        member: the tensors.
        rank, scale: of all maps; scale is alpha / rank.
        nodes: keys of all nodes that are in it, in the order of their lineages.
        prefix: slice numbers of the shard's prefix; None if all shards are merged.
    """

    member: Member
    rank: int
    scale: float
    nodes: Sequence[NodeKey]
    prefix: Sequence[int] | None


def make_adapter(
    base: Base,
    base_name: BaseName,
    tag: str,
    source: AdapterSource,
    labels: Sequence[str],
    digits: int = 3,
) -> Adapter:
    """An adapter with its files and its name.

    Args:
        base: that it adapts.
        base_name: how others find the base.
        tag: of the run, a part of the name.
        source: tensors and nodes.
        labels: of a classifier's head; empty for a language model.
        digits: of a shard's number in the name.
    """
    member, rank, scale, prefix = source.member, source.rank, source.scale, source.prefix
    files = adapter_files(base, member.tensors, rank, scale * rank, base_name.name)
    config = json.loads(files[ADAPTER_CONFIG])
    proof = {
        "nodes": list(source.nodes),
        "weights": sha256(files[ADAPTER_WEIGHTS]),
        **{name: config[name] for name in ("r", "lora_alpha")},
    }
    if labels:
        files |= _head_files(base, member, labels)
        proof["head"] = sha256(files[HEAD])
    kind = "merged" if prefix is None else f"shard-{member.shard:0{digits}d}"
    return Adapter(
        name=f"s3t-{tag}-{kind}-{digest(proof)[:16]}",
        shard=None if prefix is None else member.shard,
        nodes=tuple(source.nodes),
        prefix=tuple(prefix or ()),
        samples=member.samples,
        rank=rank,
        scale=scale,
        lowest=member.lowest,
        member=member,
        files=files,
        pooling=base.pooling if labels else None,
    )


def _head_files(base: Base, member: Member, labels: Sequence[str]) -> dict[str, bytes]:
    """The files of a classifier's head: weights, labels, and how to apply it."""
    head = {"weight": member.tensors[WEIGHT], "bias": member.tensors[BIAS]}
    plain = {name: one.detach().float().cpu().contiguous() for name, one in head.items()}
    card = {"labels": list(labels), "pooling": base.pooling, "apply": _APPLY}
    text = json.dumps(card, indent=1, ensure_ascii=False)
    return {HEAD: save(plain), HEAD_CARD: text.encode() + b"\n"}


def sha256(content: bytes) -> str:
    """Digest of a file, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
