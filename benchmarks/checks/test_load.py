"""The load benchmark's judge finds what it is there to find."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.serving.load import Checked, checked


def deletion(at: float, view: int, hit: bool = True, status: int = 201) -> dict[str, Any]:
    prefixes = [{"shard": 0, "before": [0, 1], "after": [0] if hit else [0, 1]}]
    receipt = {"view": view, "prefixes": prefixes}
    return {"acknowledged": at, "status": status, "answer": {"receipt": receipt}}


def judged(*answers: tuple[float, float, int, int], deletions: list[dict[str, Any]]) -> Checked:
    return checked(np.array(answers, dtype=float), deletions)


DELETIONS = [deletion(10, 1), deletion(20, 2, hit=False), deletion(30, 4)]


def test_answers_in_order_are_sound() -> None:
    found = judged(
        (1, 2, 200, 0),
        (9, 9.9, 200, 0),  # there before the acknowledgement
        (9, 10.1, 200, 1),
        (19, 25, 200, 2),
        (26, 28, 200, 3),  # of a repair
        (31, 32, 200, 4),
        deletions=DELETIONS,
    )
    assert found == Checked(0, 0, 0, 0, 0) and found.sound


def test_an_answer_asked_after_an_acknowledgement_may_not_be_older() -> None:
    found = judged((21, 22, 200, 1), deletions=DELETIONS)
    assert found.began_after == 1 and not found.sound


def test_an_answer_of_a_dead_block_may_not_arrive_after_the_acknowledgement() -> None:
    found = judged((9, 11, 200, 0), (19, 31, 200, 2), deletions=DELETIONS)
    assert found.arrived_after == 2 and not found.sound


def test_an_older_view_that_lost_nothing_may() -> None:
    found = judged((19, 21, 200, 1), deletions=DELETIONS)
    assert found == Checked(0, 0, 0, 1, 0) and found.sound


def test_failures_of_either_kind_are_counted() -> None:
    found = judged((1, 2, 503, -1), deletions=[deletion(10, 1, status=503)])
    assert (found.failed, found.refused, found.sound) == (1, 1, False)
