"""Extraction by one pass against decoding token by token, and models that have memorised."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from torch import Tensor

from s3t.audit.leakage import extraction
from s3t.audit.leakage.extraction import (
    Logits,
    Rate,
    contrast,
    extraction_strength,
    rate,
    token_statistics,
    verbatim,
)
from s3t.audit.leakage.membership import attack, loss_scores, min_k, min_k_plus_plus
from s3t.errors import InputError
from s3t.model.inputs.encoders import Encoded
from s3t.serving.ensemble.ensemble import Ensemble, Member
from tests.support.tiny import VOCABULARY, random_adapter, tiny_base, tiny_model

Row = list[int]

SIZE = 5
"""Tokens of the tables' vocabulary."""


def table(seed: int) -> Logits:
    """Random logits by the last two tokens: a model whose greedy decoding wanders."""
    by_pair = torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 3

    def logits(tokens: Tensor) -> Tensor:
        previous = torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        return by_pair[previous, tokens]

    return logits


ROWS = st.lists(st.lists(st.integers(0, SIZE - 1), min_size=4, max_size=9), min_size=1, max_size=6)
TABLES = st.integers(0, 999).map(table)


def following(step: int = 1, size: int = 50) -> Logits:
    """A model that is sure of the token ``step`` above the last one."""
    return lambda tokens: 9 * torch.nn.functional.one_hot((tokens + step) % size, size).float()


def decoded(logits: Logits, start: Sequence[int], tokens: int) -> Row:
    """The start, gone on with greedily, token by token."""
    row = list(start)
    for _ in range(tokens):
        row.append(int(logits(torch.tensor([row]))[0, -1].argmax()))
    return row


def strength_by_decoding(logits: Logits, row: Row) -> float:
    """By its definition: the shortest start that the model completes to the row."""
    least = next(
        given for given in count(1) if decoded(logits, row[:given], len(row) - given) == row
    )
    return 1 - (least - 1) / (len(row) - 1)


def of(model: Any) -> Logits:
    """A transformers or peft model as a function."""
    return lambda tokens: model(input_ids=tokens).logits


# --- one pass decides what decoding would


@given(TABLES, ROWS, st.integers(1, 3))
def test_verbatim_is_greedy_decoding(logits: Logits, rows: list[Row], prompt: int) -> None:
    answer = 4 - prompt
    expected = [decoded(logits, row[:prompt], answer) == row[: prompt + answer] for row in rows]
    assert verbatim(logits, rows, prompt, answer) == expected
    written = [decoded(logits, row[:prompt], answer) for row in rows]
    assert all(verbatim(logits, written, prompt, answer))


@given(TABLES, ROWS)
def test_strength_is_the_shortest_start_that_is_completed(logits: Logits, rows: list[Row]) -> None:
    expected = [strength_by_decoding(logits, row) for row in rows]
    assert extraction_strength(logits, rows) == pytest.approx(expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_real_decoders_are_measured_as_transformers_decodes(family: str) -> None:
    model: Any = tiny_model(family, language_model=True)
    draw = np.random.default_rng(0)
    starts = [draw.integers(3, VOCABULARY, 5).tolist() for _ in range(6)]
    with torch.no_grad():
        written = [
            model.generate(torch.tensor([s]), do_sample=False, min_new_tokens=8, max_new_tokens=8)
            for s in starts
        ]
    rows: list[Row] = [row[0].tolist() for row in written]
    assert all(verbatim(of(model), rows, 5, 8))
    assert all(share >= 8 / 12 for share in extraction_strength(of(model), rows))
    for place, row in enumerate(rows):
        row[5 + place] = (row[5 + place] + 1) % VOCABULARY
    assert not any(verbatim(of(model), rows, 5, 8))
    assert verbatim(of(model), [rows[5]], 5, 5) == [True], "what is behind the answer is free"


# --- hand-made rows


def test_strength_by_hand() -> None:
    rows = [
        [1, 2, 3, 4, 5],  # the first token is enough
        [7, 2, 3, 4, 5],  # two are needed
        [1, 2, 3, 4, 9],  # not even the last one follows
        [1, 9, 3, 4, 5],  # three
        [4, 5],
        [4, 7],
    ]
    assert extraction_strength(following(), rows) == pytest.approx([1, 0.75, 0, 0.5, 1, 0])


def test_verbatim_by_hand() -> None:
    rows = [[1, 2, 3, 4, 5], [9, 2, 3, 4, 9], [1, 2, 9, 4, 5], [1, 2, 3, 9, 5]]
    assert verbatim(following(), rows, 2, 2) == [True, True, False, False]
    assert verbatim(following(), rows, 1, 1) == [True, False, True, True]
    assert verbatim(following(), rows, 4, 1) == [True, False, True, False]


def test_statistics_by_hand() -> None:
    p = torch.tensor([0.5, 0.25, 0.25])
    (found,) = token_statistics(lambda tokens: p.log()[None, None].repeat(1, 2, 1), [[2, 0, 1]])
    assert found.log_probabilities == pytest.approx(np.log([0.5, 0.25]))
    mean = 0.5 * np.log(0.5) + 0.5 * np.log(0.25)
    assert found.means == pytest.approx([mean, mean])
    assert found.deviations == pytest.approx([np.log(2) / 2] * 2)


def test_statistics_of_flat_certain_and_impossible_tokens() -> None:
    flat, certain = torch.zeros(4), torch.tensor([0.0, -2000.0, -2000.0, -2000.0])
    masked = torch.tensor([0.0, 0.0, -torch.inf, -torch.inf])
    (found,) = token_statistics(
        lambda tokens: torch.stack([flat, certain, masked])[None], [[3, 1, 2, 1]]
    )
    assert found.means == pytest.approx([-np.log(4), 0, -np.log(2)])
    assert found.deviations == pytest.approx([0, 0, 0], abs=1e-9)
    assert found.log_probabilities == pytest.approx([-np.log(4), -2000, -np.log(2)])


def test_statistics_are_those_of_the_loss_of_transformers() -> None:
    model: Any = tiny_model("gpt2", language_model=True)
    row = np.random.default_rng(1).integers(0, VOCABULARY, 12).tolist()
    (found,) = token_statistics(of(model), [row])
    tokens = torch.tensor([row])
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss
    assert -found.log_probabilities.mean() == pytest.approx(float(loss), abs=1e-5)
    assert found.log_probabilities.shape == found.means.shape == found.deviations.shape == (11,)


def test_statistics_are_taken_in_double_precision() -> None:
    logits = torch.randn(1, 1, 3000, generator=torch.Generator().manual_seed(0)) * 8
    (found,) = token_statistics(lambda tokens: logits, [[0, 17]])
    each = logits.numpy().ravel().astype(np.float64)
    logs = each - each.max() - np.log(np.exp(each - each.max()).sum())
    mean = (np.exp(logs) * logs).sum()
    deviation = np.sqrt((np.exp(logs) * (logs - mean) ** 2).sum())
    assert found.log_probabilities == pytest.approx([logs[17]], abs=1e-12)
    assert found.means == pytest.approx([mean], abs=1e-12)
    assert found.deviations == pytest.approx([deviation], abs=1e-12)


# --- passes


def test_rows_of_any_length_come_back_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    rows = [draw.integers(0, SIZE, int(draw.integers(2, 6))).tolist() for _ in range(40)]
    logits, seen = table(3), []

    def noted(tokens: Tensor) -> Tensor:
        seen.append(tuple(tokens.shape))
        return logits(tokens)

    monkeypatch.setattr(extraction, "_TOKENS_PER_PASS", 12)
    found = token_statistics(noted, rows)
    assert all(n == 1 or n * (t + 1) <= 12 for n, t in seen)
    assert sum(n for n, _ in seen) == 40 and len(seen) < 40
    for row, together in zip(rows, found, strict=True):
        (alone,) = token_statistics(logits, [row])
        assert np.array_equal(together.log_probabilities, alone.log_probabilities)
    assert extraction_strength(logits, rows) == [extraction_strength(logits, [r])[0] for r in rows]


def test_no_rows_have_no_measures() -> None:
    assert verbatim(following(), [], 2, 2) == []
    assert extraction_strength(following(), []) == []
    assert token_statistics(following(), []) == []


def test_an_ensemble_is_measured_like_any_model() -> None:
    base = tiny_base("gpt2", 4, language_model=True)
    members = [
        Member(n, at, random_adapter(base.targets, at, seed=n), 9) for n, at in [(0, 2), (1, 0)]
    ]
    ensemble = Ensemble(base, members, 2.0, "mean-probabilities", "uniform")

    def logits(tokens: Tensor) -> Tensor:
        starts = [tokens[:, : place + 1] for place in range(tokens.shape[1])]
        each = [ensemble.next_token(Encoded(s, torch.ones_like(s))) for s in starts]
        return torch.stack(each, dim=1)

    draw = np.random.default_rng(3)
    rows = [draw.integers(3, VOCABULARY, 9).tolist() for _ in range(3)]
    found = np.stack([row.log_probabilities for row in token_statistics(logits, rows)])
    tokens = torch.tensor(rows)
    losses = ensemble.token_losses(Encoded(tokens, torch.ones_like(tokens)))
    assert -found == pytest.approx(losses.numpy(), abs=1e-4)
    written = [decoded(logits, row[:3], 4) for row in rows]
    assert all(verbatim(logits, written, 3, 4))


# --- a model that has memorised, and one that has not


@pytest.fixture(scope="module")
def memorised() -> tuple[Any, Any, list[Row], list[Row]]:
    """A tiny GPT-2 trained on some rows, the same one untrained, those rows, and others."""
    draw = np.random.default_rng(4)
    rows = [draw.integers(3, VOCABULARY, 16).tolist() for _ in range(40)]
    fresh, trained = (tiny_model("gpt2", 2, language_model=True) for _ in range(2))
    tokens = torch.tensor(rows[:20])
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        trained(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return trained, fresh, rows[:20], rows[20:]


@pytest.mark.slow
def test_what_was_memorised_is_drawn_out_and_nothing_else(
    memorised: tuple[Any, Any, list[Row], list[Row]],
) -> None:
    trained, fresh, seen, unseen = memorised
    assert all(verbatim(of(trained), seen, 4, 8))
    assert not any(verbatim(of(trained), unseen, 4, 8))
    assert not any(verbatim(of(fresh), seen, 4, 8))
    assert min(extraction_strength(of(trained), seen)) > 0.7
    assert max(extraction_strength(of(trained), unseen)) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("score", ["loss", "min-k", "min-k++"])
def test_membership_of_memorised_rows_shows_in_every_score(
    score: str, memorised: tuple[Any, Any, list[Row], list[Row]]
) -> None:
    trained, fresh, seen, unseen = memorised

    def weighed(model: Any) -> tuple[float, float, float]:
        scores = []
        for rows in (seen, unseen):
            found = token_statistics(of(model), rows)
            logs = [row.log_probabilities for row in found]
            if score == "loss":
                scores.append(loss_scores([-float(row.mean()) for row in logs]))
            elif score == "min-k":
                scores.append(min_k(logs))
            else:
                means, deviations = [row.means for row in found], [row.deviations for row in found]
                scores.append(min_k_plus_plus(logs, means, deviations))
        found_attack = attack(score, *scores)
        return found_attack.auc_low, found_attack.auc, found_attack.auc_high

    assert weighed(trained)[1] == 1.0
    low, _, high = weighed(fresh)
    assert low < 0.5 < high


# --- two snapshots


def snapshots() -> tuple[Logits, Logits]:
    """Before and after a deletion: token 3 was the second choice, behind the common 1."""
    before = torch.tensor([0.02, 0.50, 0.10, 0.37, 0.01])
    after = torch.tensor([0.08, 0.60, 0.12, 0.10, 0.10])
    return (lambda t: before.log().expand(*t.shape, 5)), (lambda t: after.log().expand(*t.shape, 5))


def test_two_snapshots_give_away_what_neither_does() -> None:
    before, after = snapshots()
    secret = [[1, 3, 3, 3]]
    assert verbatim(before, secret, 1, 3) == verbatim(after, secret, 1, 3) == [False]
    both: Logits = lambda tokens: contrast(before(tokens), after(tokens))  # noqa: E731
    assert verbatim(both, secret, 1, 3) == [True]


@given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]))
def test_contrast_weighs_the_two_log_probabilities(seed: int, strength: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    before, after = torch.randn(2, 3, 4, 7, generator=draw, dtype=torch.float32)
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    found = contrast(before + 5, after - 3, strength, margin=torch.inf)
    assert torch.allclose(found, strength * p + (1 - strength) * q, atol=1e-5)
    if strength == 1:
        filtered = contrast(before, after, 1.0)
        assert torch.equal(filtered.argmax(-1), before.argmax(-1))


def test_contrast_leaves_out_what_was_unlikely_before() -> None:
    before = torch.tensor([0.0, -1.9, -2.1, -9.0])
    after = torch.tensor([0.0, -5.0, -50.0, -90.0])
    found = contrast(before, after, 2.0, margin=2.0)
    assert found.isinf().tolist() == [False, False, True, True]
    assert int(found.argmax()) == 1
    assert int(contrast(before, after, 2.0, margin=torch.inf).argmax()) == 3


# --- rates


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 30), (7, 20), (19, 20), (20, 20)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_rate_has_the_exact_interval(hits: int, trials: int, confidence: float) -> None:
    found = rate([True] * hits + [False] * (trials - hits), confidence=confidence)
    known = binomtest(hits, trials).proportion_ci(confidence, method="exact")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert (found.hits, found.trials, found.share) == (hits, trials, hits / trials)
    assert Rate(**json.loads(json.dumps(found.to_dict()))) == found


@given(st.integers(0, 1000).map(lambda thousandths: thousandths / 1000), st.integers(1, 25))
def test_rate_holds_every_true_share_as_often_as_it_says(true: float, trials: int) -> None:
    held = 0.0
    for hits in range(trials + 1):
        found = rate([True] * hits + [False] * (trials - hits))
        held += binom.pmf(hits, trials, true) * (found.low <= true <= found.high)
    assert held >= 0.95 - 1e-9


# --- refusals


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: verbatim(following(), [[1, 2, 3], [1, 2]], 2, 1), "1 of 2 rows.*'row 1: 2'"),
        (lambda: verbatim(following(), [[1, 2]], 0, 2), "prompt 0, answer 2"),
        (lambda: verbatim(following(), [[1, 2]], 2, 0), "prompt 2, answer 0"),
        (lambda: extraction_strength(following(), [[1]]), "fewer than 2 tokens"),
        (lambda: token_statistics(following(), [[1, 2], []]), "'row 1: 0'"),
        (lambda: token_statistics(lambda t: torch.zeros(1, 9), [[1, 2]]), r"shape \(1, 9\)"),
        (lambda: verbatim(lambda t: torch.zeros(1, 3, 9), [[1, 2]], 1, 1), r"shape \(1, 3, 9\)"),
        (
            lambda: extraction_strength(lambda t: torch.full((1, 1, 9), torch.nan), [[1, 2]]),
            "not numbers",
        ),
        (lambda: contrast(torch.zeros(2, 3), torch.zeros(2, 4)), r"shapes \(2, 3\) and \(2, 4\)"),
        (lambda: contrast(torch.zeros(3), torch.zeros(3), margin=0), "margin 0"),
        (lambda: rate([]), "0 trials"),
        (lambda: rate([True], confidence=0), "confidence 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure()


def test_torch_is_loaded_only_when_a_row_is_measured(run_python: Callable[[str], str]) -> None:
    code = (
        "import sys, s3t.audit.leakage.extraction as e\n"
        "print('torch' in sys.modules, e.rate([True]).hits)"
    )
    assert run_python(code) == "False 1"
