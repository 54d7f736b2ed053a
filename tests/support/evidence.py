"""What nodes say of the public validation rows, for tests of the weights that are fitted on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from s3t.data import load_public
from s3t.run.opened import OpenRun
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.serving.predictor import Predictor
from s3t.store import NodeStore
from s3t.training.node.rows import encode_rows
from s3t.types import Digest, NodeKey

Evidence = dict[NodeKey, Tensor]


def evidence_of(opened: OpenRun) -> tuple[Digest, Evidence]:
    """The digest of a run's validation rows, and what each of its nodes says of them; computed by
    the ensemble, as nothing that trains does."""
    model = Predictor(opened.run, opened.config, opened.plan)
    rows = load_public(opened.config, "validation", opened.labels)
    encoded, found = encode_rows(model.encoder, rows), Evidence()
    there = opened.run.store.keys()
    for node in opened.plan.forest.nodes:
        if node.key in there:
            members = model.members([node], opened.plan)
            one = Ensemble(
                model.base, members, opened.config.lora.scale, "mean-probabilities", "uniform"
            )
            if encoded.labels is None:
                said = -one.token_losses(encoded.rows)[encoded.rows.scored[:, 1:].bool()]
            else:
                said = one.probabilities(encoded.rows).clamp_min(1e-30).log()
            found[node.key] = said
    return rows.digest(), found


def keep(
    patch: pytest.MonkeyPatch,
    rows: Digest,
    evidence: Evidence,
    read: Callable[[NodeKey], None] = lambda key: None,
) -> None:
    """Have every store of this process give this evidence.

    Args:
        read: told of each node whose evidence is read.
    """

    def kept(self: NodeStore, key: NodeKey, asked: Digest) -> Tensor | None:
        read(key)
        return evidence.get(key) if asked == rows else None

    patch.setattr(NodeStore, "evidence", kept)
