"""The weights that an ensemble serves with under ``aggregation.weights: public``.

    a view ─► recorded for these nodes? ─► yes: those
                 └─ no: evidence of each node and of the base ─► fit ─► recorded, first one wins

A node's evidence is what it says of the public validation rows; it lies beside the node.

Invariant: weights are used only if they were fitted on exactly the nodes that serve, all alive, and
on the public rows of now. Whatever is in doubt is refused with a reason, and the caller goes on
with uniform weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s3t.data import load_public
from s3t.data.rows import overlap
from s3t.errors import S3TError
from s3t.plan.trie import Node
from s3t.serving.ensemble.mixture import DIGITS, Mixture, fit, fit_merged
from s3t.training.node.rows import LabelledSet, encode_rows, evidence_rows
from s3t.types import Digest, NodeKey

if TYPE_CHECKING:
    from s3t.config import Config
    from s3t.model.inputs.encoders import ImageEncoder, TextEncoder
    from s3t.run.opened import OpenRun
    from s3t.serving.ensemble.ensemble import Ensemble, Member
    from s3t.serving.predictor import Predictor

__all__ = [
    "Members",
    "NoWeights",
    "PublicWeights",
    "fitted",
    "keys_of",
    "mixture_of",
    "public_terms",
    "recorded_mixture",
    "said_of",
]


class NoWeights(S3TError):
    """Weights cannot be fitted; uniform ones serve."""


class PublicWeights:
    """Fits the weights of one run's ensembles, for one process.

    Args:
        opened: the run.
        model: its base, labels and public head.
    """

    def __init__(self, opened: OpenRun, model: Predictor) -> None:
        self._opened, self._model = opened, model
        self._rows: tuple[Digest, LabelledSet] | None = None
        self._base: Tensor | None = None

    def of(
        self,
        view: int,
        nodes: Sequence[Node | None],
        uniform: Ensemble,
        known: Mixture | None = None,
    ) -> Mixture | None:
        """The weights of a view, as all processes of the run serve it.

        Args:
            view: the ledger's.
            nodes: by shard; those that are None have no part.
            uniform: the ensemble of these nodes without fitted weights.
            known: fitted on these very nodes, at a view before.

        Returns:
            None if the ledger has come to another view meanwhile.

        Raises:
            NoWeights: they are in doubt.
            S3TError: the ledger or the public data cannot be read.
        """
        keys = keys_of(nodes)
        rows, encoded = self._public()
        method = self._opened.config.aggregation.method
        based = self._model.has_head
        of = {"nodes": keys, "rows": rows, "method": method, "base": based}
        recorded = self._opened.ledger.served.read()
        if recorded is None or recorded["of"] != of:
            found = known or self._fitted(keys, rows, encoded, uniform)
            recorded = self._opened.ledger.served.record(view, of, found.to_dict())
        if recorded is None:
            return None
        return mixture_of(recorded["values"], len(keys), based)

    def _fitted(
        self, keys: Sequence[NodeKey], rows: Digest, encoded: LabelledSet, uniform: Ensemble
    ) -> Mixture:
        model, store = self._model, self._opened.run.store
        if self._base is None and model.has_head:
            self._base = said_of(model.base_ensemble(), encoded)
        return fitted(
            self._opened.config.aggregation.method,
            Members([store.evidence(key, rows) for key in keys], uniform, model.alone),
            self._base,
            encoded,
        )

    def _public(self) -> tuple[Digest, LabelledSet]:
        """``public_terms`` of the run; read until they could be used once."""
        if self._rows is None:
            self._rows = public_terms(self._opened.config, self._opened.labels, self._model.encoder)
        return self._rows


@dataclass(frozen=True)
class Members:
    """What weights are fitted for.

    Attributes:
        said: evidence of each member, by shard; None where there is none.
        uniform: their ensemble without fitted weights.
        alone: the base as one more member; None if it has no head.
    """

    said: Sequence[Tensor | None]
    uniform: Ensemble
    alone: Member | None


def fitted(method: str, members: Members, base: Tensor | None, rows: LabelledSet) -> Mixture:
    """The weights of members, fitted on public rows.

    Args:
        method: ``aggregation.method``.
        members: of one view, at least one.
        base: what the base says of the rows; None if it has no head.
        rows: the public rows, as ``public_terms`` gives them.

    Raises:
        NoWeights: evidence is missing, or of other rows.
    """
    if method == "mean-adapters":  # no node's evidence tells of the merged adapter: it is asked

        def merged(one: Mixture) -> Tensor:
            return said_of(members.uniform.weighted(one, members.alone), rows)

        return fit_merged(merged, len(members.said), base, rows.labels)
    said = [one for one in members.said if one is not None]
    if len(said) < len(members.said):
        raise NoWeights(
            "a node has no log probabilities of the public validation rows as they are now: s3t "
            "train computes them"
        )
    if any(one.shape != said[0].shape for one in said):
        raise NoWeights("log probabilities of the nodes are of different public rows")
    return fit(torch.stack(said).cpu(), base, rows.labels, method)


def said_of(ensemble: Ensemble, rows: LabelledSet) -> Tensor:
    """What an ensemble says of rows: log probabilities of all classes, float32 [n, C], or those of
    the scored tokens, row by row, [tokens]; on the CPU."""
    if rows.labels is not None:
        tiny = torch.finfo(torch.float32).tiny
        return ensemble.probabilities(rows.rows).clamp_min(tiny).log()
    return -ensemble.token_losses(rows.rows)[rows.rows.scored[:, 1:].bool()]


def public_terms(
    config: Config, labels: Sequence[str], encoder: TextEncoder | ImageEncoder
) -> tuple[Digest, LabelledSet]:
    """The digest of the public validation rows, and those of them that evidence is of.

    Raises:
        NoWeights: the base was adapted on some of them.
        DataError: they cannot be read.
    """
    rows = load_public(config, "validation", labels)
    if config.data.adapts:
        count = overlap(rows, load_public(config, "adapt", labels))
        if count:
            raise NoWeights(
                f"{count} of {len(rows)} rows of data.public.validation are in .adapt too, so "
                "weights cannot be fitted on them: divide the public rows"
            )
    encoded = encode_rows(encoder, rows)
    return rows.digest(), encoded.take(evidence_rows(encoded, len(labels)))


def keys_of(nodes: Sequence[Node | None]) -> list[NodeKey]:
    """Keys of the nodes that serve, by shard."""
    return [node.key for node in nodes if node is not None]


def recorded_mixture(opened: OpenRun, keys: Sequence[NodeKey], based: bool) -> Mixture | None:
    """The weights that are recorded for nodes, whatever the public rows are now; None without.

    Args:
        opened: the run.
        keys: what serves, by shard.
        based: whether the base may have a weight.
    """
    if opened.config.aggregation.weights != "public":
        return None
    found = opened.ledger.served.read()
    if found is None or found["of"].get("nodes") != list(keys):
        return None
    try:
        return mixture_of(found["values"], len(keys), based)
    except NoWeights:
        return None


def mixture_of(values: Any, members: int, based: bool) -> Mixture:
    """The mixture of ``Mixture.to_dict``, checked.

    Args:
        values: JSON values.
        members: how many there are.
        based: whether the base may have a weight.

    Raises:
        NoWeights: the values are none, or do not fit.
    """
    try:
        found = Mixture(**values | {"members": tuple(map(float, values["members"]))})
        numbers = [*found.members, found.base, found.log_likelihood]
        unbased = found.method == "mean-adapters" and not based
        whole = float(found.coefficient or 0.0) if unbased else 1.0
        sound = (
            len(found.members) == members
            and found.method in ("mean-probabilities", "mean-logits", "mean-adapters")
            and all(map(math.isfinite, numbers))
            and abs(math.fsum([*found.members, found.base]) - whole) < 10**-DIGITS / 2
            and (found.coefficient is not None or min(numbers[:-1]) >= 0)
            and (based or not found.base)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise NoWeights("the weights that are recorded in the ledger cannot be understood")
    return found
