"""What a node says of the public validation rows, computed with its score."""

from __future__ import annotations

import pytest
import torch

from s3t.model.inputs.encoders import Encoded
from s3t.training.node.rows import LabelledSet, evidence_rows, evidence_terms

# ── which rows ───────────────────────────────────────────────────────────────────────────────


def images(count: int) -> LabelledSet:
    return LabelledSet(Encoded(torch.zeros(count, 1), None), torch.zeros(count).long())


def texts(lengths: list[int]) -> LabelledSet:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).long()
    return LabelledSet(Encoded(torch.zeros_like(mask), mask), None)


def test_all_rows_are_taken_where_they_fit() -> None:
    assert evidence_rows(images(10_000), 10).tolist() == list(range(10_000))
    assert evidence_rows(texts([5, 1, 3]), 0).tolist() == [0, 1, 2]
    assert evidence_terms(texts([5, 1, 3]), 0).tolist() == [4, 0, 2], "no token is before the first"


@pytest.mark.parametrize(("count", "widest"), [(1_001, 2), (4_096, 8), (10_000, 16)])
def test_more_are_spread_over_all(count: int, widest: int) -> None:
    found = evidence_rows(images(count), 100)
    assert len(found) == 1_000
    gaps = found.diff(prepend=torch.tensor([-1]), append=torch.tensor([count]))
    assert int(gaps.min()) > 0 and int(gaps.max()) <= widest


def test_long_texts_count_by_their_tokens() -> None:
    rows = texts([1_001] * 300)
    found = evidence_rows(rows, 0)
    assert len(found) == 100 and int(evidence_terms(rows, 0)[found].sum()) == 100_000
    assert len(evidence_rows(images(3), 200_000)) == 1, "one row is always there"
