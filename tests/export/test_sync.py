"""An engine kept to what the run serves: forgetting first, resumable, foreign names left alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import InputError, UnavailableError
from s3t.export.sync import (
    EndedAdapter,
    EngineClient,
    EngineError,
    Sync,
    Synchroniser,
    Watching,
    connect,
    ending,
    http,
)
from s3t.run import RunDir
from s3t.service import S3T
from tests.conftest import Run
from tests.support.deletions import emptied, shortened
from tests.support.stand_in import StandIn
from tests.support.waiting import until

LOAD = {"vllm": "/v1/load_lora_adapter", "sglang": "/load_lora_adapter"}
UNLOAD = {"vllm": "/v1/unload_lora_adapter", "sglang": "/unload_lora_adapter"}
ASK = {"vllm": "/v1/completions", "sglang": "/generate"}


BRIEF = 0.4
"""Seconds after which a sync gives up, where a test waits for that."""

BOTH = pytest.mark.parametrize("engine", ["vllm", "sglang"], indirect=True)
"""For what the engines do in different ways; all else is asked of SGLang among the heavy tests."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PAUSE", 0.01)
    monkeypatch.setattr(ending, "_PAUSE", 0.02)
    monkeypatch.setattr(ending, "_LONGEST", 0.1)


@pytest.fixture(params=["vllm", pytest.param("sglang", marks=pytest.mark.heavy)])
def engine(request: pytest.FixtureRequest, language_run: RunDir) -> Iterator[StandIn]:
    with StandIn(request.param, language_run.base_path).running() as found:
        yield found


@pytest.fixture
def vllm(language_run: RunDir) -> Iterator[StandIn]:
    with StandIn("vllm", language_run.base_path).running() as found:
        yield found


@pytest.fixture
def service(language_run: RunDir) -> Iterator[S3T]:
    with S3T.load(language_run.root) as found:
        yield found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


def kept(service: S3T, engine: StandIn, out: Path, **more: Any) -> Synchroniser:
    return service.synchroniser(engine.target, engine.url, out, timeout=5, **more)


def asked(body: dict[str, Any]) -> str | None:
    """The adapter that a request asks; None: the base."""
    return body.get("model") or body.get("lora_path")


def routes(engine: StandIn) -> list[tuple[str, str]]:
    """What was asked of adapters since the last look."""
    found = [(route.rpartition("/")[2], name) for _, route, name in engine.calls if name]
    engine.calls.clear()
    return found


# ── what is done, and in which order ─────────────────────────────────────────────────────────


@BOTH
def test_load_probe_then_nothing_to_do(service: S3T, engine: StandIn, out: Path) -> None:
    done = kept(service, engine, out).sync()
    assert (done.exit_code, done.problems, len(done.loaded)) == (0, (), 2)
    assert {*engine.loaded} == {*done.loaded} and done.difference < 1e-4
    first, second = done.loaded
    ask = ASK[engine.target].rpartition("/")[2]
    assert routes(engine) == [
        ("load_lora_adapter", first),
        (ask, first),
        ("load_lora_adapter", second),
        (ask, second),
    ]
    again = kept(service, engine, out).sync()
    assert not again.changed and again.kept == done.loaded
    assert {route for route, _ in routes(engine)} == {ask}, "probed, nothing else"


@BOTH
def test_a_deletion_is_forgotten_first(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    engine.load("somebody-elses", engine.loaded[first][0])
    shortened(service, 0)
    routes(engine)
    done = sync.sync()
    assert (done.forgotten, done.kept, done.exit_code) == ((first,), (second,), 0)
    assert {*engine.loaded} == {done.loaded[0], second, "somebody-elses"}
    assert routes(engine)[0] == ("unload_lora_adapter", first)
    assert sorted(path.name for path in out.glob("s3t-*-shard-*")) == sorted((*done.loaded, second))


def test_living_ones_are_replaced_only_when_the_new_one_answers(
    service: S3T, engine: StandIn, out: Path
) -> None:
    shards = kept(service, engine, out).sync().loaded
    sync = kept(service, engine, out, merge=True)
    engine.fault = lambda route, body: (
        (500, {"error": {"message": "out of memory"}}) if route == LOAD[engine.target] else None
    )
    failed = sync.sync()
    assert failed.exit_code == 1 and "out of memory" in failed.problems[0]
    assert {*engine.loaded} == {*shards}, "what served goes on"
    assert all((out / name).is_dir() for name in shards)
    engine.fault = lambda route, body: None
    routes(engine)
    done = sync.sync()
    assert done.replaced == shards and {*engine.loaded} == {*done.loaded}
    order = [route for route, _ in routes(engine)]
    assert order.index("load_lora_adapter") < order.index("unload_lora_adapter")
    assert [path.name for path in out.glob("s3t-*-*")] == [*done.loaded], "folders go with them"


def test_what_is_dead_is_unloaded_though_the_new_one_fails(
    service: S3T, engine: StandIn, out: Path, language_run: RunDir
) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    shortened(service, 0)
    known = (None, first, second)
    engine.fault = lambda route, body: (
        (500, {"error": {"message": "broken"}})
        if route == ASK[engine.target] and asked(body) not in known
        else None
    )
    done = sync.sync()
    assert done.forgotten == (first,) and done.exit_code == 1
    assert {*engine.loaded} == {second}, "what failed its probe was taken back"
    engine.fault = lambda route, body: None
    assert sync.sync().exit_code == 0


def test_what_is_dead_is_unloaded_though_nothing_can_be_exported(
    service: S3T, engine: StandIn, out: Path, language_run: RunDir
) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    shortened(service, 0)
    node = service.status().shards[0].node
    assert node is not None
    language_run.store.path(node).write_bytes(b"damaged")
    service.serving.reload()
    done = sync.sync()
    assert (done.forgotten, done.exit_code, done.view) == ((first,), 4, -1)
    assert {*engine.loaded} == {second} and not (out / first).exists()


def test_what_cannot_be_unloaded_is_said_aloud(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    first, _ = sync.sync().loaded
    shortened(service, 0)
    engine.fault = lambda route, body: (
        (500, {"error": {"message": "no"}}) if route == UNLOAD[engine.target] else None
    )
    done = sync.sync()
    assert done.exit_code == 1 and first in engine.loaded
    assert first in done.problems[0] and "MAY STILL BE SERVED" in done.problems[0]


def test_names_of_ours_that_nobody_knows_are_unloaded(
    service: S3T, engine: StandIn, out: Path, language_run: RunDir
) -> None:
    first, _ = kept(service, engine, out).sync().loaded
    unknown = first[:-16] + "0" * 16
    foreign = "s3t-ffffffff" + first[12:]
    path = engine.loaded[first][0]
    engine.load(unknown, path)
    engine.load(foreign, path)
    done = kept(service, engine, out).sync()
    assert done.forgotten == (unknown,) and foreign in engine.loaded


def test_an_exhausted_run_is_served_by_nothing(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    sync.sync()
    emptied(service, 0)
    emptied(service, 1)
    done = sync.sync()
    assert (done.exit_code, done.without, len(done.forgotten)) == (3, (0, 1), 2)
    assert not engine.loaded


def test_an_engine_that_was_started_anew_is_filled_again(
    service: S3T, engine: StandIn, out: Path
) -> None:
    sync = kept(service, engine, out)
    names = sync.sync().loaded
    engine.loaded.clear()
    assert sync.sync().loaded == names


def test_something_else_under_our_name_makes_room(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    engine.loaded[first] = engine.loaded[second]
    assert kept(service, engine, out).sync().loaded == (first,)
    assert engine.loaded[first][0] == str(out / first)


def test_another_base_fails_the_probe(
    service: S3T, vllm: StandIn, out: Path, language_run: RunDir
) -> None:
    import torch

    with torch.no_grad():
        for parameter in vllm._base.parameters():
            parameter.mul_(-3)
    done = kept(service, vllm, out).sync()
    assert done.exit_code == 1 and "answers otherwise" in done.problems[0]
    assert str(language_run.base_path.resolve()) in done.problems[0] and not vllm.loaded


def test_a_dry_run_changes_nothing(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    would = sync.would()
    assert would.dry_run and len(would.loaded) == 2 and not engine.loaded and not out.exists()
    first, second = sync.sync().loaded
    shortened(service, 0)
    would = sync.would()
    assert (would.forgotten, would.kept) == ((first,), (second,))
    assert {*engine.loaded} == {first, second} and (out / first).is_dir()
    assert sync.sync().loaded == would.loaded


# ── a deletion is effective when the engine has ended with what is dead ──────────────────────


def under_way(engine: StandIn, name: str, running: int, waiting: int) -> None:
    """Answers that were accepted before."""
    engine.at_work += [name] * running
    engine.queued += [name] * waiting


def in_background(sync: Synchroniser) -> tuple[threading.Thread, list[Any]]:
    """A sync, and what it tells of."""
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(sync.sync(told.append)))
    thread.start()
    return thread, told


@pytest.mark.parametrize(
    ("engine", "tells"),
    [
        ("vllm", "adapters"),
        ("sglang", "counts"),
        pytest.param("vllm", "counts", marks=pytest.mark.heavy),
    ],
    indirect=["engine"],
)
def test_forgotten_is_what_neither_runs_nor_waits(
    service: S3T, engine: StandIn, out: Path, tells: str
) -> None:
    engine.tells = tells
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    shortened(service, 0)
    under_way(engine, first, 2, 5)
    thread, told = in_background(sync)
    until(lambda: first not in engine.loaded)
    time.sleep(0.2)
    assert not told and {*engine.loaded} == {second}, "nothing is loaded before it is over"
    engine.queued.clear()
    time.sleep(0.2)
    assert not told, "some still run"
    engine.at_work.clear()
    thread.join(20)
    forgotten, done = told
    assert isinstance(forgotten, EndedAdapter) and forgotten.name == first
    assert forgotten.seconds >= 0.4 and (done.forgotten, done.exit_code) == ((first,), 0)


def test_answers_of_others_do_not_hold_it(service: S3T, vllm: StandIn, out: Path) -> None:
    sync = kept(service, vllm, out)
    _, second = sync.sync().loaded
    shortened(service, 0)
    under_way(vllm, second, 3, 3)
    under_way(vllm, "", 1, 1)
    assert sync.sync().exit_code == 0
    vllm.tells = "counts"  # now it cannot be told whose they are
    shortened(service, 1)
    done = service.synchroniser("vllm", vllm.url, out, timeout=BRIEF).sync()
    assert done.exit_code == 1 and second in done.problems[0] and not done.forgotten


@pytest.mark.parametrize("tells", ["adapters", pytest.param("counts", marks=pytest.mark.heavy), ""])
def test_what_goes_on_past_the_time_is_a_problem_until_it_has_ended(
    service: S3T, vllm: StandIn, out: Path, tells: str
) -> None:
    kept(service, vllm, out).sync()
    first = next(iter(vllm.loaded))
    shortened(service, 0)
    vllm.tells = tells
    under_way(vllm, first, 1, 0)
    for living in (1, 2):  # the second finds it unloaded, and its folder gone
        done = service.synchroniser("vllm", vllm.url, out, timeout=BRIEF).sync()
        assert done.exit_code == 1 and not done.forgotten and first not in vllm.loaded
        assert first in done.problems[0] and "MAY STILL BE SERVED" in done.problems[0]
        assert len(done.loaded or done.kept) == living, "the living go on"
    if not tells:
        assert "--disable-log-stats" in done.problems[0]
        return
    vllm.at_work.clear()
    done = kept(service, vllm, out).sync()
    assert (done.forgotten, done.exit_code) == ((first,), 0)
    assert kept(service, vllm, out).sync().forgotten == (), "once is enough"


def test_metrics_from_before_prove_nothing(service: S3T, vllm: StandIn, out: Path) -> None:
    """An engine writes its metrics at a step: those of an idle one do not know what just came."""
    sync = kept(service, vllm, out)
    first, _ = sync.sync().loaded
    shortened(service, 0)
    vllm._step()
    under_way(vllm, first, 0, 1)
    assert f'waiting_lora_adapters="{first}"' not in vllm._metrics({})[1]
    done = service.synchroniser("vllm", vllm.url, out, timeout=BRIEF).sync()
    assert not done.forgotten and done.exit_code == 1


def test_an_engine_whose_unloading_waits_needs_no_metrics(
    service: S3T, language_run: RunDir, out: Path
) -> None:
    with StandIn("sglang", language_run.base_path).running() as engine:
        engine.tells = ""
        sync = kept(service, engine, out)
        first, _ = sync.sync().loaded
        shortened(service, 0)
        under_way(engine, first, 1, 1)
        thread, told = in_background(sync)
        time.sleep(0.2)
        assert not told
        engine.at_work.clear()
        engine.queued.clear()
        thread.join(20)
        assert [type(one) for one in told] == [EndedAdapter, Sync] and told[1].exit_code == 0
        # unloaded by another, nothing is known of what runs
        (second,) = {*engine.loaded} - {*told[1].loaded}
        shortened(service, 1)
        del engine.loaded[second]
        done = sync.sync()
        assert done.exit_code == 1 and "--enable-metrics" in done.problems[0]


def test_one_that_never_answers_holds_no_other(service: S3T, engine: StandIn, out: Path) -> None:
    sync = service.synchroniser(engine.target, engine.url, out, timeout=0.5)
    first, second = sync.sync().loaded
    shortened(service, 0)
    shortened(service, 1)
    let_go = threading.Event()
    engine.fault = lambda route, body: (
        let_go.wait(30) and None
        if route == UNLOAD[engine.target] and body["lora_name"] == first
        else None
    )
    thread, told = in_background(sync)
    until(lambda: bool(told))
    assert told[0].name == second and told[0].seconds < 0.5
    thread.join(30)
    let_go.set()
    done = told[-1]
    assert (done.forgotten, done.exit_code) == ((second,), 5) and first in done.problems[0]
    assert len(done.loaded) == 2, "what lives is loaded"
    until(lambda: first not in engine.loaded)
    assert sync.sync().exit_code == 0


def test_many_are_unloaded_at_once(service: S3T, vllm: StandIn, out: Path) -> None:
    sync = kept(service, vllm, out)
    names = sync.sync().loaded
    for at in range(8):
        vllm.load(f"{names[0][:-16]}{at:016x}", vllm.loaded[names[0]][0])
    all_of_them = threading.Barrier(8, timeout=4)  # broken where one waits for another

    def together(route: str, body: dict[str, Any]) -> None:
        if route == UNLOAD["vllm"]:
            all_of_them.wait()

    vllm.fault = together
    assert len(sync.sync().forgotten) == 8 and not all_of_them.broken


def test_a_deletion_comes_before_what_the_engine_is_asked(
    service: S3T, vllm: StandIn, out: Path
) -> None:
    sync = kept(service, vllm, out)
    first, _ = sync.sync().loaded
    slow = threading.Event()
    vllm.fault = lambda route, body: (
        slow.wait(30) and None if route == ASK["vllm"] and first in vllm.loaded else None
    )
    thread, told = in_background(sync)
    time.sleep(0.3)
    shortened(service, 0)
    until(lambda: first not in vllm.loaded)
    slow.set()
    thread.join(20)
    assert (told[0].name, told[-1].exit_code) == (first, 0)
    assert first not in told[-1].kept


# ── names are asked, whatever is listed ──────────────────────────────────────────────────────


def hide(engine: StandIn, name: str) -> None:
    """Answer for a name, and do not list it: another process behind the same address."""
    models = engine._models

    def listing(body: dict[str, Any]) -> tuple[int, Any]:
        status, document = models(body)
        document["data"] = [one for one in document["data"] if one["id"] != name]
        return status, document

    engine._models = listing  # type: ignore[method-assign]
    engine.fault = lambda route, body: (
        engine._no(404, "not found")
        if route == UNLOAD[engine.target] and body["lora_name"] == name
        else None
    )


@BOTH
def test_a_dead_name_that_answers_unlisted_is_a_problem(
    service: S3T, engine: StandIn, out: Path
) -> None:
    sync = kept(service, engine, out)
    first, _ = sync.sync().loaded
    shortened(service, 0)
    hide(engine, first)
    for one in (sync, kept(service, engine, out)):
        done = one.sync()
        assert (done.forgotten, done.exit_code) == ((), 1)
        assert f"{first} ANSWERS" in done.problems[0]
    del engine.loaded[first]
    assert sync.sync().forgotten == (first,)
    engine.load(first, str(out / done.kept[0]))  # and again, after it was forgotten
    assert f"{first} ANSWERS" in sync.sync().problems[0]
    under_way(engine, first, 1, 0)
    del engine.loaded[first]
    last = service.synchroniser(engine.target, engine.url, out, timeout=BRIEF).sync()
    assert last.exit_code == 1, "it has to be seen to end once more"


def test_an_engine_that_refuses_all_it_is_asked_refuses_no_adapter(
    service: S3T, engine: StandIn, out: Path
) -> None:
    sync = kept(service, engine, out)
    first, _ = sync.sync().loaded
    shortened(service, 0)
    engine.fault = lambda route, body: (
        engine._no(400, "logprobs are off") if route == ASK[engine.target] else None
    )
    done = sync.sync()
    assert done.forgotten == () and done.exit_code
    assert first in done.problems[0] and "its base does not answer" in done.problems[0]
    engine.fault = lambda route, body: None
    assert sync.sync().forgotten == (first,)


def test_a_load_under_way_is_waited_for_by_what_ends_with_it(
    service: S3T, engine: StandIn, out: Path
) -> None:
    """Engines hold a lock for each name: an adapter that died while it was read comes and goes."""
    lock, reading, go_on = threading.Lock(), threading.Event(), threading.Event()
    load, unload = engine._load, engine._unload

    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        if go_on.is_set():
            return load(body)
        with lock:
            reading.set()
            found = load(body)  # read, and listed a moment later
            held = engine.loaded.pop(body["lora_name"])
            assert go_on.wait(20)
            engine.loaded[body["lora_name"]] = held
        return found

    def after(body: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            return unload(body)

    engine._load, engine._unload = slow, after  # type: ignore[method-assign]
    thread, told = in_background(kept(service, engine, out))
    assert reading.wait(20)
    (name,) = {name for _, route, name in engine.calls if route == LOAD[engine.target]}
    until(lambda: not engine.loaded)
    shortened(service, 0)
    shortened(service, 1)
    threading.Timer(0.2, go_on.set).start()
    done = kept(service, engine, out).sync()
    assert name not in engine.loaded, "it came only after it was said to be forgotten"
    thread.join(20)
    assert (done.exit_code, told[-1].exit_code) == (0, 0) and name not in engine.loaded


def test_a_deletion_does_not_wait_for_an_adapter_that_is_loaded(
    service: S3T, vllm: StandIn, out: Path
) -> None:
    sync = kept(service, vllm, out)
    first, second = sync.sync().loaded
    del vllm.loaded[second]
    let_go = threading.Event()
    vllm.fault = lambda route, body: (
        let_go.wait(20) and None if route == LOAD["vllm"] and body["lora_name"] == second else None
    )
    thread, told = in_background(sync)
    until(lambda: ("POST", LOAD["vllm"], second) in vllm.calls[-3:])
    shortened(service, 0)
    until(lambda: any(isinstance(one, EndedAdapter) for one in told))
    assert told[0].name == first and not let_go.is_set()
    let_go.set()
    thread.join(20)
    assert told[-1].exit_code == 0 and len(vllm.loaded) == 2


def test_what_is_dead_is_unloaded_though_nothing_can_be_written(
    service: S3T, engine: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    shortened(service, 0)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("s3t.run.files.exports.write_durably", full)
        done = sync.sync()
    assert done.forgotten == (first,) and {*engine.loaded} == {second}
    assert done.exit_code and any("No space left" in one for one in done.problems)
    assert sync.sync().exit_code == 0 and len(engine.loaded) == 2


def test_a_listed_name_that_is_refused_is_a_problem(
    service: S3T, engine: StandIn, out: Path
) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    refused = (404, {"error": {"message": "no such model"}})
    engine.fault = lambda route, body: (
        refused if route == ASK[engine.target] and asked(body) == first else None
    )
    for _ in range(2):
        done = sync.sync()
        assert done.exit_code == 1 and first in done.problems[0] and done.kept == (second,)
    engine.fault = lambda route, body: None
    assert sync.sync().loaded == (first,)
    assert sync.sync().exit_code == 0


def test_an_engine_that_is_broken_keeps_what_lives(
    service: S3T, engine: StandIn, out: Path
) -> None:
    sync = kept(service, engine, out)
    names = sync.sync().loaded
    engine.fault = lambda route, body: (500, "oops") if route == ASK[engine.target] else None
    assert sync.sync().exit_code == 1 and {*engine.loaded} == {*names}


def test_names_that_answer_as_others_are_problems(service: S3T, engine: StandIn, out: Path) -> None:
    sync = kept(service, engine, out)
    first, second = sync.sync().loaded
    (path, one), (other_path, other) = engine.loaded[first], engine.loaded[second]
    base = engine._base
    for wrong in ({first: other, second: one}, {first: base}, {first: other}):
        engine.loaded |= {
            name: (path if name == first else other_path, model) for name, model in wrong.items()
        }
        done = sync.sync()
        assert done.exit_code == 1 and len(done.problems) == len(wrong)
        assert "answers otherwise" in done.problems[0] and "as " in done.problems[0]
        assert {*done.loaded} == {*wrong}, "put right all the same"
        assert sync.sync().exit_code == 0


@pytest.mark.parametrize("shard", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_the_new_name_that_answers_as_the_dead_one_is_a_problem(
    service: S3T, engine: StandIn, out: Path, shard: int
) -> None:
    sync = kept(service, engine, out)
    dead = engine.loaded[sync.sync().loaded[shard]][1]
    shortened(service, shard)
    (new,) = sync.sync().loaded
    engine.loaded[new] = (engine.loaded[new][0], dead)
    assert "answers otherwise" in sync.sync().problems[0]


def test_an_adapter_that_nothing_tells_apart_is_refused(
    service: S3T, vllm: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.export.questions import choose, read_questions

    first, second = kept(service, vllm, out).sync().loaded
    found = read_questions(out / first)
    one = choose(found, {second: read_questions(out / second)})
    assert one.apart > 0.01 and len(one.prompts) == 8
    monkeypatch.setattr("s3t.export.sync.probing.read_questions", lambda _: found)
    done = kept(service, vllm, out).sync()
    assert done.exit_code == 1 and f"no probe tells {first} from {second}" in done.problems[0]


def test_an_engine_in_half_precision_is_taken(service: S3T, vllm: StandIn, out: Path) -> None:
    import torch

    vllm._base = vllm._base.bfloat16()
    done = kept(service, vllm, out).sync()
    assert done.exit_code == 0 and 1e-4 < done.difference < 0.5, done.problems
    first, second = done.loaded
    vllm.loaded[first] = (vllm.loaded[first][0], vllm.loaded[second][1])
    assert "answers otherwise" in kept(service, vllm, out).sync().problems[0]
    assert torch.bfloat16 in {one.dtype for one in vllm._base.parameters()}


# ── killed anywhere ──────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    pass


KILLS = [(0, False), *((step, True) for step in range(17))]
"""After how many requests of a sync, and whether the last of them was made."""

USUAL = {(0, False), (1, True), (7, True), (9, True)}
"""Before anything; unloaded; seen to have ended; the new one loaded and not yet probed."""


@pytest.mark.parametrize(
    ("step", "after"),
    [pytest.param(*kill, marks=[] if kill in USUAL else pytest.mark.heavy) for kill in KILLS],
)
def test_killed_anywhere_the_next_sync_finishes_it(
    step: int, after: bool, service: S3T, vllm: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(service, vllm, out).sync()
    dead = next(iter(vllm.loaded))
    shortened(service, 0)
    asked, count = EngineClient._asked, [0]

    def dying(self: EngineClient, *arguments: Any) -> Any:
        if count[0] == step and not after:
            raise Killed
        found = asked(self, *arguments)
        if count[0] == step:
            raise Killed
        count[0] += 1
        return found

    with monkeypatch.context() as patched:
        patched.setattr(EngineClient, "_asked", dying)
        with pytest.raises(Killed):
            kept(service, vllm, out).sync()
    done = kept(service, vllm, out).sync()
    assert done.exit_code == 0 and dead not in vllm.loaded
    assert {*vllm.loaded} == {*done.loaded, *done.kept}
    assert sorted(path.name for path in out.glob("s3t-*-*")) == sorted(vllm.loaded)
    assert not kept(service, vllm, out).sync().changed


def test_an_answer_that_is_lost_is_asked_for_again(
    service: S3T, engine: StandIn, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, count = EngineClient._once, [0]

    def lossy(self: EngineClient, *arguments: Any) -> Any:
        found = once(self, *arguments)
        count[0] += 1
        if count[0] % 2:
            raise ConnectionResetError("gone")
        return found

    monkeypatch.setattr(EngineClient, "_once", lossy)
    done = kept(service, engine, out).sync()
    assert done.exit_code == 0 and len(engine.loaded) == 2
    shortened(service, 0)
    done = kept(service, engine, out).sync()
    assert done.exit_code == 0 and len(done.forgotten) == 1


# ── engines that refuse ──────────────────────────────────────────────────────────────────────


@BOTH
def test_an_engine_that_does_not_load_at_runtime(service: S3T, engine: StandIn, out: Path) -> None:
    engine.runtime = False
    done = kept(service, engine, out).sync()
    hint = {"vllm": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "sglang": "--enable-lora"}[engine.target]
    assert done.exit_code == 1 and hint in done.problems[0]


@BOTH
def test_a_rank_that_is_too_great(service: S3T, engine: StandIn, out: Path) -> None:
    engine.max_rank = 1
    done = kept(service, engine, out).sync()
    assert done.exit_code == 1 and "greater than max_lora_rank 1" in done.problems[0]
    least = {"vllm": 8, "sglang": 2}[engine.target]
    assert f"needs --max-lora-rank {least}" in done.problems[0]


def test_an_engine_that_cannot_be_reached(service: S3T, vllm: StandIn, out: Path) -> None:
    (first, _) = kept(service, vllm, out).sync().loaded
    shortened(service, 0)
    vllm.fault = lambda route, body: (503, "busy")
    with pytest.raises(UnavailableError, match=f"503.*may still serve {first}"):
        kept(service, vllm, out).sync()
    assert not (out / first).exists(), "it cannot be loaded again"
    gone = service.synchroniser("vllm", "http://127.0.0.1:9", out, timeout=1)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        gone.sync()


def test_urls_and_targets_that_are_refused(service: S3T, out: Path) -> None:
    for url in ("127.0.0.1:8000", "ftp://host", "http://user:secret@host", "http://host:x", ""):
        with pytest.raises(InputError) as caught:
            service.synchroniser("vllm", url, out)
        assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="ollama"):
        service.synchroniser("ollama", "http://host", out)


def test_what_is_no_engine(service: S3T, vllm: StandIn) -> None:
    vllm.fault = lambda route, body: (200, "<html>")
    with pytest.raises(EngineError, match="does not list"):
        connect("vllm", EngineClient(vllm.url)).listed()
    vllm.fault = lambda route, body: (200, {"choices": []})
    with pytest.raises(Exception, match="is this vllm"):
        connect("vllm", EngineClient(vllm.url)).ask("x", [1])


# ── from the command line ────────────────────────────────────────────────────────────────────


def test_the_command(
    language_run: RunDir, vllm: StandIn, out: Path, tmp_path: Path, s3t: Run
) -> None:
    vllm.key = "the-key"
    (tmp_path / "key").write_text("the-key\n")
    words = ("sync", language_run.root, vllm.url + "/v1", "--target", "vllm")
    refused = s3t(*words, "--adapters", out)
    assert refused.code == 1 and "401" in refused.err
    words = (*words, "--api-key-file", tmp_path / "key")
    shown = s3t(*words, "--dry-run", "--adapters", out)
    assert shown.code == 0 and "would be loaded" in shown.out and not vllm.loaded
    done = s3t(*words)
    assert done.code == 0 and done.out.count("answers as the run") == 2, done.err
    assert Path(vllm.loaded[next(iter(vllm.loaded))][0]).parent == tmp_path / "language-adapters"
    assert "the-key" not in done.out + done.err + refused.err
    with S3T.load(language_run.root) as service:
        emptied(service, 0)
    found = json.loads(s3t(*words, "--json").out)
    assert (len(found["forgotten"]), found["without"], found["exit_code"]) == (1, [0], 0)
    said = s3t("sync", language_run.root, vllm.url, "--target", "vllm", "--api-key-file", out / "x")
    assert said.code == 2


def test_watching_follows_the_ledger(
    service: S3T, language_run: RunDir, vllm: StandIn, out: Path
) -> None:
    told: list[Any] = []
    served: list[set[str]] = []

    class Enough(BaseException):
        pass

    def tell(found: Any) -> None:
        told.append(found)
        served.append({*vllm.loaded})
        if ended.is_set():
            raise Enough

    def follow() -> None:
        with S3T.load(language_run.root) as watching, pytest.raises(Enough):
            kept(watching, vllm, out).watch(30.0, tell)

    ended = threading.Event()
    thread = threading.Thread(target=follow)
    thread.start()
    try:
        until(lambda: any(isinstance(one, Watching) for one in told))
        dead = next(iter(vllm.loaded))
        shortened(service, 0)
        until(lambda: dead not in vllm.loaded and len(vllm.loaded) == 2)
    finally:
        ended.set()
        shortened(service, 1)  # so that it looks once more
        thread.join(20)
    assert not thread.is_alive()
    assert [type(one) for one in told[:3]] == [Sync, Watching, EndedAdapter]
    assert len(served[2]) == 1, "told before anything was loaded"
    assert all(one.exit_code == 0 for one in told if isinstance(one, Sync))
    assert (told[1].view, told[1].every, told[2].name) == (told[0].view, 30.0, dead)
