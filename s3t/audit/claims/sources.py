"""Claim E5: what shapes nodes comes from config and public data, and no file names a sample.

    config, public data, base ──► labels, recipe, sequences, public head, prototypes ──► the plan?
    trackers, reports         ──► words ──► is one of them the id of a sample?

Invariant: private data is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from s3t.audit.audited_run import AuditedRun, LoadedBase
from s3t.audit.claims.clusters import judge_prototypes
from s3t.audit.findings import Findings
from s3t.config import Config
from s3t.plan import Plan, Sequences
from s3t.run.files.contents import LEAST, written, written_files
from s3t.types import Digest, digest

__all__ = ["judge_sources"]

_OF_THE_MACHINE = {"engine"}
"""Parts of a recipe that say by which code nodes were trained."""

_WORD = re.compile(r"[\w.@:+-]+")


def judge_sources(audited: AuditedRun, found: Findings, head_too: bool) -> None:
    """Judge E5.

    Args:
        audited: the run.
        found: where to report.
        head_too: train the public head and make the prototypes again, and compare.
    """
    with found.part():
        _recipe(audited, found, head_too)
    found.parts(_names, of=audited)


def _recipe(audited: AuditedRun, found: Findings, head_too: bool) -> None:
    from s3t.training.prepare.checks import sequences_of
    from s3t.training.prepare.recipe import recipe_of

    config, plan, loaded = audited.config, audited.plan, audited.loaded
    labels = audited.labels
    head = _public_head(audited, config, loaded, head_too, found)
    own = judge_prototypes(audited, found, head_too)
    places = None if own is None else own.digest
    now = recipe_of(config, loaded.base, loaded.encoder, labels, head, places)
    for key in sorted({*now, *plan.recipe} - _OF_THE_MACHINE):
        if digest(now.get(key)) != digest(plan.recipe.get(key)):
            found.broken(
                f"{key} is {_brief(now.get(key))} by config.yaml, public data and base, and "
                f"{_brief(plan.recipe.get(key))} in the plan: one of them was changed; restore it"
            )
    shards = config.partition.shards if own is None else len(own)
    listed = sequences_of(config, loaded.base, len(labels), shards)
    for problem in _shape(config, plan, listed, shards):
        found.broken(f"{problem}: config.yaml or the plan was changed; restore it")
    found.checked(f"{len(labels)} labels, recipe, {len(listed)} sequences are those of the plan")


def _shape(config: Config, plan: Plan, listed: Sequences, shards: int) -> Iterator[str]:
    slices = config.partition.slices
    if (shards, slices) != (plan.shards, plan.slices):
        yield (
            f"the config has {shards} shards of {slices} slices, the plan {plan.shards} of "
            f"{plan.slices}"
        )
        return
    for shard, there in enumerate(plan.sequences):
        sizes = plan.sizes[shard]
        kept = (tuple(part for part in sequence if sizes[part]) for sequence in listed)
        if tuple(dict.fromkeys(sequence for sequence in kept if sequence)) != there:
            yield f"the sequences of shard {shard} are not those that the config gives"
    epochs = tuple(config.stage.epochs_of(stage + 1) for stage in range(plan.slices))
    stated = epochs, config.stage.cumulative
    if stated != (plan.epochs, plan.cumulative):
        yield "epochs or slices of a stage are others in the plan than in the config"


def _public_head(
    audited: AuditedRun, config: Config, loaded: LoadedBase, again: bool, found: Findings
) -> Digest | None:
    """Judge the public head; returns its digest if stage 1 starts from it."""
    from s3t.model.head import read_public_head
    from s3t.store import tensors_digest

    starts, path = config.stage.starts_public, audited.run.head_path
    serves = config.aggregation.falls_back and not config.generates
    if not (starts or serves or path.is_file()):
        return None
    own = None
    with found.part():
        own = tensors_digest(read_public_head(path, loaded.base.fingerprint))
        told = [entry.body.get("head") for entry in audited.ledger.of_kind("plan")]
        if any(head not in (None, own) for head in told):
            found.broken(f"the public head {path} is not the one that the log names: restore it")
        again = again and audited.here == audited.plan.prepared
        if again and _trained_head(audited) != own:
            found.broken(
                f"the public head {path} is not what training on the public data gives here: "
                "restore it"
            )
        found.checked(
            "the public head is of this base"
            + (", and trained again to the same bytes" if again else "")
        )
    return own if starts else None


def _trained_head(audited: AuditedRun) -> Digest:
    """Digest of the public head, trained again here."""
    from s3t.data import load_public
    from s3t.store import tensors_digest
    from s3t.training.node.rows import encode_rows
    from s3t.training.prepare.adapt import public_head

    config, loaded, labels = audited.config, audited.loaded, audited.labels
    rows = encode_rows(loaded.encoder, load_public(config, "adapt", labels))
    return tensors_digest(public_head(config, loaded.base, rows, len(labels)))


def _names(audited: AuditedRun, found: Findings) -> None:
    """Judge that no file of trackers, reports or trainers names a sample or a person."""
    files = written_files(audited.run.root)
    if not files:
        return
    texts = {path: path.read_bytes().decode(errors="replace") for path in files}
    words = {word for text in texts.values() for word in _WORD.findall(text)}
    for name in audited.names_among(lambda name: _may_be(name, words)):
        for path, text in texts.items():
            if name in text:
                found.broken(
                    f"{path} holds the id of a sample or person: remove the file, or the line"
                )
    for path, text in texts.items():
        if audited.purged_among(written(text)):
            found.broken(
                f"{path} holds the id of a sample or person that was purged: remove the file, or "
                "the line"
            )
    found.checked(f"{len(files)} files of trackers and reports hold no id of a sample or person")


def _may_be(name: str, words: set[str]) -> bool:
    parts = _WORD.findall(name)
    return len(name) >= LEAST and not name.isdigit() and bool(parts) and words.issuperset(parts)


def _brief(value: Any) -> str:
    return f"{value!r:.60}"
