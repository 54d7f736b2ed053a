"""Buckets and refusals: how many pass, how long the rest waits, and that memory is bounded."""

from __future__ import annotations

import pytest

from s3t.server.security import rates
from s3t.server.security.rates import Buckets, Refusals, network


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_second_and_fills_again() -> None:
    clock = Clock()
    buckets = Buckets(4.0, clock)
    assert [buckets.take("a") for _ in range(5)] == [None] * 4 + [1]
    assert buckets.take("b") is None  # another caller has another one
    clock.now += 0.25
    assert buckets.take("a") is None
    assert buckets.take("a") == 1


def test_a_slow_bucket_lets_one_pass_and_says_how_long() -> None:
    clock = Clock()
    buckets = Buckets(0.1, clock)
    assert buckets.take("a") is None
    assert buckets.take("a") == 10
    clock.now += 9
    assert buckets.take("a") == 1
    clock.now += 1
    assert buckets.take("a") is None


def test_no_rate_lets_all_pass() -> None:
    buckets = Buckets(None)
    assert all(buckets.take("a") is None for _ in range(1000))


def test_refusals_count_for_a_minute() -> None:
    clock = Clock()
    refusals = Refusals(3, clock)
    assert [refusals.count("192.0.2.1") for _ in range(4)] == [None, None, None, 60]
    assert refusals.count("192.0.2.2") is None
    clock.now += 59
    assert refusals.count("192.0.2.1") == 1
    clock.now += 1
    assert refusals.count("192.0.2.1") is None


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_HELD", 10)
    clock = Clock()
    refusals, buckets = Refusals(2, clock), Buckets(1.0, clock)
    for number in range(100):
        refusals.count(f"192.0.2.{number}")
        buckets.take(str(number))
    assert len(refusals._times) <= 10 and len(buckets._left) <= 10
    for _ in range(100):
        refusals.count("192.0.2.99")
    assert sum(map(len, refusals._times.values())) <= 20


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_what_counts_as_one_place(address: str, place: str) -> None:
    assert network(address) == place
