"""Claims E3 and E5 where shards are clusters: each row lies in the shard of its nearest prototype.

    public rows ──frozen base──► prototypes, made again ──compared──► those of the run
    private rows ──frozen base──► nearest prototype ──compared──► the shard in the ledger

The ledger holds no features, so its rows cannot show which prototype a sample is nearest to. The
features are computed only where nodes are trained again, since the private rows are read then, and
only in the environment that the run was planned in: elsewhere the last bit of a feature may differ.

Invariant: the shards of the run are compared with shards computed here; private rows are only read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import Findings
from s3t.config import Config
from s3t.errors import named
from s3t.ledger import Ledger
from s3t.types import SampleId

if TYPE_CHECKING:
    from s3t.model.prototypes import Prototypes

__all__ = ["judge_clusters", "judge_prototypes"]


def judge_prototypes(audited: AuditedRun, found: Findings, again: bool) -> Prototypes | None:
    """Judge what E5 says of prototypes.

    Args:
        audited: the run.
        found: where to report.
        again: make them again from the public data, and compare.

    Returns:
        the prototypes of the run; None if its shards are not clusters.
    """
    from s3t.model.prototypes import read_prototypes

    config, base = audited.config, audited.loaded.base
    if config.partition.clusters is None:
        return None
    own = read_prototypes(audited.run.prototypes_path, base.fingerprint)
    again = again and _rounds_alike(audited)
    if again and _made_again(audited, config).digest != own.digest:
        found.broken(
            f"the prototypes {audited.run.prototypes_path} are not what the public data gives "
            "here: restore them, or the public data"
        )
    found.checked(
        f"{len(own)} prototypes are of this base" + (", and made again the same" if again else "")
    )
    return own


def judge_clusters(audited: AuditedRun, found: Findings) -> None:
    """Judge what E3 says of clusters: a sample's shard is that of the nearest prototype."""
    from s3t.data import load_private
    from s3t.model.prototypes import read_prototypes
    from s3t.training.prepare.clusters import clustered

    config, loaded = audited.config, audited.loaded
    if config.partition.clusters is None:
        return
    if not _rounds_alike(audited):
        found.checked("clusters not computed: the run was planned on another kind of machine")
        return
    own = read_prototypes(audited.run.prototypes_path, loaded.base.fingerprint)
    shards = _shards(audited)
    private = load_private(config, audited.labels).without(audited.run.gone())
    samples = clustered(private, own, loaded.base, loaded.encoder, {}).samples
    there = [sample for sample in samples if sample.id in shards]
    wrong = [sample.id for sample in there if sample.cluster != shards[sample.id]]
    if wrong:
        found.broken(
            f"{len(wrong)} samples do not lie in the shard whose prototype their row is nearest "
            f"to ({named(wrong, 3)}): the ledger or the data was changed; restore them"
        )
    found.checked(f"clusters of {len(there)} samples computed from their rows")


def _rounds_alike(audited: AuditedRun) -> bool:
    """Whether features have the same bits here as in the environment the run was planned in."""
    return audited.here == audited.plan.prepared


def _shards(audited: AuditedRun) -> dict[SampleId, int]:
    """The shard of each sample in the ledger that is not purged."""
    at = audited.run.ledger_at
    with Ledger.open(at, read_only=True) as ledger, ledger.tables() as rows:
        return {SampleId(row.sample_id): int(row.shard) for row in rows.samples()}


def _made_again(audited: AuditedRun, config: Config) -> Prototypes:
    from s3t.data import load_public
    from s3t.model.prototypes import find_prototypes
    from s3t.training.node.rows import encode_rows

    loaded = audited.loaded
    rows = load_public(config, "adapt", audited.labels)
    return find_prototypes(config, loaded.base, encode_rows(loaded.encoder, rows).rows)
