"""Membership inference: scores of samples, and how well they separate members from others.

                                        others ▁▂▅█▅▂▁
    losses, token probabilities ─► score       members ▁▂▅█▅▂▁     higher: more likely a member
                                        ───────────────┬────►
                                                       └ threshold: at most 1 % of others beyond it

    auc   probability that a member scores higher than another, ties counted half; 0.5 is chance
    tpr   fraction of members beyond the threshold (Carlini et al. 2022, arXiv 2112.03570)

Scores count as independent draws. If a person has several samples, give one score a person (the
mean), since otherwise the intervals are too narrow.

Invariant: no interval has width zero; few samples, ties and perfect separation make it wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from s3t.audit.leakage.extraction import rate
from s3t.errors import InputError

__all__ = [
    "Attack",
    "attack",
    "loss_scores",
    "min_k",
    "min_k_plus_plus",
    "reference_scores",
    "two_snapshot_scores",
]

Floats = npt.NDArray[np.float64]
Scores = Sequence[float] | Floats

_OTHERS_PER_ALARM = 100
"""``tpr`` is at a false positive rate of 1 %: one false alarm for so many others."""

_LEAST_DEVIATION = 1e-3
"""With a smaller deviation the model is certain of one token, and the rest is mostly rounding."""


@dataclass(frozen=True, slots=True)
class Attack:
    """How well one attack separates members from others.

    Attributes:
        name: name of the attack.
        members, others: numbers of samples scored.
        auc, auc_low, auc_high: area under the ROC curve, and its interval.
        tpr, tpr_low, tpr_high: true positive rate at a false positive rate of at most 1 %, and its
            interval. With fewer than 100 others no false alarm is allowed at all.
    """

    name: str
    members: int
    others: int
    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float

    @property
    def tpr_by_chance(self) -> float:
        """The expected ``tpr`` of scores without information: above 1 % if there are few others.

        The threshold is the (a + 1)-th highest of n others, a of which may be false alarms. Another
        draw of the same law lies beyond it with probability (a + 1) / (n + 1).
        """
        return (_allowed_alarms(self.others) + 1) / (self.others + 1)

    def to_dict(self) -> dict[str, object]:
        """All figures, by name, for JSON."""
        return {**asdict(self), "tpr_by_chance": self.tpr_by_chance}


def attack(
    name: str,
    members: Scores,
    others: Scores,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Attack:
    """AUC and TPR at 1 % FPR of the scores of an attack, with confidence intervals.

    Args:
        name: name of the attack, for the report.
        members: scores of samples that were, or may have been, trained on.
        others: scores of samples that were not, from a distribution as near as possible.
        confidence: confidence of both intervals, between 0 and 1.
        resamples: number of resamples of the bootstrap.
        seed: seed of the bootstrap.

    Raises:
        InputError: fewer than two members or others, a score that is not finite, or an impossible
            confidence or number of resamples.
    """
    inside, outside = _sides(name, members, others)
    if not 0 < confidence < 1 or resamples < 1:
        raise InputError(
            f"{name}: confidence {confidence} and {resamples} resamples: use a confidence between "
            "0 and 1, and at least 1 resample"
        )
    auc, auc_low, auc_high = _area(inside, outside, confidence)
    tpr, tpr_low, tpr_high = _hits(inside, outside, confidence, resamples, seed)
    return Attack(name, len(inside), len(outside), auc, auc_low, auc_high, tpr, tpr_low, tpr_high)


def _sides(name: str, members: Scores, others: Scores) -> tuple[Floats, Floats]:
    """Scores of members and of others, in order, so that not even the last bit depends on how the
    samples were listed."""
    inside = np.sort(_finite(members, f"{name}: members"))
    outside = np.sort(_finite(others, f"{name}: others"))
    if min(len(inside), len(outside)) < 2:
        raise InputError(
            f"{name}: {len(inside)} members and {len(outside)} others: an attack is weighed on at "
            "least 2 of each"
        )
    return inside, outside


def loss_scores(losses: Scores) -> Floats:
    """Minus the loss: what was trained on is fitted better (Yeom et al. 2018, arXiv 1709.01604).

    Args:
        losses: [n], per sample; for texts the mean over the tokens.
    """
    return -_finite(losses, "losses")


def reference_scores(losses: Scores, reference_losses: Scores) -> Floats:
    """How much better the model fits a sample than a reference does that never saw it.

    What is easy for everybody no longer passes for a member. This is the difficulty calibration of
    Watson et al. (2022, arXiv 2111.08440), and for one reference what the offline attack of
    Carlini et al. (2022, arXiv 2112.03570) compares.

    Args:
        losses: [n], of the model under attack.
        reference_losses: [n], of the reference; a mean over several is a better one.
    """
    return _difference(reference_losses, losses, "reference losses", "losses")


def two_snapshot_scores(before: Scores, after: Scores) -> Floats:
    """How much the loss rose from the model before a deletion to the one after it.

    For an attacker who holds both. It asks which samples were *deleted*, so the members are those,
    and an exact deletion does not lower it: only purging the older model does. The loss form of
    the posterior differences of Chen et al. (2021, arXiv 2005.02205), and per sample what Wu et
    al. (2025, arXiv 2505.24379) contrast per token (``extraction.contrast``).

    Args:
        before: [n], losses of the model before.
        after: [n], losses of the model after.
    """
    return _difference(after, before, "losses after", "losses before")


def min_k(token_log_probabilities: Sequence[Scores], share: float = 0.2) -> Floats:
    """Min-K % Prob: mean log probability of the least likely tokens.

    A text that was not trained on holds a few tokens that surprise the model (Shi et al. 2024,
    arXiv 2310.16789).

    Args:
        token_log_probabilities: per text, log p of each of its tokens, of any number from 1.
        share: of the tokens that count, rounded down, at least one.

    Returns:
        [n], one score a text.
    """
    rows = [_finite(row, "log probabilities of a text") for row in token_log_probabilities]
    return np.array([_lowest(row, share) for row in rows])


def min_k_plus_plus(
    token_log_probabilities: Sequence[Scores],
    means: Sequence[Scores],
    deviations: Sequence[Scores],
    share: float = 0.2,
) -> Floats:
    """Min-K %++: as ``min_k``, each log p set against the model's own next-token distribution.

    (log p − μ) / σ, where μ and σ are mean and standard deviation of log p(z) for z drawn from the
    model's distribution at that place: training makes a token a mode of it (Zhang et al. 2024,
    arXiv 2404.02936). A σ below 1e-3 is taken for 1e-3, as open-unlearning does; the score of a
    token that is certain then is 0, which is also its limit.

    Args:
        token_log_probabilities, means, deviations: per text, for each of its tokens
            (``extraction.token_statistics``).
        share: as ``min_k``.
    """
    texts = len(token_log_probabilities), len(means), len(deviations)
    if len(set(texts)) > 1:
        raise InputError(
            f"log probabilities of {texts[0]} texts, means of {texts[1]}, deviations of "
            f"{texts[2]}: give all three for each"
        )
    scores = []
    for row, mean, deviation in zip(token_log_probabilities, means, deviations, strict=True):
        above = _difference(row, mean, "log probabilities of a text", "means")
        spread = _finite(deviation, "deviations of a text")
        if len(spread) != len(above):
            raise InputError(f"{len(above)} log probabilities, but {len(spread)} deviations")
        scores.append(_lowest(above / np.maximum(spread, _LEAST_DEVIATION), share))
    return np.array(scores)


def _area(inside: Floats, outside: Floats, confidence: float) -> tuple[float, float, float]:
    """AUC and its interval, of scores in order.

    The interval is the wider, on either side, of two. One is DeLong's, on the logit scale: it holds
    for any law of scores, but has no width where members and others hardly overlap. The other
    inverts a normal test with the variance of Hanley and McNeil at the tested value: never
    degenerate, and the only one where the AUC is 0 or 1 or all scores are tied. In simulations of
    normal and of skewed scores, 8 to 200 a side and AUC 0.5 to 0.98, it held the true AUC in 94 to
    99 % of the draws at 95 %; DeLong's alone fell to 81 %.

    Sources: DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837); Newcombe 2006, method 5
    (Statistics in Medicine 25:559).
    """
    m, n = len(inside), len(outside)
    below, above = _twice_beaten(inside, outside), 2 * m - _twice_beaten(outside, inside)
    auc = int(below.sum()) / (2 * m * n)
    z = _quantile(confidence)
    low = _tested_low(auc, m, n, z)
    high = 1 - _tested_low(1 - auc, m, n, z)
    # DeLong: the AUC is a mean of what each member, and of what each other, adds to it
    variance = float(np.var(below / (2 * n), ddof=1) / m + np.var(above / (2 * m), ddof=1) / n)
    if variance > 0 and 0 < auc < 1:
        middle, reach = math.log(auc / (1 - auc)), z * math.sqrt(variance) / (auc * (1 - auc))
        low, high = min(low, _expit(middle - reach)), max(high, _expit(middle + reach))
    return auc, low, high


def _twice_beaten(scores: Floats, opponents: Floats) -> npt.NDArray[np.int64]:
    """For each score, twice the number of opponents below it, plus those tied with it."""
    below, up_to = (np.searchsorted(opponents, scores, side) for side in ("left", "right"))
    return np.add(below, up_to, dtype=np.int64)


def _tested_low(auc: float, m: int, n: int, z: float) -> float:
    """The lowest AUC that a normal test does not reject (Newcombe 2006, method 5)."""
    extra = (m + n) / 2 - 1
    low, high = 0.0, auc
    for _ in range(60):
        tested = (low + high) / 2
        spread = 1 + extra * (1 - tested) / (2 - tested) + extra * tested / (1 + tested)
        if auc - tested > z * math.sqrt(tested * (1 - tested) * spread / (m * n)):
            low = tested
        else:
            high = tested
    return low


def _hits(
    inside: Floats, outside: Floats, confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """TPR and its interval, of scores in order.

    The interval is the wider of two: Clopper and Pearson's, for the threshold as found, and a
    percentile bootstrap over members and others alike, since the threshold is estimated too and
    often is the larger part of the doubt (alone, the first held the true TPR in as few as 48 % of
    the draws). From 400 others on it held it in 92 % or more, with 100 in 82 % or more: there the
    threshold is the second highest of them, and the interval too narrow.

    Source: Platt, Hanley and Yang 2000 (Statistics in Medicine 19:313).
    """
    n, allowed = len(outside), _allowed_alarms(len(outside))
    found = rate((inside > outside[n - 1 - allowed]).tolist(), confidence=confidence)
    # A resampled threshold is one order statistic of n draws from the n others, so its place among
    # them is a Beta variate; the members beyond it are then binomial.
    draw = np.random.default_rng(seed)
    places = (n * draw.beta(n - allowed, allowed + 1, resamples)).astype(np.intp)
    thresholds = outside[np.minimum(places, n - 1)]
    beyond = 1 - np.searchsorted(inside, thresholds, "right") / len(inside)
    shares = draw.binomial(len(inside), beyond) / len(inside)
    low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return found.share, min(found.low, float(low)), max(found.high, float(high))


def _allowed_alarms(others: int) -> int:
    """How many others may lie beyond the threshold."""
    return others // _OTHERS_PER_ALARM


def _quantile(confidence: float) -> float:
    """How many standard deviations a normal interval of this confidence reaches."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def _expit(value: float) -> float:
    return math.exp(-np.logaddexp(0.0, -value))


def _lowest(values: Floats, share: float) -> float:
    """Mean of the lowest ``share`` of the values."""
    if not 0 < share <= 1:
        raise InputError(f"share {share}: use one above 0 and up to 1")
    if not len(values):
        raise InputError("a text without tokens has no score: leave it out")
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


def _difference(left: Scores, right: Scores, left_name: str, right_name: str) -> Floats:
    """left − right, of equal length."""
    first, second = _finite(left, left_name), _finite(right, right_name)
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} {left_name}, but {len(second)} {right_name}: give both for each sample"
        )
    return first - second


def _finite(values: Scores, what: str) -> Floats:
    """As one row of finite numbers."""
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1:
        raise InputError(f"{what}: shape {row.shape}, expected one row of numbers")
    wrong = np.flatnonzero(~np.isfinite(row))
    if len(wrong):
        raise InputError(
            f"{what}: {len(wrong)} of {len(row)} are no finite numbers, the first is "
            f"{row[wrong[0]]} at place {wrong[0]}"
        )
    return row
