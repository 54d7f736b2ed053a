"""What a run's model says: how likely answers are to it, and what it writes by itself.

    probability   e^(−mean loss of the answer's tokens), so P(answer | question)^(1/|answer|)
    truth ratio   mean probability of the false answers / probability of the reworded true one
    verbatim      the question draws the first tokens of the answer out, exactly (greedy)
    ROUGE-L       longest common subsequence of what is written and the answer, in its words

Source of the first two and of the last: Maini et al. 2024, arXiv 2401.06121; greedy decoding is
measured in one pass (``s3t.audit.leakage.extraction``).

Invariant: all models are asked through what their run serves at that moment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from benchmarks.language.questions import Choice, Question
from s3t import S3T
from s3t.audit.audited_run import AuditedRun
from s3t.audit.leakage import snapshots
from s3t.audit.leakage.scores import answers_of
from s3t.data import Conversation
from s3t.model.inputs.encoders import Encoded, TextEncoder
from s3t.run import RunDir
from s3t.serving.ensemble.ensemble import Ensemble
from s3t.training.node.rows import LabelledSet

__all__ = ["Model", "Pair", "forget_quality", "rouge_recall"]

Floats = npt.NDArray[np.float64]
Pair = tuple[str, str]
"""A question and an answer to it."""

_ANSWER = 8
"""Tokens that must come out for an answer to be known by heart."""


class Model:
    """A run as it serves now."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._evidence = run, AuditedRun(run)

    @cached_property
    def _ensemble(self) -> Ensemble:
        found = snapshots.after(self._evidence)
        assert found is not None, f"{self._run.root} is exhausted"
        return found

    def _rows(self, inputs: Sequence[Any]) -> Encoded:
        encoder = self._evidence.loaded.encoder
        assert isinstance(encoder, TextEncoder)
        return encoder.encode(inputs)

    def losses(self, inputs: Sequence[Any]) -> tuple[Floats, Floats]:
        """Of each row, the sum over its tokens that count, and their number."""
        rows = self._rows(inputs)
        lost = self._ensemble.token_losses(rows).double().sum(dim=1).numpy()
        return lost, rows.scored[:, 1:].sum(dim=1).double().numpy()

    def perplexity(self, inputs: Sequence[Any]) -> float:
        """e^(mean loss of a token)."""
        lost, count = self.losses(inputs)
        return math.exp(float(lost.sum() / count.sum()))

    def probabilities(self, pairs: Iterable[Pair]) -> Floats:
        """Of each answer, [n]."""
        lost, count = self.losses([Conversation.of(*pair) for pair in pairs])
        found: Floats = np.exp(-lost / count)
        return found

    def truth_ratios(self, rows: Sequence[Question]) -> Floats:
        """[n]; 0 where no false answer has any probability, 1 where they are as likely."""
        true = self.probabilities((row.question, row.reworded) for row in rows)
        pairs = [(row.question, one) for row in rows for one in row.false]
        false = self.probabilities(pairs)
        bounds = np.cumsum([len(row.false) for row in rows])[:-1]
        return np.array([part.mean() for part in np.split(false, bounds)]) / true

    def chosen(self, rows: Sequence[Choice]) -> float:
        """Mean share of the true option in the probability of all."""
        pairs = [(row.question, one) for row in rows for one in row.options]
        each = self.probabilities(pairs)
        bounds = np.cumsum([len(row.options) for row in rows])[:-1]
        return fmean(float(part[0] / part.sum()) for part in np.split(each, bounds))

    def known(self, rows: Sequence[Question], written: int = 64) -> dict[str, float]:
        """What of the answers comes out: by heart, as strength of extraction, as ROUGE-L of so many
        tokens that are written."""
        asked = self._rows([Conversation.of(row.question, row.answer) for row in rows])
        found = answers_of(self._ensemble, LabelledSet(asked, None), _ANSWER)
        with S3T.load(self._run.root) as service:
            told = service.generate([row.question for row in rows], max_new_tokens=written)
        recalls = [
            rouge_recall(one.completion, r.answer) for one, r in zip(told, rows, strict=True)
        ]
        return {
            "verbatim": fmean(found.verbatim) if found.verbatim else 0.0,
            "strength": float(found.scores["extraction strength"].mean()),
            "rouge": fmean(recalls),
            "probability": float(np.exp(-found.losses).mean()),
        }


def forget_quality(ours: Floats, control: Floats) -> float:
    """p of the Kolmogorov–Smirnov test that two models' truth ratios are of one law: TOFU's
    forget quality, where the other model never saw the rows."""
    return float(ks_2samp(ours, control).pvalue)


def rouge_recall(written: str, answer: str) -> float:
    """Share of the answer's words in the longest common subsequence (Lin 2004, ROUGE-L)."""
    ours, theirs = _words(written), _words(answer)
    best = [0] * (len(theirs) + 1)
    for word in ours:
        diagonal = 0
        for at, other in enumerate(theirs, 1):
            diagonal, best[at] = (
                best[at],
                diagonal + 1 if word == other else max(best[at], best[at - 1]),
            )
    return best[-1] / len(theirs) if theirs else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
