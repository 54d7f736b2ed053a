"""Extraction: how much of a text a language model reproduces when it is prompted with the rest.

    row       t0 t1 t2 t3 t4 t5 t6 t7
    argmax       ✗  ✓  ✗  ✓  ✓  ✓  ✓     one pass, each place given the true tokens before it

    verbatim, prompt 4, answer 3   t4 t5 t6 all ✓: extracted
    the same of an answer from t3  the last 4 of 5: 4/5
    extraction strength            the last 4 of 7 follow from what is before them: 4/7

Greedy decoding reproduces a stretch of tokens if and only if each of them is the argmax given the
*true* tokens before it: until its first error, the decoded text is the true text. So one pass over
the true tokens decides for all prompt lengths at once, and nothing is generated.

Invariant: works with any function from tokens to logits that sees no later token: models of
transformers and peft, and ensembles. Rows of one pass have one length, so no mask is needed. torch
is loaded when a row is first measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from s3t.errors import InputError, named

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Logits",
    "Rate",
    "TokenStatistics",
    "contrast",
    "extraction_strength",
    "rate",
    "token_statistics",
    "verbatim",
]

Floats = npt.NDArray[np.float64]
Rows = Sequence[Sequence[int]]
Measure = TypeVar("Measure")

Logits = Callable[["Tensor"], "Tensor"]
"""From tokens [n, t], integers on the CPU, to next-token logits [n, t, V] on any device. Logits at
position i may depend on tokens 0 … i only."""

_TOKENS_PER_PASS = 2048
"""Maximum number of tokens whose logits are held at once: 400 MB for a vocabulary of 50,000."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate of hits, with its confidence interval.

    Attributes:
        hits, trials: counts.
        share: hits / trials.
        low, high: confidence interval of the true rate.
    """

    hits: int
    trials: int
    share: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """All figures, by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class TokenStatistics:
    """Statistics of the tokens of one row of t tokens; each [t − 1], since the first has no
    forecast.

    Attributes:
        log_probabilities: log p of each true token given those before it.
        means: mean of log p(z), z drawn from the model's distribution at that position: minus its
            entropy.
        deviations: standard deviation of log p(z).
    """

    log_probabilities: Floats
    means: Floats
    deviations: Floats


def rate(hits: Sequence[bool], *, confidence: float = 0.95) -> Rate:
    """The rate of hits with the exact interval of Clopper and Pearson (1934, Biometrika 26:404).

    Args:
        hits: whether each trial was a hit; trials are independent.
        confidence: minimum confidence of the interval, for any true rate; between 0 and 1.

    Raises:
        InputError: no trials, or an impossible confidence.
    """
    from scipy.special import betaincinv

    trials, count = len(hits), sum(map(bool, hits))
    if not trials or not 0 < confidence < 1:
        raise InputError(
            f"{trials} trials, confidence {confidence}: a rate needs at least one trial and a "
            "confidence between 0 and 1"
        )
    tail = (1 - confidence) / 2
    low = float(betaincinv(count, trials - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, trials - count, 1 - tail)) if count < trials else 1.0
    return Rate(count, trials, count / trials, low, high)


def verbatim(logits: Logits, rows: Rows, prompt: int | Sequence[int], answer: int) -> list[bool]:
    """Whether greedy decoding continues the first ``prompt`` tokens of a row with its next
    ``answer``.

    TinyMem's measure (Sakarvadia et al. 2025, arXiv 2410.02159): all ``answer`` tokens must match.
    Tokens after the first ``prompt + answer`` are ignored.

    Args:
        logits: the model.
        rows: [n], each of at least ``prompt + answer`` tokens.
        prompt, answer: numbers of tokens, from 1; ``prompt`` may be given for each row.

    Returns:
        [n].

    Raises:
        InputError: a row is too short, a number is below 1, or the model's logits have another
            shape or are NaN.
    """
    starts = [prompt] * len(rows) if isinstance(prompt, int) else list(prompt)
    if min(starts, default=1) < 1 or answer < 1:
        raise InputError(f"prompt {prompt}, answer {answer}: use at least 1 token of each")
    least = [start + answer for start in starts]
    _refuse_shorter(rows, least, f"prompt {prompt} + answer {answer}")
    matches = _matches(logits, [row[:stop] for row, stop in zip(rows, least, strict=True)])
    return [all(row[start - 1 :]) for row, start in zip(matches, starts, strict=True)]


def extraction_strength(
    logits: Logits, rows: Rows, starts: Sequence[int] | None = None
) -> list[float]:
    """Extraction strength: how few tokens of a row must be given until the rest is reproduced.

    1 − (k − 1) / (t − 1) for a row of t tokens of which the first k draw all others out, k as small
    as possible: 1 if the first token is enough, 0 if not even the last one follows from the others.
    Carlini et al. 2021 (arXiv 2012.07805), in the form of Wang et al. 2024 (arXiv 2406.09179) and
    open-unlearning, which never falls to 0: there a row whose last token is missed counts as one
    whose last token is found.

    Where the first s tokens are a prompt, which is given in any case, those after it count alone:
    1 if the prompt draws all of them out.

    Args:
        logits: the model.
        rows: [n], each of at least 2 tokens.
        starts: [n], s of each row, from 1 to its tokens − 1; default: 1.

    Returns:
        [n], from 0 to 1.

    Raises:
        InputError: as ``verbatim``.
    """
    starts = [1] * len(rows) if starts is None else starts
    least = [start + 1 for start in starts]
    _refuse_shorter(rows, least, "one to give and one to extract")
    asked = [m[s - 1 :] for m, s in zip(_matches(logits, rows), starts, strict=True)]
    return [_matches_at_end(row) / len(row) for row in asked]


def token_statistics(logits: Logits, rows: Rows) -> list[TokenStatistics]:
    """Statistics of rows for the scores ``membership.min_k`` and ``min_k_plus_plus``.

    Minus the mean of the log probabilities is a row's loss, in nats.

    Args:
        logits: the model.
        rows: [n], each of at least 2 tokens.

    Raises:
        InputError: as ``verbatim``.
    """
    _refuse_shorter(rows, [2] * len(rows), "one to give and one to forecast")
    return _measured(logits, rows, _statistics)


def contrast(
    before_logits: Tensor, after_logits: Tensor, strength: float = 2.0, margin: float = 5.0
) -> Tensor:
    """Logits of the two-snapshot attack, which favour what only the model before would say.

    log p_after + strength · (log p_before − log p_after), and −inf for tokens that were less likely
    before than the likeliest one by a factor of e^margin or more: there the difference of two small
    probabilities is noise. Strength 0 is the model after, 1 the one before, above 1 exaggerates
    what the deletion took away. Wu et al. 2025 (arXiv 2505.24379), reversed model guidance with
    token filter; the defaults are those of their published script.

    Measure a run with ``lambda tokens: contrast(before(tokens), after(tokens))`` as its logits.

    Args:
        before_logits, after_logits: [..., V].
        strength: of the guidance.
        margin: of the filter, above 0; inf for none.

    Returns:
        [..., V], up to a constant a place.
    """
    if before_logits.shape != after_logits.shape or not margin > 0:
        raise InputError(
            f"logits of shapes {tuple(before_logits.shape)} and {tuple(after_logits.shape)}, "
            f"margin {margin}: give equal shapes and a margin above 0"
        )
    before = before_logits.float().log_softmax(-1)
    after = after_logits.float().log_softmax(-1)
    guided = after + strength * (before - after)
    unlikely = before <= before.amax(-1, keepdim=True) - margin
    return guided.masked_fill(unlikely, float("-inf"))


def _matches(logits: Logits, rows: Rows) -> list[list[bool]]:
    """For each row of t tokens, [t − 1], whether each next token is the model's first choice."""

    def measure(predicted: Tensor, truth: Tensor) -> list[list[bool]]:
        matches: list[list[bool]] = (predicted.argmax(-1).cpu() == truth).tolist()
        return matches

    return _measured(logits, rows, measure)


def _matches_at_end(matches: Sequence[bool]) -> int:
    """Length of the run of matches that the row ends with."""
    return next((run for run, match in enumerate(reversed(matches)) if not match), len(matches))


def _statistics(predicted: Tensor, truth: Tensor) -> Iterator[TokenStatistics]:
    """Row by row, in double precision: probabilities of a token not chosen are tiny."""
    for row, tokens in zip(predicted, truth.to(predicted.device), strict=True):
        log_p = row.double().log_softmax(-1)  # [t - 1, V]
        p = log_p.exp()
        possible = p > 0  # elsewhere log p may be −inf, and counts for nothing
        mean = (p * log_p.where(possible, 0)).sum(-1)
        distance = (log_p - mean[:, None]).where(possible, 0)
        deviation = (p * distance.square()).sum(-1).sqrt()
        chosen = log_p.gather(-1, tokens[:, None]).squeeze(-1)
        yield TokenStatistics(*(part.cpu().numpy() for part in (chosen, mean, deviation)))


def _measured(
    logits: Logits,
    rows: Rows,
    measure: Callable[[Tensor, Tensor], Iterable[Measure]],
) -> list[Measure]:
    """One measure a row, in the order of the rows.

    Args:
        measure: from logits [n, t − 1, V] and the tokens that follow [n, t − 1] to n measures.
    """
    import torch

    found: dict[int, Measure] = {}
    with torch.no_grad():
        for numbers in _passes(rows):
            tokens = torch.tensor([list(rows[number]) for number in numbers], dtype=torch.long)
            predicted = logits(tokens[:, :-1])
            _refuse_other_logits(predicted, tokens[:, :-1])
            found.update(zip(numbers, measure(predicted, tokens[:, 1:]), strict=True))
    return [found[number] for number in range(len(rows))]


def _passes(rows: Rows) -> Iterator[list[int]]:
    """Numbers of rows that go through the model together: those of one length."""
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(number)
    for length in sorted(by_length):
        together, numbers = max(1, _TOKENS_PER_PASS // length), by_length[length]
        for start in range(0, len(numbers), together):
            yield numbers[start : start + together]


def _refuse_shorter(rows: Rows, least: Sequence[int], why: str) -> None:
    """Refuse rows of fewer tokens than ``least`` says of each."""
    short = [
        f"row {number}: {len(row)}"
        for number, (row, count) in enumerate(zip(rows, least, strict=True))
        if len(row) < count
    ]
    if short:
        several = "the" if len({*least}) > 1 else str(least[0])
        raise InputError(
            f"{len(short)} of {len(rows)} rows have fewer than {several} tokens ({why}): "
            f"{named(short)}: leave them out"
        )


def _refuse_other_logits(predicted: Tensor, tokens: Tensor) -> None:
    """A model that gives anything else would be measured as one that has forgotten."""
    shape = tuple(predicted.shape)
    if len(shape) != 3 or shape[:2] != tuple(tokens.shape):
        raise InputError(
            f"logits of shape {shape} for tokens of shape {tuple(tokens.shape)}: expected one row "
            "of logits for each token"
        )
    if bool(predicted.isnan().any()):
        raise InputError("some logits are not numbers: the model's weights or the rows are broken")
