"""Claims: one process has a node in hand, until it says otherwise or is heard of no more."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from s3t.errors import S3TError
from s3t.store import Depot, open_depot
from s3t.training.rank import MACHINE, MACHINES, Rank, by_itself
from s3t.training.work.node_leases import Alone, DepotLeases
from s3t.types import NodeKey

A, B, C = (NodeKey(name) for name in "abc")
SHORT = 0.4
"""A lease that tests can outwait."""


@pytest.fixture
def memory() -> Iterator[Depot]:
    """A store in memory, for tests that wait: leases end alike in every store."""
    MemoryFileSystem.store.clear()
    yield open_depot("memory://claims")
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["memory", "file"])
def depot(request: pytest.FixtureRequest, memory: Depot, tmp_path: Path) -> Depot:
    return memory if request.param == "memory" else open_depot(str(tmp_path / "claims"))


def on_machine(depot: Depot, rank: int, lease: float = 60) -> DepotLeases:
    found = DepotLeases(depot, Rank(rank, 2, 0, 1), lease)
    found.open()
    return found


def silence(leases: DepotLeases) -> None:
    """What a SIGKILL does to its signs of life."""
    leases._end.set()
    leases._thread.join()


def test_alone_all_is_ours() -> None:
    assert Alone().take([A, B]) == [A, B] and not Alone().away() and not Alone().idle()


def test_a_node_is_in_one_hand(depot: Depot) -> None:
    one, two = on_machine(depot, 0), on_machine(depot, 1)
    assert one.take([A, B]) == [A, B]
    assert two.take([A, B, C]) == [C]
    assert (one.away(), two.away()) == ({C}, {A, B})
    assert (one.idle(), two.idle()) == (0, 0)
    one.release([A])
    assert two.away() == {B} and two.take([A]) == [A]
    one.close()
    assert two.away() == frozenset() and two.idle() == 1
    assert two.take([B]) == [B], "who ends well gives back at once"
    two.close()
    assert depot.names("claims") == depot.names("beats") == []


def test_a_lease_lasts_while_its_process_beats(memory: Depot) -> None:
    one, two = on_machine(memory, 0, SHORT), on_machine(memory, 1, SHORT)
    one.take([A])
    for _ in range(5):
        time.sleep(SHORT / 3)
        assert two.away() == {A} and two.take([A]) == []
    one.close()
    two.close()


def test_what_a_dead_process_had_is_taken_up_after_its_lease(depot: Depot) -> None:
    one, two = on_machine(depot, 0, SHORT), on_machine(depot, 1, SHORT)
    one.take([A])
    assert two.away() == {A}
    silence(one)
    assert two.take([A]) == [], "it may be slow"
    limit = time.monotonic() + 20 * SHORT
    while two.away():
        assert time.monotonic() < limit
        time.sleep(SHORT / 10)
    assert two.take([A]) == [A]
    two.clear()
    assert depot.names("claims") == [] and depot.names("beats") == [two.name]
    two.close()


def test_a_dead_process_of_the_same_launch_is_known_at_once(depot: Depot) -> None:
    one = DepotLeases(depot, Rank(0, 2, 0, 2), 1000)
    two = DepotLeases(depot, Rank(1, 2, 1, 2), 1000)
    one.open()
    two.open()
    two.take([A])
    assert one.away() == {A}
    silence(two)
    sign = json.loads(depot.get(f"beats/{two.name}"))
    assert sign["process"] == os.getpid()
    # a process of the same number, but another
    depot.put(f"beats/{two.name}", json.dumps(sign | {"began": "1"}).encode())
    one._others.look(again=True)
    assert one.away() == frozenset() and one.take([A]) == [A]
    one.close()


def test_of_many_that_claim_at_once_one_has_it(depot: Depot) -> None:
    several = [on_machine(depot, rank) for rank in range(8)]
    keys = [NodeKey(f"node {number}") for number in range(20)]
    taken: list[list[NodeKey]] = [[] for _ in several]
    ready = threading.Barrier(len(several))

    def claim(number: int) -> None:
        ready.wait()
        for one in keys:
            taken[number] += several[number].take([one])

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(len(several))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one for some in taken for one in some) == sorted(keys)
    for one in several:
        one.close()


def test_a_store_out_of_reach_for_a_while_ends_no_training(
    memory: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = on_machine(memory, 0, SHORT)

    def broken(*words: object) -> None:
        raise S3TError("the line is cut")

    with monkeypatch.context() as cut:
        cut.setattr(memory, "put", broken)
        time.sleep(SHORT)
    before = one._count
    time.sleep(SHORT)
    assert one._count > before and one._thread.is_alive()
    one.close()


# ── lost answers, and processes that were paused ─────────────────────────────────────────────


def test_a_lost_answer_to_a_claim_is_no_other_claim(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, create = on_machine(depot, 0, SHORT), depot.create

    def lost(name: str, content: bytes) -> bool:
        create(name, content)
        return create(name, content)

    monkeypatch.setattr(depot, "create", lost)
    assert one.take([A]) == [A]
    one._mine.clear()  # the same claim, made before an error that it does not remember
    assert one.away() == frozenset() and one.take([A]) == [A]
    one.close()
    assert depot.names("claims") == []


def test_a_process_that_wakes_after_its_lease_leaves_the_claims_of_its_successor(
    memory: Depot,
) -> None:
    one, two = on_machine(memory, 0, SHORT), on_machine(memory, 1, SHORT)
    one.take([A, B])
    two.away()
    silence(one)
    limit = time.monotonic() + 20 * SHORT
    while not two.take([A]):
        assert time.monotonic() < limit
        time.sleep(SHORT / 10)
    one.release([A, B])
    assert memory.names("claims") == ["a"], "its own it gives up"
    assert memory.get("claims/a").decode() == two.name
    two.close()


# ── waiting for the main process ─────────────────────────────────────────────────────────────


def test_others_wait_until_the_run_is_prepared(memory: Depot) -> None:
    main, other = on_machine(memory, 0, SHORT), DepotLeases(memory, Rank(1, 2, 0, 1), SHORT)
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(other.wait_for_main(lambda: False)))
    waiting.start()
    time.sleep(SHORT)
    assert waiting.is_alive() and not told
    main.ready()
    waiting.join(20)
    assert told == [True]
    main.close()


def test_a_main_process_that_ends_before_is_noticed(memory: Depot) -> None:
    main, other = on_machine(memory, 0, SHORT), DepotLeases(memory, Rank(1, 2, 0, 1), SHORT)
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(other.wait_for_main(lambda: False)))
    waiting.start()
    time.sleep(SHORT)
    main.close()
    waiting.join(20)
    assert told == [False]


def test_signs_that_a_dead_main_process_left_are_none(memory: Depot) -> None:
    main = on_machine(memory, 0, 0.05)
    main.ready()
    silence(main)
    other = DepotLeases(memory, Rank(1, 2, 0, 1), 0.05)
    with pytest.raises(S3TError, match="no sign of the main process"):
        other.wait_for_main(lambda: False)
    assert other.wait_for_main(lambda: True)
    again = on_machine(memory, 0, 0.05)
    assert memory.names("beats") == [again.name]
    again.close()


# ── places ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank(0, 1, 0, 1)),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            (3, 4, 1, 2),
        ),
        ({MACHINE: "1", MACHINES: "2"}, (1, 2, 0, 1)),
        (
            {MACHINE: "1", MACHINES: "3", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
            | {"LOCAL_WORLD_SIZE": "2"},
            (3, 6, 1, 2),
        ),
        (
            {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"},
            (2, 4, 2, 4),
        ),
    ],
)
def test_a_process_finds_its_place(
    environment: dict[str, str],
    rank: Rank | tuple[int, int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    expected = rank if isinstance(rank, Rank) else Rank(*rank)
    found = Rank.found()
    assert found == expected
    assert found.main == (found.number == 0) and found.speaks == (found.local == 0)
    assert found.beside_main == (found.number < found.here)
    with by_itself():
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & os.environ.keys()
    assert {name: os.environ[name] for name in environment} == environment
