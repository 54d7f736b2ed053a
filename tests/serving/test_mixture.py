"""Weights by expectation maximisation: against a grid, rounding, the floor, and the product."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from s3t.errors import InputError
from s3t.serving.ensemble.members import aggregate
from s3t.serving.ensemble.mixture import Mixture, fit, fit_merged


def spoken(members: int, rows: int, classes: int, skill: list[float], seed: int = 0) -> Any:
    """Log probabilities [members, rows, classes] of members of some skill, and right classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    logits = torch.randn((members, rows, classes), generator=generator)
    at = torch.arange(rows)
    for member, worth in enumerate(skill):
        logits[member, at, labels] += worth
    return logits.log_softmax(dim=2), labels


def objective(terms: Tensor, weights: list[float]) -> float:
    """Log likelihood of terms [K, n], and of one pseudo-row for each part."""
    each = torch.tensor(weights, dtype=torch.float64)
    mixed = (terms.double() + each.log()[:, None]).logsumexp(dim=0).sum()
    return float(mixed + each.log().sum())


def own_terms(parts: Tensor, labels: Tensor) -> Tensor:
    return parts.gather(2, labels.expand(len(parts), -1)[..., None]).squeeze(2)


@pytest.mark.parametrize("seed", range(3))
def test_em_finds_the_best_of_a_grid(seed: int) -> None:
    logs, labels = spoken(3, 60, 4, [0.5, 2.0, 1.0], seed)
    terms = own_terms(logs, labels)
    found = fit(terms, None, None)
    step = 0.02
    grid = [
        (a * step, b * step, 1 - (a + b) * step)
        for a, b in itertools.product(range(1, 49), repeat=2)
        if (a + b) * step < 0.99
    ]
    best = max(grid, key=lambda weights: objective(terms, list(weights)))
    assert objective(terms, list(found.members)) >= objective(terms, list(best)) - 1e-3
    assert all(abs(a - b) <= 0.05 for a, b in zip(found.members, best, strict=True))


def test_many_terms_are_fitted_as_few_are() -> None:
    logs, labels = spoken(3, 40_000, 4, [0.5, 2.0, 1.0])
    terms = own_terms(logs, labels)
    found = fit(terms, None, None)
    # the exact optimum has a gradient of at most one row a row: no part gains by more weight
    each = torch.tensor(found.members, dtype=torch.float64)
    mixed = (terms.double() + each.log()[:, None]).logsumexp(dim=0)
    gain = (terms.double() - mixed).exp().mean(dim=1)
    assert float(gain.max()) < 1 + 1e-3


@pytest.mark.parametrize("members", [1, 3, 7, 16])
def test_rounded_weights_sum_to_one_exactly(members: int) -> None:
    logs, labels = spoken(members, 50, 3, [1.0] * members, members)
    found = fit(own_terms(logs, labels), own_terms(logs, labels)[0], None)
    units = [round(weight * 10_000) for weight in (*found.members, found.base)]
    assert sum(units) == 10_000
    assert [unit / 10_000 for unit in units] == [*found.members, found.base]


@pytest.mark.parametrize("method", ["mean-probabilities", "mean-logits"])
@pytest.mark.parametrize("skill", [0.0, 1.0, 3.0])
def test_the_likelihood_is_that_of_what_is_served(method: str, skill: float) -> None:
    logs, labels = spoken(4, 80, 5, [skill] * 3 + [1.0])
    found = fit(logs[:3], logs[3], labels, method)
    weights = torch.tensor([*found.members, found.base])
    answer = aggregate(logs, weights, found.method)
    likelihood = answer[torch.arange(80), labels].double().log().mean()
    assert float(likelihood) == pytest.approx(found.log_likelihood, abs=1e-5)
    base = float(logs[3][torch.arange(80), labels].double().mean())
    assert found.base_log_likelihood == pytest.approx(base)
    assert found.log_likelihood >= base - 1e-6
    assert found.accuracy == float((answer.argmax(dim=1) == labels).double().mean())


def test_members_that_harm_leave_the_base_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    base = -torch.rand((2000,), generator=generator) - 0.01
    harm = base[None] - 1 - torch.rand((3, 2000), generator=generator)
    found = fit(harm, base, None)
    # the prior would give each member its pseudo-row, and rounding a ten-thousandth
    assert (found.members, found.base) == ((0.0, 0.0, 0.0), 1.0)
    assert found.log_likelihood == found.base_log_likelihood


def test_the_floor_is_that_of_the_base_whatever_comes() -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        terms = -torch.rand((4, 30), generator=generator) * 4 - 1e-4
        for method in ("mean-probabilities", "mean-logits"):
            found = fit(terms[:3], terms[3], None, method)
            assert found.base_log_likelihood is not None
            assert found.log_likelihood >= found.base_log_likelihood - 1e-6


def test_without_a_base_there_is_no_floor() -> None:
    logs, labels = spoken(2, 30, 3, [0.0, 0.0])
    found = fit(logs, None, labels)
    assert (found.base, found.base_log_likelihood, found.base_accuracy) == (0.0, None, None)
    assert sum(found.members) == pytest.approx(1) and found.coefficient is None


def test_a_pseudo_row_keeps_a_lucky_member_from_taking_all() -> None:
    terms = torch.full((4, 3), -2.0)
    terms[0] = -0.1  # three rows, and one member knows them all
    found = fit(terms, None, None)
    assert found.members[0] < 0.6 and min(found.members) > 0.1


def test_the_product_is_the_base_and_c_times_the_mean_difference() -> None:
    logs, labels = spoken(3, 200, 4, [0.4, 0.4, 0.0])
    found = fit(logs[:2], logs[2], labels)
    assert found.coefficient is not None and found.method == "mean-logits"
    assert found.base == pytest.approx(1 - found.coefficient)

    def likelihood(c: float) -> float:
        answer = (logs[2] + c * (logs[:2].mean(dim=0) - logs[2])).log_softmax(dim=1)
        return float(answer[torch.arange(200), labels].double().mean())

    assert found.log_likelihood == pytest.approx(likelihood(found.coefficient), abs=1e-5)
    best = max(likelihood(c / 200) for c in range(401))
    assert found.log_likelihood >= best - 1e-5


@pytest.mark.parametrize(
    ("members", "base", "labels", "expected"),
    [
        (torch.full((2, 5), -torch.inf), None, None, "not finite"),
        (torch.zeros(2, 5), torch.full((5,), torch.nan), None, "not finite"),
        (torch.zeros(2, 5), torch.zeros(4), None, "different public rows"),
        (torch.zeros(2, 5, 3), None, torch.zeros(4, dtype=torch.int64), "different public rows"),
        (torch.zeros(2, 5, 3), None, None, "cannot be fitted"),
        (torch.zeros(0, 5), None, None, "cannot be fitted"),
        (torch.zeros(2, 0), None, None, "cannot be fitted"),
    ],
)
def test_what_is_in_doubt_is_refused(
    members: Tensor, base: Tensor | None, labels: Tensor | None, expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        fit(members, base, labels)


def test_a_token_counts_more_for_a_member_that_is_sure() -> None:
    from s3t.serving.ensemble.members import mean_by_entropy

    logits = torch.zeros(2, 1, 1, 4)
    logits[0, 0, 0, 1] = 9.0  # sure of token 1; the other knows nothing
    weights = torch.tensor([0.25, 0.75])
    found = mean_by_entropy(logits, weights)
    assert float(found.exp().sum()) == pytest.approx(1)
    plain = aggregate(logits, weights, "mean-probabilities")
    assert float(found[0, 0, 1]) > float(plain[0, 0, 1])
    chances = logits.softmax(dim=3)
    entropy = -(chances * chances.log()).sum(dim=3)[:, 0, 0]
    own = weights * (-entropy).exp()
    expected = (chances * (own / own.sum()).view(2, 1, 1, 1)).sum(dim=0)
    assert torch.allclose(found.exp(), expected, atol=1e-6)


def test_a_mixture_is_read_as_it_is_told() -> None:
    from s3t.serving.weights import NoWeights, mixture_of

    logs, labels = spoken(3, 40, 4, [1.0, 2.0, 0.5])
    found = fit(logs[:2], logs[2], labels)
    values = found.to_dict()
    assert mixture_of(values, 2, True) == found
    bad: list[dict[str, Any]] = [
        {},
        values | {"members": [0.5]},
        values | {"members": [0.5, "x"]},
        values | {"base": found.base + 0.1},
        values | {"method": "vote"},
        values | {"members": [math.nan, 0.5]},
        values | {"more": 1},
    ]
    for one in bad:
        with pytest.raises(NoWeights):
            mixture_of(one, 2, True)
    with pytest.raises(NoWeights):
        mixture_of(values, 2, False)
    negative = Mixture("mean-probabilities", (1.5, -0.5), 0.0, None, 1, 0.0, None)
    with pytest.raises(NoWeights):
        mixture_of(negative.to_dict(), 2, True)


@pytest.mark.parametrize("best", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("based", [False, True])
def test_the_coefficient_of_a_mean_adapter_is_the_likeliest(best: float, based: bool) -> None:
    asked: list[float] = []

    def said(one: Mixture) -> Tensor:
        assert one.coefficient is not None and one.method == "mean-adapters"
        assert math.fsum(one.members) == pytest.approx(one.coefficient)
        assert one.base == pytest.approx(1 - one.coefficient if based else 0)
        asked.append(one.coefficient)
        return torch.full((7,), -1 - (one.coefficient - best) ** 2)

    found = fit_merged(said, 3, torch.full((7,), -1.5) if based else None, None)
    assert found.coefficient == pytest.approx(best, abs=0.03)
    assert 1.0 in asked and len(asked) == len({*asked}) <= 12
    assert found.terms == 7 and found.log_likelihood >= -1 - (1.0 - best) ** 2


def test_a_mean_adapter_below_the_base_does_not_serve() -> None:
    labels = torch.tensor([0, 1])
    base = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    found = fit_merged(lambda one: base.flip(1), 2, base, labels)
    assert found.base == 1 and not any(found.members)
    assert found.log_likelihood == found.base_log_likelihood and found.accuracy == 1
