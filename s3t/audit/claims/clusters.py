"""Claims E3 and E5 where shards are clusters: places by likeness, prototypes by public data alone.

    public rows ──frozen base──► prototypes, made again ──compared──► those of the run
    private rows ──frozen base──► nearest prototype ──compared──► the shard in the ledger

The ledger holds no features, so from its rows alone no more can be said of a shard than that the
plan's digests hold its samples. What a row is like is judged where the rows are read anyway, since
nodes are trained again, on the kind of machine that the run was planned on: on another the last bit
of a feature may differ.

Invariant: nothing is taken from what the run placed its samples by; private rows are only read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3t.audit.claim import Findings
from s3t.audit.evidence import Case
from s3t.config import Config
from s3t.errors import named
from s3t.ledger import Ledger
from s3t.types import SampleId

if TYPE_CHECKING:
    from s3t.model.prototypes import Prototypes

__all__ = ["judge_clusters", "judge_prototypes"]


def judge_prototypes(case: Case, found: Findings, again: bool) -> Prototypes | None:
    """Judge what E5 says of prototypes; returns those of the run, None without clusters.

    Args:
        case: the run.
        found: where to report.
        again: make them again from the public data.
    """
    from s3t.model.prototypes import read_prototypes

    config, base = case.config, case.loaded.base
    if config.partition.clusters is None:
        return None
    own = read_prototypes(case.run.prototypes_path, base.fingerprint)
    again = again and _rounds_alike(case)
    if again and _made_again(case, config).digest != own.digest:
        found.broken(
            f"the prototypes {case.run.prototypes_path} are not what the public data gives here: "
            "restore them, or the public data"
        )
    found.checked(
        f"{len(own)} prototypes are of this base" + (", and made again the same" if again else "")
    )
    return own


def judge_clusters(case: Case, found: Findings) -> None:
    """Judge what E3 says of clusters: each sample lies in the shard that its row is nearest to."""
    from s3t.data import label_names, load_private
    from s3t.model.prototypes import read_prototypes
    from s3t.training.prepare.clusters import clustered

    config, loaded = case.config, case.loaded
    if config.partition.clusters is None:
        return
    if not _rounds_alike(case):
        found.checked("clusters not reckoned: the run was planned on another kind of machine")
        return
    own = read_prototypes(case.run.prototypes_path, loaded.base.fingerprint)
    shards = _shards(case)
    private = load_private(config, label_names(config)).without(case.run.gone())
    samples = clustered(private, own, loaded.base, loaded.encoder, {}).samples
    there = [sample for sample in samples if sample.id in shards]
    wrong = [sample.id for sample in there if sample.cluster != shards[sample.id]]
    if wrong:
        found.broken(
            f"{len(wrong)} samples do not lie in the shard whose prototype their row is nearest "
            f"to ({named(wrong, 3)}): the ledger or the data was changed; restore them"
        )
    found.checked(f"clusters of {len(there)} samples reckoned from their rows")


def _rounds_alike(case: Case) -> bool:
    """Whether features have the same bits here as where the run was prepared."""
    return case.here == case.plan.prepared


def _shards(case: Case) -> dict[SampleId, int]:
    """Shards of the samples that are rows in the ledger."""
    at = case.run.ledger_at
    with Ledger.open(at, read_only=True) as ledger, ledger.evidence() as evidence:
        return {SampleId(row.sample_id): int(row.shard) for row in evidence.samples()}


def _made_again(case: Case, config: Config) -> Prototypes:
    from s3t.data import label_names, load_public
    from s3t.model.prototypes import find_prototypes
    from s3t.training.node.rows import encode_rows

    loaded = case.loaded
    rows = load_public(config, "adapt", label_names(config))
    return find_prototypes(config, loaded.base, encode_rows(loaded.encoder, rows).rows)
