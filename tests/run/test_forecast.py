"""The forecast of a run: the state read from ledger, plan and nodes, and what it becomes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from s3t import S3T
from s3t.errors import InputError, IntegrityError
from s3t.plan.forecast import Observed, State, forecast
from s3t.run import RunDir
from s3t.run.deletion import Forgetting
from s3t.run.forecast import run_forecast

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def texts(text_run: Path) -> Iterator[Forgetting]:
    with closing(Forgetting(RunDir.existing(text_run))) as opened:
        yield opened


@pytest.fixture
def digits(digits_run: Path) -> Iterator[Forgetting]:
    with closing(Forgetting(RunDir.existing(digits_run))) as opened:
        yield opened


def persons(forgetting: Forgetting) -> np.ndarray:
    """Persons left by slot, counted one by one."""
    found = np.zeros((forgetting.plan.shards, forgetting.plan.slices), dtype=int)
    alive = list(forgetting.ledger.samples(deleted=False))
    for entry in {entry.subject or entry.sample_id: entry for entry in alive}.values():
        found[entry.shard, entry.slice] += 1
    return found


def made(run: Path, *days_ago: float) -> None:
    """Date the requests of a run, in their order."""
    with closing(sqlite3.connect(run / "ledger.db")) as connection, connection:
        for view, days in enumerate(days_ago, 1):
            moment = (NOW - timedelta(days=days)).isoformat(timespec="milliseconds")
            connection.execute("UPDATE requests SET created_at = ? WHERE view = ?", [moment, view])


def test_a_fresh_run(digits: Forgetting) -> None:
    found = run_forecast(digits, now=NOW)
    assert found == forecast(State(0, persons(digits), np.ones((4, 4), dtype=bool)))
    assert (found.persons_left, found.first_slices_left, found.first_slices_missing) == (800, 16, 0)
    assert (found.observed, found.trials) == (None, None)


def test_along_deletions_until_exhausted(digits: Forgetting) -> None:
    slots = {(entry.shard, entry.slice): entry.sample_id for entry in digits.ledger.samples()}
    living, medians = np.ones((4, 4), dtype=bool), []
    for view, (slot, name) in enumerate(sorted(slots.items()), 1):
        digits.delete([name], [], None, False)
        living[slot] = False
        found = run_forecast(digits, now=NOW)
        expected = forecast(State(view, persons(digits), living), observed=found.observed)
        assert found == expected
        medians.append(found.exhaustion.p50 if found.exhaustion else 0)
    assert medians == sorted(medians, reverse=True)
    assert found.exhausted and found.persons_left == 784


def test_a_person_is_one_request(texts: Forgetting) -> None:
    assert run_forecast(texts, now=NOW).persons_left == 16 + 8
    texts.delete(["t00"], [], None, False)  # of two: the person is still there
    assert run_forecast(texts, now=NOW).persons_left == 24
    texts.delete([], ["p00", "p01"], None, False)
    texts.delete(["t39"], [], None, False)
    found = run_forecast(texts, now=NOW)
    assert found.persons_left == persons(texts).sum() == 21
    assert sum(shard.persons_left for shard in found.shards) == 21


def test_the_rate_is_that_of_the_ledger(digits: Forgetting) -> None:
    names = [entry.sample_id for entry in digits.ledger.samples(slot=(0, 0))]
    digits.delete(names[:5], [], None, False)
    made(digits.run.root, 10)
    assert run_forecast(digits, now=NOW).observed is None
    digits.delete(names[4:7], [], None, False)
    digits.delete(names[:7], [], None, False)  # finds them deleted
    digits.delete(names[7:8], [], None, False)
    made(digits.run.root, 10, 5, 2)
    found = run_forecast(digits, now=NOW)
    assert found.observed == Observed(3, 10.0)
    told = found.to_dict()["exhaustion"]
    assert told["days"]["p50"] == pytest.approx(told["requests"]["p50"] / 0.3)


def test_rates_of_the_config_are_simulated(text_run: Path) -> None:
    config = text_run / "config.yaml"
    risk = "risk: {column: key, thresholds: [5], rates: [1, 9]}"
    text = config.read_text(encoding="utf-8").replace("risk: null", risk)
    config.write_text(text, encoding="utf-8")
    with S3T.load(text_run) as service:
        found = service.forecast(now=NOW, trials=2000)
        assert service.forecast(now=NOW, trials=2000) == found
        assert service.forecast(now=NOW, trials=2000, seed=1) != found
    assert (found.trials, found.seed) == (2000, 0)
    with closing(Forgetting(RunDir.existing(text_run))) as opened:
        left = persons(opened)
    weights = np.array([2 * 1, 2 * 9]) / left.sum(axis=0)
    state = State(0, left, np.ones((2, 2), dtype=bool), weights=weights)
    assert found == forecast(state, trials=2000)


def test_nodes_that_are_not_there(digits_run: Path) -> None:
    roots = [
        node
        for node in RunDir.existing(digits_run).plan().forest.nodes
        if node.parent is None and (node.shard == 1 or node.prefix == (2,))
    ]
    for node in roots:
        (digits_run / "nodes" / f"{node.key}.safetensors").unlink()
    with closing(Forgetting(RunDir.existing(digits_run))) as opened:
        found = run_forecast(opened, now=NOW)
        assert (found.first_slices_left, found.first_slices_missing) == (9, 7)
        name = next(opened.ledger.samples(slot=(0, 2))).sample_id
        opened.delete([name], [], None, False)
        again = run_forecast(opened, now=NOW)
    assert (again.first_slices_left, again.first_slices_missing) == (9, 6)
    assert [shard.first_slices for shard in again.shards] == [(0, 1, 3), (), (0, 1, 3), (0, 1, 3)]
    assert again.shards[1].median_requests is None


def test_a_ledger_of_another_plan(digits: Forgetting) -> None:
    with closing(sqlite3.connect(digits.run.ledger_path)) as connection, connection:
        connection.execute("UPDATE slots SET slice = 9 WHERE shard = 1 AND slice = 3")
    with pytest.raises(IntegrityError, match="slice 9"):
        run_forecast(digits, now=NOW)


def test_a_receipt_without_a_moment(digits: Forgetting) -> None:
    digits.delete(["digit-0003"], [], None, False)
    with closing(sqlite3.connect(digits.run.ledger_path)) as connection, connection:
        connection.execute("UPDATE requests SET created_at = 'long ago'")
    with pytest.raises(IntegrityError, match="long ago"):
        run_forecast(digits, now=NOW)


def test_what_cannot_be_simulated(digits: Forgetting) -> None:
    for wrong in ({"trials": 0}, {"seed": -1}):
        with pytest.raises(InputError):
            run_forecast(digits, now=NOW, **wrong)
