"""Questions that share a pass, and what they do to each other: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from s3t.errors import ExhaustedError, InputError
from s3t.server.http.problems import Problem
from s3t.server.metrics import Metrics
from s3t.server.work.batcher import Batcher
from tests.support.fake import Gate, Model, config


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


def run(model: Model, work: Callable[[Batcher], Awaitable[Any]], **serve: Any) -> Any:
    """What some work on a batcher gives."""

    async def on_a_loop() -> Any:
        batcher = Batcher(model, config(**serve), Metrics(model))
        try:
            return await work(batcher)
        finally:
            await asyncio.to_thread(batcher.close)

    return asyncio.run(on_a_loop())


async def together(batcher: Batcher, *questions: list[str]) -> list[Any]:
    asked = (batcher.ask(rows) for rows in questions)
    return await asyncio.gather(*asked, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


def test_questions_of_one_moment_share_a_pass(model: Model) -> None:
    found = run(model, lambda batcher: together(batcher, ["a"], ["b", "c"], ["d"]))
    assert model.passes == [["a", "b", "c", "d"]]
    assert [len(answers) for answers in found] == [1, 2, 1]


def test_a_pass_holds_so_many_rows_and_never_a_part_of_a_question(model: Model) -> None:
    questions = [["a", "b"], ["c", "d"], ["e"], ["f", "g", "h", "i", "j", "k"], ["l"]]
    found = run(model, lambda batcher: together(batcher, *questions), batch_rows=4)
    assert model.passes == [["a", "b", "c", "d"], ["e"], questions[3], ["l"]]
    assert [len(answers) for answers in found] == [2, 2, 1, 6, 1]


def test_a_full_pass_does_not_wait_for_more(model: Model) -> None:
    started = time.perf_counter()
    run(model, lambda batcher: together(batcher, ["a"], ["b"]), batch_rows=2, batch_wait=30)
    assert time.perf_counter() - started < 10


def test_the_next_pass_gathers_while_one_runs(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        more = [asyncio.create_task(batcher.ask([row])) for row in "bcd"]
        await asyncio.sleep(0.05)  # longer than batch_wait
        gate.open()
        await asyncio.gather(first, *more)

    run(model, work)
    assert model.passes == [["a"], ["b", "c", "d"]]


def test_a_bad_row_fails_its_own_question_alone(model: Model) -> None:
    found = run(model, lambda batcher: together(batcher, ["a"], ["bad"], ["c"]))
    assert isinstance(found[1], InputError)
    assert found[0][0].label == found[2][0].label == "yes"


def test_an_exhausted_run_is_not_asked_again_for_each_question(model: Model) -> None:
    model.error = ExhaustedError("nothing is left")
    found = run(model, lambda batcher: together(batcher, ["a"], ["b"]))
    assert all(isinstance(one, ExhaustedError) for one in found)
    assert len(model.passes) == 1


def test_too_many_waiting_rows_are_refused_and_told_when_to_come_back(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> Problem:
        running = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        waiting = [asyncio.create_task(batcher.ask(["b", "c"])) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Problem) as refused:
            await batcher.ask(["d"])
        gate.open()
        await asyncio.gather(running, *waiting)
        assert len(await batcher.ask(["e"])) == 1  # there is room again
        return refused.value

    problem = run(model, work, queue_rows=4)
    assert (problem.code, problem.status) == ("overloaded", 503)
    assert int(problem.headers["Retry-After"]) >= 1
    assert ["d"] not in model.passes


def test_a_question_larger_than_the_queue_is_answered_when_nobody_waits(model: Model) -> None:
    (answers,) = run(model, lambda batcher: together(batcher, ["a", "b", "c"]), queue_rows=2)
    assert len(answers) == 3


def test_whoever_waits_too_long_is_told_and_not_computed_for(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> list[Any]:
        running = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        waiting = asyncio.create_task(batcher.ask(["b"]))
        found = await asyncio.gather(running, waiting, return_exceptions=True)
        gate.open()
        await batcher.ask(["c"])
        return found

    found = run(model, work, timeout=0.1)
    assert [problem.code for problem in found] == ["timeout", "timeout"]
    assert model.passes == [["a"], ["c"]]


def test_rows_of_a_client_that_has_gone_are_dropped(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> None:
        running = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        left = asyncio.create_task(batcher.ask(["b"], gone=lambda: True))
        stays = asyncio.create_task(batcher.ask(["c"]))
        await asyncio.sleep(0.01)
        gate.open()
        await asyncio.gather(running, stays)
        with pytest.raises(ClientDisconnect):
            await left

    run(model, work)
    assert model.passes == [["a"], ["c"]]


def test_a_question_given_up_leaves_the_others_alone(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> list[Any]:
        running = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        given_up, stays = (asyncio.create_task(batcher.ask([row])) for row in "bc")
        await asyncio.sleep(0.01)
        given_up.cancel()
        running.cancel()
        gate.open()
        return list(await stays)

    assert len(run(model, work)) == 1
    assert model.passes == [["a"], ["c"]]


def test_the_loop_goes_on_while_the_model_computes(model: Model) -> None:
    model.before = gate = Gate()

    async def work(batcher: Batcher) -> int:
        asked = asyncio.create_task(batcher.ask(["a"]))
        await until(gate.reached.is_set)
        turns = [await asyncio.sleep(0, result=1) for _ in range(100)]
        assert not asked.done()
        gate.open()
        await asked
        return sum(turns)

    assert run(model, work) == 100
