"""Attacks weighed against known answers, and their intervals against simulated truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from sklearn.metrics import roc_auc_score

from s3t.audit.leakage.membership import (
    Attack,
    attack,
    loss_scores,
    min_k,
    min_k_plus_plus,
    reference_scores,
    two_snapshot_scores,
)
from s3t.errors import InputError

Draw = np.random.Generator

SCORES = st.lists(st.integers(-6, 6), min_size=2, max_size=12)
"""Few different values, so that ties are common."""


def area(members: list[int], others: list[int]) -> float:
    """By its definition: pairs won, ties half."""
    won = sum((x > y) + (x == y) / 2 for x in members for y in others)
    return won / (len(members) * len(others))


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs_won(members: list[int], others: list[int]) -> None:
    found = attack("a", members, others, resamples=10)
    truth = [1] * len(members) + [0] * len(others)
    assert found.auc == pytest.approx(area(members, others), abs=1e-12)
    assert found.auc == pytest.approx(roc_auc_score(truth, members + others), abs=1e-12)


@given(SCORES, SCORES)
def test_exchanging_members_and_others_mirrors_the_auc(a: list[int], b: list[int]) -> None:
    one, other = attack("a", a, b, resamples=10), attack("a", b, a, resamples=10)
    assert one.auc == pytest.approx(1 - other.auc, abs=1e-12)
    assert one.auc_low == pytest.approx(1 - other.auc_high, abs=1e-9)
    assert one.auc_high == pytest.approx(1 - other.auc_low, abs=1e-9)


@pytest.mark.parametrize("rising", [math.exp, lambda score: score**3 + 7, lambda score: score / 9])
@given(members=SCORES, others=SCORES)
def test_only_the_order_of_scores_matters(
    rising: Callable[[float], float], members: list[int], others: list[int]
) -> None:
    moved = attack("a", [rising(x) for x in members], [rising(y) for y in others], seed=3)
    assert moved == attack("a", members[::-1], sorted(others), seed=3)


@given(SCORES, SCORES)
def test_intervals_hold_their_figure_and_have_a_width(a: list[int], b: list[int]) -> None:
    found = attack("a", a, b, resamples=50)
    assert 0 <= found.auc_low <= found.auc <= found.auc_high <= 1
    assert 0 <= found.tpr_low <= found.tpr <= found.tpr_high <= 1
    assert found.auc_high - found.auc_low > 0.01
    assert found.tpr_high - found.tpr_low > 0.01


# --- the interval of the AUC


def delong(x: np.ndarray, y: np.ndarray, z: float) -> tuple[float, float]:
    """On the logit scale, from the matrix of all pairs."""
    pairs = (x[:, None] > y) + (x[:, None] == y) / 2
    auc = pairs.mean()
    spread = np.sqrt(pairs.mean(1).var(ddof=1) / len(x) + pairs.mean(0).var(ddof=1) / len(y)) / (
        auc * (1 - auc)
    )
    low, high = (
        1 / (1 + np.exp(-(np.log(auc / (1 - auc)) + side * z * spread))) for side in (-1, 1)
    )
    return low, high


def newcombe(auc: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Newcombe's method 5 by root finding."""
    more = (m + n) / 2 - 1

    def short_of(theta: float, sign: int) -> float:
        bend = 1 + more * (1 - theta) / (2 - theta) + more * theta / (1 + theta)
        return sign * (auc - theta) - z * math.sqrt(theta * (1 - theta) * bend / (m * n))

    low = brentq(lambda t: short_of(t, 1), 0, auc) if auc > 0 else 0.0
    high = brentq(lambda t: short_of(t, -1), auc, 1) if auc < 1 else 1.0
    return low, high


@pytest.mark.parametrize(("m", "n", "shift"), [(5, 9, 0.0), (40, 30, 1.0), (12, 200, 2.0)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_interval_is_the_wider_of_delong_and_newcombe(
    m: int, n: int, shift: float, confidence: float
) -> None:
    draw = np.random.default_rng(m)
    x, y = draw.normal(shift, 1, m).round(1), draw.normal(0, 2, n).round(1)
    found = attack("a", x, y, confidence=confidence)
    z = ndtri((1 + confidence) / 2)
    first, second = delong(x, y, z), newcombe(found.auc, m, n, z)
    assert found.auc_low == pytest.approx(min(first[0], second[0]), abs=1e-9)
    assert found.auc_high == pytest.approx(max(first[1], second[1]), abs=1e-9)


def test_all_scores_tied_is_chance_with_an_interval_around_it() -> None:
    found = attack("tied", [1.0] * 30, [1.0] * 40)
    assert (found.auc, found.tpr) == (0.5, 0.0)
    assert found.auc_low == pytest.approx(1 - found.auc_high)
    assert 0.3 < found.auc_low < 0.4
    assert found.tpr_low == 0
    assert found.tpr_high == pytest.approx(0.1157, abs=1e-4), "none of 30, no tie counts as a hit"


@pytest.mark.parametrize("size", [2, 10, 100])
def test_perfect_separation_is_not_certainty(size: int) -> None:
    apart, reversed_ = (
        attack("apart", np.arange(size) + shift, np.arange(size) - shift) for shift in (size, -size)
    )
    assert (apart.auc, apart.auc_high, reversed_.auc, reversed_.auc_low) == (1, 1, 0, 0)
    assert apart.auc_low == pytest.approx(1 - reversed_.auc_high)
    # 1 − low falls about as 1/size: the rule of three would give 0.97 at 100
    assert {2: 0.2, 10: 0.75, 100: 0.96}[size] < apart.auc_low < 0.99


def normal(draw: Draw, auc: float, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return draw.normal(math.sqrt(2) * ndtri(auc), 1, m), draw.normal(0, 1, n)


def skewed(draw: Draw, auc: float, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return draw.exponential(auc / (1 - auc), m), draw.exponential(1, n)


@pytest.mark.parametrize(
    ("law", "auc", "m", "n"),
    [
        (normal, 0.7, 8, 8),
        pytest.param(normal, 0.5, 50, 50, marks=pytest.mark.heavy),
        pytest.param(skewed, 0.9, 20, 100, marks=pytest.mark.heavy),
        pytest.param(skewed, 0.98, 20, 100, marks=pytest.mark.heavy),
    ],
)
def test_interval_holds_the_true_auc_as_often_as_it_says(
    law: Callable[..., tuple[np.ndarray, np.ndarray]], auc: float, m: int, n: int
) -> None:
    draw, held, draws = np.random.default_rng(1), 0, 1000
    for _ in range(draws):
        found = attack("a", *law(draw, auc, m, n), resamples=1)
        held += found.auc_low <= auc <= found.auc_high
    assert 0.93 <= held / draws <= 0.99  # standard error 0.007


# --- the true positive rate


@given(SCORES, st.lists(st.integers(-6, 6), min_size=2, max_size=250))
def test_tpr_is_the_best_that_any_threshold_allows(members: list[int], others: list[int]) -> None:
    found = attack("a", members, others, resamples=5)
    allowed = [
        t for t in {*members, *others, 99} if sum(y >= t for y in others) <= 0.01 * len(others)
    ]
    assert found.tpr == max(sum(x >= t for x in members) for t in allowed) / len(members)


def test_a_tie_with_the_others_does_not_count_as_a_hit() -> None:
    others = [0.0] * 98 + [5.0, 5.0]  # a threshold of 5 would be a false alarm rate of 2 %
    assert attack("a", [5.0, 5.0, 6.0, 0.0], others).tpr == 0.25


def test_one_false_alarm_is_allowed_from_a_hundred_others() -> None:
    members = [98.5, 99.5, 1.0, 2.0]
    assert attack("a", members, list(range(99))).tpr == 0.5  # beyond 98
    assert attack("a", [*members[:2], 97.5, 2.0], list(range(99))).tpr == 0.5
    assert attack("a", members, list(range(100))).tpr == 0.5  # beyond 98, 99 being the one
    assert attack("a", [98.0, 99.5], list(range(100))).tpr == 0.5


@pytest.mark.parametrize(
    "others", [20, *(pytest.param(more, marks=pytest.mark.heavy) for more in (100, 250))]
)
def test_tpr_by_chance_is_what_blind_scores_reach(others: int) -> None:
    draw = np.random.default_rng(2)
    found = [
        attack("blind", draw.random(40), draw.random(others), resamples=1) for _ in range(1500)
    ]
    expected = found[0].tpr_by_chance
    assert expected == pytest.approx({20: 1 / 21, 100: 2 / 101, 250: 3 / 251}[others])
    assert np.mean([one.tpr for one in found]) == pytest.approx(expected, rel=0.12)


def test_interval_of_tpr_takes_the_threshold_for_estimated() -> None:
    draw = np.random.default_rng(4)
    x, y = draw.normal(2, 1, 300), draw.normal(0, 1, 500)
    found = attack("a", x, y, resamples=20_000)
    shares = []
    for _ in range(4000):  # the bootstrap written out
        ours, theirs = draw.choice(x, 300), np.sort(draw.choice(y, 500))
        shares.append(np.mean(ours > theirs[-6]))
    assert [found.tpr_low, found.tpr_high] == pytest.approx(
        np.quantile(shares, [0.025, 0.975]), abs=0.02
    )


@pytest.mark.parametrize(("confidence", "reached"), [(0.95, True), (0.90, False)])
def test_resampled_threshold_has_its_exact_law(confidence: float, reached: bool) -> None:
    # all members lie beyond the lowest of three others: the highest of a resample in one of 27
    found = attack("a", [0.5] * 1000, [0.0, 1.0, 2.0], confidence=confidence, resamples=20_000)
    assert (found.tpr, found.tpr_high == 1.0) == (0.0, reached)


@pytest.mark.heavy
@pytest.mark.parametrize(("shift", "members", "others"), [(0.0, 400, 400), (2.0, 100, 1000)])
def test_interval_holds_the_true_tpr_with_many_others(
    shift: float, members: int, others: int
) -> None:
    draw, held, draws = np.random.default_rng(5), 0, 500
    true = ndtr(shift - ndtri(0.99))
    for _ in range(draws):
        found = attack("a", draw.normal(shift, 1, members), draw.normal(0, 1, others))
        held += found.tpr_low <= true <= found.tpr_high
    assert held / draws >= 0.92


def test_a_seed_gives_the_same_interval_again() -> None:
    draw = np.random.default_rng(6)
    x, y = draw.normal(1, 1, 200), draw.normal(0, 1, 300)
    assert attack("a", x, y, seed=7) == attack("a", x, y, seed=7)
    assert attack("a", x, y, seed=7, resamples=20) != attack("a", x, y, seed=8, resamples=20)


# --- refusals and reports


@pytest.mark.parametrize(
    ("members", "others", "more", "message"),
    [
        ([1.0], [1.0, 2.0, 3.0], {}, "1 members and 3 others"),
        ([1.0, 2.0], [], {}, "2 members and 0 others"),
        ([1.0, math.nan], [1.0, 2.0], {}, "members: 1 of 2 are no finite numbers, .* place 1"),
        ([1.0, 2.0], [-math.inf, 2.0], {}, "others: 1 of 2 are no finite numbers, .*-inf"),
        (np.ones((2, 2)), [1.0, 2.0], {}, r"shape \(2, 2\)"),
        ([1.0, 2.0], [1.0, 2.0], {"confidence": 1.0}, "confidence 1.0"),
        ([1.0, 2.0], [1.0, 2.0], {"resamples": 0}, "0 resamples"),
    ],
)
def test_what_cannot_be_weighed_is_refused(
    members: list[float], others: list[float], more: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        attack("a", members, others, **more)  # type: ignore[arg-type]


def test_report_is_json_with_all_figures() -> None:
    found = attack("loss", np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.5]))
    report = json.loads(json.dumps(found.to_dict()))
    assert report.pop("tpr_by_chance") == found.tpr_by_chance == 1 / 3
    assert Attack(**report) == found
    assert (report["name"], report["members"], report["others"]) == ("loss", 3, 2)


# --- scores


def test_a_lower_loss_is_a_higher_score() -> None:
    assert loss_scores([0.5, 2.0]).tolist() == [-0.5, -2.0]


def test_a_reference_finds_members_that_their_loss_alone_hides() -> None:
    draw = np.random.default_rng(8)
    difficulty = draw.normal(5, 3, 400)
    member = np.arange(400) < 200
    losses = difficulty - 0.5 * member + draw.normal(0, 0.1, 400)
    reference = difficulty + draw.normal(0, 0.1, 400)
    blind, sharp = loss_scores(losses), reference_scores(losses, reference)
    assert attack("loss", blind[member], blind[~member]).auc_low < 0.5
    assert attack("reference", sharp[member], sharp[~member]).auc_low > 0.95
    assert reference_scores([1.0, 4.0], [3.0, 3.0]).tolist() == [2.0, -1.0]


def test_two_snapshots_show_what_was_deleted() -> None:
    before, after = [0.1, 0.2, 2.0], [2.5, 0.2, 1.9]
    assert two_snapshot_scores(before, after) == pytest.approx([2.4, 0.0, -0.1])


def test_min_k_is_the_mean_of_the_least_likely_tokens() -> None:
    ten = [-1.0, -9.0, -2.0, -3.0, -7.0, -1.0, -1.0, -1.0, -1.0, -1.0]
    assert min_k([ten, [-4.0, -2.0], ten[:9]]) == pytest.approx([-8.0, -4.0, -9.0])
    assert min_k([ten], share=1.0) == pytest.approx([-2.7])
    assert min_k([]).shape == (0,)


def test_min_k_plus_plus_sets_each_token_against_its_place() -> None:
    rows, means = [[-1.0, -5.0, -2.0, -0.5]], [[-2.0, -5.5, -4.0, -0.1]]
    deviations = [[1.0, 0.5, 4.0, 0.1]]  # standardized: 1, 1, 0.5, −4
    assert min_k_plus_plus(rows, means, deviations, share=0.5) == pytest.approx([-1.75])
    assert min_k_plus_plus(rows, means, deviations) == pytest.approx([-4.0])


def test_a_token_that_is_certain_scores_nothing() -> None:
    assert min_k_plus_plus([[0.0, -1e-9]], [[0.0, -1e-8]], [[0.0, 1e-7]], share=1.0) == (
        pytest.approx([0.0], abs=1e-4)
    )


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: loss_scores([1.0, math.nan]), "losses: 1 of 2"),
        (lambda: reference_scores([1.0], [1.0, 2.0]), "2 reference losses, but 1 losses"),
        (lambda: two_snapshot_scores([1.0], [1.0, 2.0]), "2 losses after, but 1 losses before"),
        (lambda: min_k([[-1.0], []]), "without tokens"),
        (lambda: min_k([[-1.0]], share=0.0), "share 0.0"),
        (lambda: min_k([[-1.0]], share=1.5), "share 1.5"),
        (lambda: min_k([[-1.0, -math.inf]]), "1 of 2 are no finite numbers"),
        (lambda: min_k_plus_plus([[-1.0]], [], [[1.0]]), "1 texts, means of 0"),
        (lambda: min_k_plus_plus([[-1.0]], [[1.0, 2.0]], [[1.0]]), "but 2 means"),
        (lambda: min_k_plus_plus([[-1.0]], [[1.0]], [[1.0, 1.0]]), "but 2 deviations"),
    ],
)
def test_what_cannot_be_scored_is_refused(score: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        score()


def test_the_package_is_light_and_membership_needs_no_torch(
    run_python: Callable[[str], str],
) -> None:
    code = "import sys, {}\nprint(*sorted({{'numpy', 'torch', 'scipy'}} & set(sys.modules)))"
    assert run_python(code.format("s3t.audit")) == ""
    weighed = "s3t.audit.leakage.membership as m\nm.attack('a', [1, 2], [0, 1])\nimport sys"
    assert "torch" not in run_python(code.format(weighed)).split()
