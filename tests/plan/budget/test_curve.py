"""Curves: the forms of the command line, measured points, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3t.errors import InputError
from s3t.plan.budget import curve
from s3t.plan.budget.curve import DEFAULT, Curve, Linear, Measured, Power, parse_curve


def refuse(path: str) -> str:
    raise AssertionError(f"{path} is no file")


def test_public_names() -> None:
    assert curve.__all__ == ["DEFAULT", "Curve", "Linear", "Measured", "Power", "parse_curve"]


def test_a_whole_shard_is_worth_one_by_the_share_of_its_data() -> None:
    found = parse_curve("linear", refuse)
    assert found == Linear()
    assert found.utility([0, 25, 100], 100).tolist() == [0, 0.25, 1]


def test_power_law() -> None:
    found = parse_curve("power:0.9,0.5,0.5", refuse)
    assert found == Power(0.9, 0.5, 0.5)
    assert found.utility([0, 1, 25, 100], 100) == pytest.approx([0, 0.4, 0.8, 0.85])
    assert str(found) == "power:0.9,0.5,0.5"


def test_a_power_law_is_never_below_what_nothing_is_worth() -> None:
    found = parse_curve("power:0.9,1,0.5,0.7", refuse)
    assert found.utility([0, 1, 16, 100], 100) == pytest.approx([0.7, 0.7, 0.7, 0.8])
    assert parse_curve(str(found), refuse) == found


def test_the_default_is_concave_and_says_what_it_is() -> None:
    worth = DEFAULT.utility(np.arange(1, 1000), 1000)
    assert (np.diff(worth) > 0).all() and (np.diff(worth, 2) < 0).all()
    assert parse_curve(str(DEFAULT), refuse) == DEFAULT


def test_points_are_joined_by_straight_lines_over_the_logarithm() -> None:
    found = Measured.of([[99, 0.6], [9, 0.4]], "here")
    assert found.utility([0, 9, 99, 10**6], 1) == pytest.approx([0, 0.4, 0.6, 0.6])
    halfway = 10**1.5 - 1
    assert found.utility(halfway, 1) == pytest.approx(0.5)
    assert str(found) == "measured, 3 points from here"


def test_points_that_fall_are_lifted() -> None:
    found = Measured.of([[0, 0.5], [10, 0.3], [20, 0.6], [30, 0.55]], "here")
    assert found.worth == (0.5, 0.5, 0.6, 0.6)


@pytest.mark.parametrize(
    "content",
    [
        "samples,utility\n10,0.5\n\n100,0.7\n",
        "Samples , Utility\r\n10,0.5\r\n100,0.7",
        "100,0.7\n10,0.5",
        "[[10, 0.5], [100, 0.7]]",
        '{"points": [[10, 0.5], [100, 0.7]], "name": "digits"}',
    ],
)
def test_files_of_points(content: str) -> None:
    found = parse_curve("here.txt", {"here.txt": content}.__getitem__)
    assert found == Measured("here.txt", (0, 10, 100), (0, 0.5, 0.7))


@pytest.mark.parametrize(
    ("given_", "part"),
    [
        ("power:1,1", "expected power:TOP,GAP,EXPONENT"),
        ("power:1,1,1,1,1", "expected power:TOP,GAP,EXPONENT"),
        ("power:", "expected power:TOP,GAP,EXPONENT"),
        ("power:a,b,c", "expected power:TOP,GAP,EXPONENT"),
        ("power:1,-1,1", "curve power:1,-1,1: expected finite numbers"),
        ("power:1,1,0", "an exponent over 0"),
        ("power:nan,1,1", "expected finite numbers"),
        ("power:inf,1,1", "expected finite numbers"),
        ("power:0.5,1,1,0.6", "a top from the worth of no data"),
    ],
)
def test_numbers_that_are_no_curve(given_: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_curve(given_, refuse)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "no point with samples"),
        ("samples,utility\n", "no point with samples"),
        ("0,0.5\n", "no point with samples"),
        ("10,0.5\n10,0.6\n", "two points for the same samples"),
        ("10\n", "holds ['10']"),
        ("10,0.5,7\n", "holds ['10', '0.5', '7']"),
        ("10,high\n", "holds ['10', 'high']"),
        ("10,nan\n", "both finite"),
        ("-1,0.5\n", "samples from 0"),
        ("inf,0.5\n", "both finite"),
        ("10,-2\n100,-1\n", "add a point for 0 samples"),
        ("[[10, 0.5]", "is not JSON"),
        ("[10, 0.5]", "holds 10"),
        ('["12"]', "holds '12'"),
        ('{"curve": [[10, 0.5]]}', "expected a list of [samples, utility]"),
        ("\0", "holds ['\\x00']"),
    ],
)
def test_content_that_is_no_curve(content: str, part: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_curve("here.txt", lambda path: content)
    assert "curve here.txt" in str(caught.value) and part in str(caught.value)


def test_losses_are_a_curve_with_a_point_for_nothing() -> None:
    found = Measured.of([[0, -3.0], [10, -2.0]], "here")
    assert found.utility([0, 10], 1).tolist() == [-3, -2]


numbers = st.floats(-5, 5)
curves: st.SearchStrategy[Curve] = st.one_of(
    st.just(Linear()),
    st.builds(
        lambda nothing, more, gap, exponent: Power(nothing + more, gap, exponent, nothing),
        numbers,
        st.floats(0, 5),
        st.floats(0, 5),
        st.floats(0.01, 3),
    ),
    st.dictionaries(st.integers(1, 10**6), numbers, min_size=1, max_size=6).map(
        lambda points: Measured.of([(0, -5.0), *points.items()], json.dumps(points))
    ),
)


@given(curves, st.lists(st.floats(0, 10**6), min_size=2))
def test_no_curve_falls(found: Curve, samples: list[float]) -> None:
    worth = found.utility(np.sort(samples), 10**6)
    assert np.isfinite(worth).all()
    assert (np.diff(worth) >= -1e-12).all()
