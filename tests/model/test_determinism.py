"""Arithmetic whose bytes follow from what is computed, not from what stands beside it."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from s3t.model.determinism import (
    LEAST_ROWS,
    RowByRow,
    at_least,
    draws,
    even,
    one_thread,
    root_,
    rounds_alike,
    up_to_multiple,
    without_tail,
)
from s3t.model.inputs.encoders import Encoded
from s3t.system.pinned import strict

CPU = torch.device("cpu")


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(draws(1).standard_normal(shape).astype(np.float32))


def test_numbers_that_are_drawn_are_these_on_every_machine() -> None:
    assert draws(7).random(3, dtype=np.float32).tolist() == [
        0.16372650861740112,
        0.8720734119415283,
        0.9722633361816406,
    ]
    assert draws(7).integers(0, 100, 5).tolist() == [16, 87, 97, 29, 31]


def test_missing_rows_and_columns_are_zeros() -> None:
    few, enough = drawn(3, 2, 5), drawn(3, 9, 5)
    assert at_least(enough) is enough
    assert at_least(few).shape == (3, LEAST_ROWS, 5)
    assert torch.equal(at_least(few)[:, :2], few) and not at_least(few)[:, 2:].any()
    assert up_to_multiple(few, 2).shape == (3, 2, 8) and up_to_multiple(few, 1).shape == (3, 8, 5)
    assert not up_to_multiple(few, 2)[..., 5:].any()
    assert up_to_multiple(drawn(3, 8, 16), 2).shape == (3, 8, 16)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 37 * 17])
def test_a_number_is_computed_alike_wherever_it_stands(count: int) -> None:
    """The last numbers of an array are otherwise those of a scalar function."""
    x = drawn(count) * 3
    for function in (functional.gelu, functional.silu, torch.tanh):
        found = without_tail(function, x)
        wide = torch.cat([x, torch.zeros(-count % 32)])
        assert torch.equal(found, function(wide)[:count]) and found.shape == x.shape
        one = [without_tail(function, number.reshape(1)) for number in x[-5:]]
        assert torch.equal(torch.cat(one), found[-5:])
    assert even(count) == (count == 32)


def test_roots_are_rounded_to_the_nearest() -> None:
    x = drawn(1000).square() + 1e-6
    exact = torch.tensor([math.sqrt(float(number)) for number in x.double()], dtype=torch.float64)
    assert torch.equal(root_(x.clone()), exact.float())


def test_threads_and_kernels_are_given_back() -> None:
    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    with one_thread(CPU):
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before


# ── rows in a pass ───────────────────────────────────────────────────────────────────────────

needs_strict = pytest.mark.skipif(
    not rounds_alike(CPU), reason="rows are never passed together where MKL is not strict"
)


class Counted:
    """A function of rows that notes how many it was given."""

    def __init__(self, spoils: bool = False) -> None:
        self.sizes: list[int] = []
        self.spoils = spoils

    def __call__(self, rows: Encoded) -> Tensor:
        self.sizes.append(len(rows))
        found = rows.values.flatten(1) * 3
        if self.spoils and len(rows) > 1:  # one bit of one row, as an edge of a product would
            found[-1, 0] = torch.nextafter(found[-1, 0], torch.tensor(9.0))
        return found


def rows_of(count: int) -> Encoded:
    return Encoded(drawn(count, 1, 4, 4), None)


@needs_strict
def test_rows_are_passed_together_once_that_was_seen_to_change_nothing() -> None:
    run, known = Counted(), dict[object, bool]()
    found = RowByRow(run, known)(rows_of(70), 16, True)
    assert torch.equal(found, rows_of(70).values.flatten(1) * 3)
    assert run.sizes == [32, *[1] * 32, 32, 32], "the first both ways"
    run.sizes.clear()
    RowByRow(run, known)(rows_of(40), 16, True)
    assert run.sizes == [32, 32], "who shares what is known need not try"


def test_rows_that_change_each_other_go_alone(caplog: pytest.LogCaptureFixture) -> None:
    run, known = Counted(spoils=True), dict[object, bool]()
    with caplog.at_level(logging.WARNING):
        each = RowByRow(run, known)
        found = each(rows_of(40), 16, True)
    assert torch.equal(found, rows_of(40).values.flatten(1) * 3)
    assert each.one_by_one and set(run.sizes[-8:]) == {1}
    if strict():
        assert "row by row" in caplog.text


def test_short_rows_make_up_the_least_rows_of_a_product() -> None:
    run = Counted()
    RowByRow(run, {})(rows_of(2), 3, False)
    assert run.sizes == [3, 3], "3 rows of 3 tokens are over 8"
