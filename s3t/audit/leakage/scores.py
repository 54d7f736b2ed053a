"""Scores of rows by a model, from which attacks are computed.

    rows ─► ensemble ─► losses                            classifiers: −log p of the true label
                    └─► Min-K %, Min-K %++, verbatim,     language models: of all tokens, or of
                        extraction strength               the answers where rows are instructions

Invariant: each number belongs to one row, in the order of the rows, and depends on that row and the
model alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from s3t.audit.leakage import extraction, membership
from s3t.audit.leakage.extraction import Logits
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.training.node.rows import LabelledSet

__all__ = ["Answers", "answers_of", "contrasted", "window_of"]

Floats = npt.NDArray[np.float64]

_LONGEST = 50
"""Maximum number of tokens given, and of tokens asked for, as in TinyMem."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The scores that one model gives n rows.

    Attributes:
        losses: [n], in nats; for a language model the mean over the scored tokens.
        scores: [n] each, by the name of the attack; only for language models.
        verbatim: for each row that is long enough, whether it was reproduced; only for language
            models.
    """

    losses: Floats
    scores: dict[str, Floats] = field(default_factory=dict)
    verbatim: list[bool] = field(default_factory=list)


def window_of(strangers: LabelledSet) -> int:
    """Number of tokens that are given, and that must follow, in verbatim extraction.

    Half of the median length of the public texts, at most 50; 0 for a classifier. For instructions
    it is the length of the answer that must follow, and the whole prompt is given.
    """
    if strangers.labels is not None:
        return 0
    if strangers.rows.targets is None:
        lengths = [len(row) for row in _tokens(strangers.rows)]
    else:
        lengths = [len(row) - start for row, start in _answers(strangers.rows)]
    return max(1, min(_LONGEST, int(median(lengths)) // 2))


def answers_of(model: Ensemble, rows: LabelledSet, window: int) -> Answers:
    """Compute the scores that a model gives rows.

    Args:
        model: the model under attack.
        rows: n rows, with labels for a classifier; texts of at least 2 tokens otherwise.
        window: tokens given and asked for, from ``window_of``.
    """
    if rows.labels is not None:
        return Answers(_label_losses(model.probabilities(rows.rows), rows.labels))
    logits, texts = _logits(model), _tokens(rows.rows)
    found = extraction.token_statistics(logits, texts)
    scored = [row[1 : len(text)] for row, text in zip(_scored(rows.rows), texts, strict=True)]
    each = [*zip(found, scored, strict=True)]
    log_p = [one.log_probabilities[counts] for one, counts in each]
    means = [one.means[counts] for one, counts in each]
    deviations = [one.deviations[counts] for one, counts in each]
    return Answers(
        losses=np.array([-row.mean() for row in log_p]),
        scores={
            "min-k": membership.min_k(log_p),
            "min-k++": membership.min_k_plus_plus(log_p, means, deviations),
            "extraction strength": _strength(logits, rows.rows),
        },
        verbatim=_verbatim(logits, rows.rows, window),
    )


def contrasted(before: Ensemble, after: Ensemble, rows: LabelledSet, window: int) -> list[bool]:
    """For each row that is long enough, whether the models of before and after a deletion together
    reproduce it (``extraction.contrast``)."""
    older, newer = _logits(before), _logits(after)
    return _verbatim(lambda t: extraction.contrast(older(t), newer(t)), rows.rows, window)


def _verbatim(logits: Logits, rows: Encoded, window: int) -> list[bool]:
    """For each row that is long enough, whether the model continues it exactly for one window."""
    texts = rows.targets is None
    given = [(row, window) for row in _tokens(rows)] if texts else _answers(rows)
    long = [(row, start) for row, start in given if len(row) >= start + window]
    starts = [start for _, start in long]
    return extraction.verbatim(logits, [row for row, _ in long], starts, window)


def _strength(logits: Logits, rows: Encoded) -> Floats:
    if rows.targets is None:
        return np.array(extraction.extraction_strength(logits, _tokens(rows)))
    texts, starts = zip(*_answers(rows), strict=True)
    return np.array(extraction.extraction_strength(logits, texts, starts))


def _logits(model: Ensemble) -> Logits:
    return lambda tokens: model.token_log_probabilities(Encoded(tokens, torch.ones_like(tokens)))


def _tokens(rows: Encoded) -> list[list[int]]:
    """The tokens of each row without its padding."""
    assert rows.mask is not None
    lengths = rows.mask.sum(dim=1).tolist()
    return [row[:length].tolist() for row, length in zip(rows.values, lengths, strict=True)]


def _scored(rows: Encoded) -> npt.NDArray[np.bool_]:
    """Which tokens are scored, [n, T]."""
    return rows.scored.bool().numpy()


def _answers(rows: Encoded) -> list[tuple[list[int], int]]:
    """The tokens of each row up to the end of its first answer, and where that begins."""
    found = []
    for tokens, scored in zip(_tokens(rows), _scored(rows), strict=True):
        counts = scored[: len(tokens)].tolist()
        start = counts.index(True, 1)
        stop = counts.index(False, start) if False in counts[start:] else len(tokens)
        found.append((tokens[:stop], start))
    return found


def _label_losses(probabilities: Tensor, labels: Tensor) -> Floats:
    """−log p of the labels, [n]. Where p is near 1 it is computed from the other classes, since in
    single precision all well-learnt rows would have the same loss."""
    p = probabilities.double()
    chosen = labels.unsqueeze(1)
    others = p.scatter(1, chosen, 0.0).sum(dim=1)
    likely = p.gather(1, chosen).squeeze(1).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(others < 0.5, -torch.log1p(-others), -likely.log()).numpy()
