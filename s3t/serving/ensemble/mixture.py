"""Weights of the ensemble's members and of the base, fitted on public validation rows.

    answers are averaged (``fit``):

    log probabilities of members and base ─┬─ expectation maximisation ─► mixture: Σ w·p
    on rows that no member has learnt      └─ one coefficient c         ─► product: base + c·mean
                                                                                (member − base)
                         the likelier of the two, rounded ─► at least the base's likelihood? ─► it
                                                                         └─ no: the base alone

    adapters are averaged (``fit_merged``):

    log probabilities of base + c · mean adapter, for a few c ─► the likeliest c ─► the same floor

A term is a row of a classifier, or a scored token of a language model.

Prior: one pseudo-row for each part at the uniform weights (Dirichlet, all parameters 2). With many
members and few rows it keeps a member that was lucky on them from taking all; with 10⁵ tokens it
moves no weight by more than 10⁻³. No weight is cut to zero but by rounding (soft weights).

Invariants: nothing here reads private data. Rounded weights sum to 1 exactly. What is returned has
at least the base's likelihood on these terms, less ``_SLACK`` a term, if the base is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from s3t.errors import InputError

__all__ = ["DIGITS", "ROUNDS", "Mixture", "fit", "fit_merged"]

DIGITS = 4
"""Decimals of the weights and of the coefficient."""

ROUNDS = 100
"""Rounds of expectation maximisation, at most."""

_UNITS = 10**DIGITS
_CONVERGED = 1e-5
"""Nats a term by which more rounds could still raise the objective, at most."""
_SLACK = 1e-6
"""Nats a term that rounding may cost against the base."""
_STEP, _FEW = 8, 2**14
"""Of more terms than ``_FEW`` three quarters of the rounds see one in ``_STEP``, for a start."""
_BLOCK = 2**15
"""Terms of one product: as many as stay in the processor's cache."""
_GOLDEN, _NARROW = (5**0.5 - 1) / 2, 0.05
"""Golden section, and the width at which the search for the coefficient of adapters ends."""
_LARGEST = 2.0
"""Of the coefficient c: beyond it, differences would be drawn out by more than their own size."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What the members and the base count for in an answer.

    Attributes:
        method: ``mean-probabilities``, ``mean-logits`` or ``mean-adapters``, by which they are put
            together.
        members: weights, in the order in which the members were given.
        base: the base's weight; 0 without one. All weights sum to 1.
        coefficient: c, if the answer is base + c · mean of the members' differences to it: then
            each of S members has weight c / S, and the base 1 − c, which may be below 0. Always of
            ``mean-adapters``, where the difference to the base is the adapter; without a head of
            the base its weight is 0.
        terms: rows or tokens on which the weights were fitted.
        log_likelihood: of these terms, nats a term; of tokens under ``mean-logits`` a lower bound.
        base_log_likelihood: of the base alone; None without one.
        accuracy, base_accuracy: shares of these rows that are classified right; None for tokens.
    """

    method: str
    members: tuple[float, ...]
    base: float
    coefficient: float | None
    terms: int
    log_likelihood: float
    base_log_likelihood: float | None
    accuracy: float | None = None
    base_accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"members": list(self.members)}


def fit(
    members: Tensor, base: Tensor | None, labels: Tensor | None, method: str = "mean-probabilities"
) -> Mixture:
    """Fit the weights of an ensemble on public rows.

    Args:
        members: log probabilities of all classes, [S, n, C], or of the tokens, [S, n].
        base: those of the base, [n, C] or [n]; None if it has no head.
        labels: right classes, [n]; None for tokens.
        method: ``mean-probabilities`` or ``mean-logits``, as ``aggregation.method`` says.

    Raises:
        InputError: there is nothing to fit on, shapes differ, or a number is not finite.
    """
    _check(members, base, labels)
    parts = members if base is None else torch.cat([members, base[None]])
    parts = parts.double()  # [K, n, C] or [K, n]
    terms = _right(parts, labels)  # [K, n]
    names = [_named(method, _rounded(_maximised(terms)), base is not None)]
    if base is not None and labels is not None:
        names.append(_product(len(members), _coefficient(parts, labels)))
    found = [_scored(one, parts, labels) for one in names]
    best = max(found, key=lambda one: one.log_likelihood)
    return best if _holds_floor(best) else _base_alone(len(members), parts[-1], labels)


def fit_merged(
    said: Callable[[Mixture], Tensor], members: int, base: Tensor | None, labels: Tensor | None
) -> Mixture:
    """Fit the coefficient of averaged adapters on public rows: a search by golden section.

    Args:
        said: from weights to the log probabilities of what they serve: of all classes, [n, C], or
            of the tokens, [n]. It is asked about ten times.
        members: S, how many adapters are averaged.
        base, labels: as in ``fit``.

    Raises:
        InputError: as ``fit``.
    """
    found: dict[float, Mixture] = {}

    def likelihood(coefficient: float) -> float:
        coefficient = round(coefficient, 2)
        if coefficient not in found:
            one = _averaged(members, coefficient, base is not None)
            answer = said(one)
            _check(answer[None], base, labels)
            found[coefficient] = _measured(one, answer.double(), base, labels)
        return found[coefficient].log_likelihood

    likelihood(1.0)
    low, high = 0.0, _LARGEST
    while high - low > _NARROW:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if likelihood(left) >= likelihood(right):
            high = right
        else:
            low = left
    best = max(found.values(), key=lambda one: one.log_likelihood)
    if base is None or _holds_floor(best):
        return best
    return _base_alone(members, base.double(), labels)


def _holds_floor(one: Mixture) -> bool:
    """Whether it is as likely as the base, if that is known."""
    floor = one.base_log_likelihood
    return floor is None or one.log_likelihood >= floor - _SLACK


def _check(members: Tensor, base: Tensor | None, labels: Tensor | None) -> None:
    shape = members.shape[1:]
    if not len(members) or not members.numel() or len(shape) != (1 if labels is None else 2):
        raise InputError(f"weights cannot be fitted on log probabilities {list(members.shape)}")
    rows = shape[0] if labels is None else len(labels)
    if rows != shape[0] or (base is not None and base.shape != shape):
        raise InputError("members, base and labels are of different public rows")
    if not all(bool(torch.isfinite(one).all()) for one in (members, base) if one is not None):
        raise InputError("a log probability of public rows is not finite")


def _right(parts: Tensor, labels: Tensor | None) -> Tensor:
    """Log probability of the label, or of the token, [K, n] of [K, n, C] or [K, n]."""
    if labels is None:
        return parts
    return parts.gather(2, labels.expand(len(parts), -1)[..., None]).squeeze(2)


# ── mixture ──────────────────────────────────────────────────────────────────────────────────────


def _maximised(terms: Tensor) -> list[float]:
    """Weights [K] that maximise the likelihood of the terms [K, n] and the prior."""
    count, size = terms.shape
    # of a term all parts may be divided by the same number; float32 halves what is read
    chances = (terms - terms.amax(dim=0)).exp().float()
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    if size <= _FEW:
        return _climbed(chances, weights, ROUNDS).tolist()
    last = ROUNDS // 4
    weights = _climbed(chances[:, ::_STEP].contiguous(), weights, ROUNDS - last)
    return _climbed(chances, weights, last).tolist()


def _climbed(chances: Tensor, weights: Tensor, rounds: int) -> Tensor:
    """Weights after rounds of expectation maximisation, fewer if it has converged.

    The objective is concave, and ``gain`` its gradient but for a factor. So the objective is less
    than max(gain) − 1 below its maximum.
    """
    count, size = chances.shape
    blocks = [block.contiguous() for block in chances.split(_BLOCK, dim=1)]
    for _ in range(rounds):
        shares, own = torch.zeros_like(weights), weights.float()
        for block in blocks:
            shares += block @ (own @ block).reciprocal()
        gain = (shares + 1 / weights) / (size + count)
        weights = weights * gain
        if float(gain.max()) - 1 < _CONVERGED:
            break
    return weights / weights.sum()


def _rounded(weights: list[float]) -> tuple[float, ...]:
    """Weights in whole units that sum to 1: what is left over goes to the largest remainders."""
    units = [int(weight * _UNITS) for weight in weights]
    by_rest = sorted(range(len(units)), key=lambda at: (units[at] - weights[at] * _UNITS, at))
    for at in by_rest[: _UNITS - sum(units)]:
        units[at] += 1
    return tuple(unit / _UNITS for unit in units)


# ── product ──────────────────────────────────────────────────────────────────────────────────────


def _coefficient(parts: Tensor, labels: Tensor) -> float:
    """c that maximises the likelihood of softmax(base + c · mean difference), which is concave in
    it: the zero of the derivative, by bisection."""
    base, rows = parts[-1], torch.arange(len(labels))
    delta = parts[:-1].mean(dim=0) - base  # [n, C]
    right = delta[rows, labels]
    low, high = 0.0, _LARGEST
    while high - low > 0.5 / _UNITS:
        middle = (low + high) / 2
        expected = ((base + middle * delta).softmax(dim=1) * delta).sum(dim=1)
        if float((right - expected).sum()) > 0:
            low = middle
        else:
            high = middle
    return round(low, DIGITS)


# ── what is served ───────────────────────────────────────────────────────────────────────────────


def _named(method: str, weights: tuple[float, ...], based: bool) -> Mixture:
    """A mixture of members, and of the base as the last part if there is one; not scored yet."""
    members, base = (weights[:-1], weights[-1]) if based else (weights, 0.0)
    return Mixture(method, members, base, None, 0, 0.0, None)


def _product(members: int, coefficient: float) -> Mixture:
    base = round(1 - coefficient, DIGITS)
    each = (coefficient / members,) * members
    return Mixture("mean-logits", each, base, coefficient, 0, 0.0, None)


def _averaged(members: int, coefficient: float, based: bool) -> Mixture:
    """Adapters averaged and multiplied by a coefficient; not scored yet."""
    base = round(1 - coefficient, DIGITS) if based else 0.0
    each = (coefficient / members,) * members
    return Mixture("mean-adapters", each, base, coefficient, 0, 0.0, None)


def _base_alone(members: int, base: Tensor, labels: Tensor | None) -> Mixture:
    """All weight on the base, [n, C] or [n]."""
    alone = _named("mean-probabilities", (0.0,) * members + (1.0,), True)
    return _measured(alone, base, base, labels)


def _scored(one: Mixture, parts: Tensor, labels: Tensor | None) -> Mixture:
    """The same with its likelihood and accuracy, and the base's, computed in float64."""
    based = len(parts) > len(one.members)
    weights = torch.tensor([*one.members, one.base][: len(parts)], dtype=torch.float64)
    answer = _pooled(one.method, weights, parts)
    return _measured(one, answer, parts[-1] if based else None, labels)


def _measured(one: Mixture, answer: Tensor, base: Tensor | None, labels: Tensor | None) -> Mixture:
    """The same with the figures of its answer and of the base, [n, C] or [n]."""
    found = replace(one, terms=len(answer), log_likelihood=_likelihood(answer, labels))
    if labels is not None:
        found = replace(found, accuracy=_accuracy(answer, labels))
    if base is None:
        return found
    found = replace(found, base_log_likelihood=_likelihood(base.double(), labels))
    return found if labels is None else replace(found, base_accuracy=_accuracy(base, labels))


def _likelihood(answer: Tensor, labels: Tensor | None) -> float:
    return float(_right(answer[None], labels).mean())


def _accuracy(answer: Tensor, labels: Tensor) -> float:
    return float((answer.argmax(dim=1) == labels).double().mean())


def _pooled(method: str, weights: Tensor, parts: Tensor) -> Tensor:
    """Log probabilities of the answer, [n, C] or [n]; of tokens under ``mean-logits`` a bound from
    below, since what the pool gives all tokens together is at most 1."""
    if method == "mean-probabilities":
        peak = parts.amax(dim=0)
        mixed: Tensor = torch.tensordot(weights, (parts - peak).exp(), 1).log() + peak
        return mixed
    pooled: Tensor = torch.tensordot(weights, parts, 1)
    return pooled.log_softmax(dim=1) if parts.ndim == 3 else pooled
