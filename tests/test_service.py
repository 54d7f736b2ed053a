"""The live object: what answers, and that nothing deleted does, across threads and processes."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from s3t import S3T
from s3t.config import load_config
from s3t.data import load_public
from s3t.errors import DamagedNodeError, ExhaustedError, InputError, IntegrityError
from s3t.ledger import Deletion
from s3t.run import RunDir
from s3t.run.deletion import delete
from s3t.run.opened import OpenRun
from s3t.serving.predictor import Prediction, Predictor
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
"""Seconds after which a test that waits has failed."""

Flip = Callable[[Path], None]


@pytest.fixture
def service(digits_run: Path) -> Iterator[S3T]:
    with S3T.load(digits_run) as opened:
        yield opened


@pytest.fixture
def texts(text_run: Path) -> Iterator[S3T]:
    with S3T.load(text_run) as opened:
        yield opened


@pytest.fixture(scope="session")
def images(digits_training: tuple[Path, Any]) -> list[np.ndarray]:
    config = load_config(digits_training[0] / "config.yaml")
    rows = load_public(config, "test", [str(digit) for digit in range(10)])
    return [rows.inputs[number] for number in range(6)]


def one_of_each(run: Path) -> dict[tuple[int, int], list[str]]:
    """Sample ids by slot."""
    found: dict[tuple[int, int], list[str]] = {}
    with RunDir.existing(run).ledger() as ledger:
        for entry in ledger.samples():
            found.setdefault((entry.shard, entry.slice), []).append(entry.sample_id)
    return found


def chances(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([list(one.probabilities.values()) for one in predictions])


def exhaust(run: Path) -> None:
    with closing(OpenRun(RunDir.existing(run))) as forgetting:
        ids = [names[0] for names in one_of_each(run).values()]
        assert delete(forgetting, Deletion(ids)).expected_deletions_left == 0


def node_file(run: Path, key: str) -> Path:
    return run / "nodes" / f"{key}.safetensors"


class Blocked:
    """Holds the first computation of an answer until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        plain, first = Predictor.predictions, threading.Lock()

        def predictions(model: Predictor, *arguments: Any) -> list[Prediction]:
            if first.acquire(blocking=False):
                self.inside.set()
                assert self.go_on.wait(PATIENCE)
            return plain(model, *arguments)

        monkeypatch.setattr(Predictor, "predictions", predictions)


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = call()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def done(self, seconds: float = PATIENCE) -> Any:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "still waiting"
        if self.error is not None:
            raise self.error
        return self.result

    def waits(self) -> bool:
        self.thread.join(0.15)
        return self.thread.is_alive()


# ── threads ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("deletions", [6, pytest.param(16, marks=pytest.mark.heavy)])
def test_answers_while_samples_are_forgotten(
    deletions: int, digits_run: Path, images: list[np.ndarray], tmp_path: Path
) -> None:
    """No answer fails, none is older than an acknowledged deletion, each is that of its view."""
    reference = Path(shutil.copytree(digits_run, tmp_path / "reference"))
    slots = one_of_each(digits_run)
    last = (3, 3)  # this slot stays, so that something serves to the end
    order = [slots[slot][0] for slot in sorted(slots, key=lambda s: (s[1], s[0])) if slot != last]
    order[4:4] = [slots[0, 0][1]]  # one that hits nothing new: another view of the same nodes
    order = order[:deletions]
    acknowledged, over = 0, threading.Event()
    answers: list[tuple[int, list[Prediction]]] = []
    failures: list[BaseException] = []

    def ask(service: S3T) -> None:
        try:
            while not over.is_set():
                floor = acknowledged
                answers.append((floor, service.predict(images)))
        except BaseException as error:
            failures.append(error)

    with S3T.load(digits_run) as service:
        service.predict(images)
        readers = [threading.Thread(target=ask, args=(service,)) for _ in range(4)]
        for reader in readers:
            reader.start()
        for number, name in enumerate(order, start=1):
            receipt = service.deactivate([name])
            acknowledged = receipt.view
            assert receipt.view == number
            wanted = len(answers) + 3
            while len(answers) < wanted and not failures:
                over.wait(0.001)
        over.set()
        for reader in readers:
            reader.join(PATIENCE)
    assert failures == []

    expected = []
    for view in range(len(order) + 1):
        if view:
            with closing(OpenRun(RunDir.existing(reference))) as forgetting:
                delete(forgetting, Deletion([order[view - 1]]))
        with S3T.load(reference) as fresh:
            expected.append(chances(fresh.predict(images)))
    steps = [np.abs(a - b).max() for a, b in pairwise(expected)]
    assert min(step for number, step in enumerate(steps) if number != 4) > 1e-3, steps
    assert steps[4] == 0

    assert len({answer[0].view for _, answer in answers}) > len(order) // 2
    for floor, answer in answers:
        assert len({one.view for one in answer}) == 1
        view = answer[0].view
        assert view >= floor
        np.testing.assert_allclose(chances(answer), expected[view], atol=2e-6)


def test_deactivate_waits_for_answers_on_the_old_view(
    service: S3T, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, digits_run: Path
) -> None:
    slots = one_of_each(digits_run)
    blocked = Blocked(monkeypatch)
    asked = Background(lambda: service.predict(images))
    assert blocked.inside.wait(PATIENCE)
    assert service.deactivate([slots[0, 0][0]], dry_run=True).view == 1  # waits for nobody
    forgotten = Background(lambda: service.deactivate([slots[0, 0][0]]))
    assert forgotten.waits()
    # durable and in force already, for whoever asks now
    assert service.predict(images)[0].view == 1
    same = Background(lambda: service.deactivate([slots[0, 0][0]]))
    assert same.waits(), "one that finds it deleted already must wait as well"
    blocked.go_on.set()
    assert forgotten.done().view == 1
    assert same.done().already_deleted == (slots[0, 0][0],)
    assert asked.done()[0].view == 1  # what it had computed had seen the sample


def test_an_answer_that_saw_nothing_deleted_may_be_of_the_old_view(
    service: S3T, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, digits_run: Path
) -> None:
    first, second = one_of_each(digits_run)[0, 0][:2]
    service.deactivate([first])
    blocked = Blocked(monkeypatch)
    asked = Background(lambda: service.predict(images))
    assert blocked.inside.wait(PATIENCE)
    forgotten = Background(lambda: service.deactivate([second]))
    assert forgotten.waits()
    blocked.go_on.set()
    assert (asked.done()[0].view, forgotten.done().view) == (1, 2)


def test_another_one_deletes_while_an_answer_is_computed(
    service: S3T, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, digits_run: Path
) -> None:
    """As another process would: it waits for our answer, which is computed again."""
    blocked = Blocked(monkeypatch)
    asked = Background(lambda: service.predict(images))
    assert blocked.inside.wait(PATIENCE)
    with S3T.load(digits_run) as other:
        deleting = Background(lambda: other.deactivate([one_of_each(digits_run)[2, 1][0]]))
        wait_for(lambda: other.status().view == 1)
        assert deleting.thread.is_alive(), "an answer on the view before is under way"
        blocked.go_on.set()
        assert deleting.done().effective_at is not None
    answer = asked.done()
    assert answer[0].view == 1
    with S3T.load(digits_run) as fresh:
        np.testing.assert_allclose(chances(answer), chances(fresh.predict(images)), atol=2e-6)


def test_deletions_of_several_threads_are_one_after_another(
    service: S3T, images: list[np.ndarray], digits_run: Path
) -> None:
    service.predict(images)
    ids = [names[0] for names in one_of_each(digits_run).values()][:8]
    calls = [Background(lambda name=name: service.deactivate([name])) for name in ids]  # type: ignore[misc]
    assert sorted(call.done().view for call in calls) == list(range(1, 9))
    assert service.predict(images)[0].view == 8


def test_the_first_answers_come_at_once_from_many_threads(
    service: S3T, images: list[np.ndarray]
) -> None:
    calls = [Background(lambda: service.predict(images)) for _ in range(6)]
    found = [call.done() for call in calls]
    assert all(one == found[0] for one in found)


# ── processes, crashes ───────────────────────────────────────────────────────────────────────

ANSWERS = """
import sys
import numpy as np
from s3t import S3T
with S3T.load(sys.argv[1]) as service:
    for _ in sys.stdin:
        answer = service.predict([np.zeros((8, 8), dtype=np.uint8)])[0]
        print(answer.view, *answer.probabilities.values(), flush=True)
"""

DELETES = """
import sys, time
from s3t import S3T
service = S3T.load(sys.argv[1])
print(service.deactivate([sys.argv[2]]).view, flush=True)
time.sleep(600)
"""


def started(code: str, *words: object) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.heavy
def test_another_process_sees_a_deletion_before_its_next_answer(
    service: S3T, digits_run: Path
) -> None:
    process = started(ANSWERS, digits_run)
    assert process.stdin and process.stdout

    def ask() -> tuple[int, list[float]]:
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        view, *values = process.stdout.readline().split()
        return int(view), [float(value) for value in values]

    try:
        blank = [np.zeros((8, 8), dtype=np.uint8)]
        before = ask()
        assert before[0] == 0
        for number, slot in enumerate([(0, 0), (1, 1), (2, 2)], start=1):
            service.deactivate([one_of_each(digits_run)[slot][0]])
            view, values = ask()
            assert view == number
            np.testing.assert_allclose(values, chances(service.predict(blank))[0], atol=2e-6)
        assert np.abs(np.array(values) - before[1]).max() > 1e-3
    finally:
        process.kill()
        process.communicate()


def test_an_acknowledged_deletion_survives_a_kill(digits_run: Path) -> None:
    name = one_of_each(digits_run)[1, 0][0]
    process = started(DELETES, digits_run, name)
    assert process.stdout
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with S3T.load(digits_run) as again:
        status = again.status()
        assert (status.view, status.deleted) == (1, 1)
        assert 0 not in status.shards[1].prefix and status.shards[1].slices_hit == (0,)
        assert again.deactivate([name]).already_deleted == (name,)


# ── damage ───────────────────────────────────────────────────────────────────────────────────


def flip_tensors(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b"score") + 9
    content[at] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def replace_by_another(path: Path) -> None:
    other = next(one for one in sorted(path.parent.iterdir()) if one != path)
    shutil.copyfile(other, path)


@pytest.mark.parametrize(
    ("damage", "whose"),
    [
        (flip_tensors, "the node"),
        (cut_short, "the node"),
        *(
            (damage, whose)
            for damage in (flip_header, replace_by_another, lambda p: p.write_bytes(b""))
            for whose in ("the node", "its first ancestor")
        ),
    ],
)
def test_a_damaged_node_that_should_serve_is_an_error(
    digits_run: Path, images: list[np.ndarray], damage: Flip, whose: str
) -> None:
    with closing(OpenRun(RunDir.existing(digits_run))) as forgetting:
        serving = forgetting.catch_up()[1][1]
        assert serving is not None
        lineage = forgetting.plan.forest.lineage(serving.key)
    hurt = serving if whose == "the node" else lineage[0]
    damage(node_file(digits_run, hurt.key))
    with S3T.load(digits_run) as service:
        for ask in (lambda: service.predict(images), service.evaluate):
            with pytest.raises(DamagedNodeError, match="run s3t train again") as caught:
                ask()
            assert caught.value.key == hurt.key


def test_a_nested_prefix_serves_its_last_node_alone(
    digits_run: Path, images: list[np.ndarray]
) -> None:
    with closing(OpenRun(RunDir.existing(digits_run))) as forgetting:
        ends = [node for node in forgetting.catch_up()[1] if node is not None]
        before = [one for node in ends for one in forgetting.plan.forest.lineage(node.key)[:-1]]
    with S3T.load(digits_run) as service:
        expected = service.predict(images)
    for node in before:
        flip_tensors(node_file(digits_run, node.key))
    with S3T.load(digits_run) as service:
        assert service.predict(images) == expected


def test_damage_that_does_not_serve_is_no_error(digits_run: Path, images: list[np.ndarray]) -> None:
    """A dead node's file may be anything: it is never read."""
    slots = one_of_each(digits_run)
    with closing(OpenRun(RunDir.existing(digits_run))) as forgetting:
        dead = delete(forgetting, Deletion([slots[1, 2][0]])).nodes_dead
    for key in dead:
        flip_header(node_file(digits_run, key))
    with S3T.load(digits_run) as service:
        assert service.predict(images)[0].view == 1


@pytest.mark.parametrize("damage", [flip_tensors, lambda path: path.unlink()])
def test_a_damaged_fallback_does_not_fail_a_deletion(
    service: S3T,
    digits_run: Path,
    images: list[np.ndarray],
    damage: Flip,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.predict(images)
    forest = RunDir.existing(digits_run).plan().forest
    serving = service.status().shards[1].node
    assert serving is not None
    in_memory = {serving}
    for part in range(4):  # a slice whose loss leads to a node that is not in memory yet
        name = one_of_each(digits_run)[1, part][0]
        planned = service.deactivate([name], dry_run=True).prefixes[1].after
        (hurt,) = [node for node in forest.of_shard(1) if node.prefix == planned]
        if hurt.key not in in_memory:
            break
    assert hurt.key not in in_memory
    damage(node_file(digits_run, hurt.key))
    with caplog.at_level(logging.ERROR):
        receipt = service.deactivate([name])
    assert receipt.view == 1 and len(planned) == 3
    assert hurt.key in caplog.text and "serving a shorter prefix" in caplog.text
    assert service.predict(images)[0].view == 1
    shard = service.status().shards[1]
    assert len(shard.prefix) == 2 and part not in shard.prefix
    assert shard.nodes_missing == 1


def test_another_base_is_refused(digits_run: Path, images: list[np.ndarray]) -> None:
    flip_tensors(digits_run / "base/model.safetensors")
    with S3T.load(digits_run) as service, pytest.raises(IntegrityError, match="fingerprint"):
        service.predict(images)


@pytest.mark.parametrize(
    ("section", "key", "value", "what"),
    [
        ("lora", "alpha", 1.0, "lora"),
        ("stage", "isolation", "snapshot", "blocks, stage"),
        ("model", "pooling", "mean", "pooling"),
        ("data", "image_std", [0.25], "encoder"),
    ],
)
def test_another_config_is_refused(
    digits_run: Path, images: list[np.ndarray], section: str, key: str, value: Any, what: str
) -> None:
    config = digits_run / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    assert tree[section][key] != value
    tree[section][key] = value
    config.write_text(yaml.safe_dump(tree))
    with S3T.load(digits_run) as service, pytest.raises(IntegrityError, match=f"another {what}"):
        service.predict(images)


# ── exhausted ────────────────────────────────────────────────────────────────────────────────


def test_exhausted_raises(service: S3T, digits_run: Path, images: list[np.ndarray]) -> None:
    service.predict(images)
    exhaust(digits_run)
    for ask in (lambda: service.predict(images), service.evaluate):
        with pytest.raises(ExhaustedError, match="no shard has a surviving prefix"):
            ask()
    assert service.status().exhausted


@pytest.mark.parametrize("fallback", ["raise", "base"])
def test_nodes_that_are_not_there_are_no_exhaustion(
    digits_run: Path, images: list[np.ndarray], fallback: str
) -> None:
    if fallback == "base":
        on_base(digits_run)
    for node in (digits_run / "nodes").iterdir():
        node.unlink()
    damage = pytest.raises(DamagedNodeError, match="is not trained")
    with S3T.load(digits_run) as service, damage:
        service.predict(images)


def test_nodes_lost_while_serving_fail_the_answers_not_the_deletion(
    digits_run: Path, images: list[np.ndarray]
) -> None:
    on_base(digits_run)
    with S3T.load(digits_run) as service:
        service.predict(images)
        service.serving._model._tensors.clear()  # type: ignore[union-attr]
        for node in (digits_run / "nodes").iterdir():
            node.unlink()
        with RunDir(digits_run).ledger() as ledger:
            sample = next(iter(ledger.samples())).sample_id
        assert service.deactivate([sample]).deleted == (sample,)
        with pytest.raises(DamagedNodeError):
            service.predict(images)


def on_base(run: Path) -> None:
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("on_exhausted: raise", "on_exhausted: base"))


def test_exhausted_answers_with_the_public_head(digits_run: Path, images: list[np.ndarray]) -> None:
    from safetensors.torch import load_file

    on_base(digits_run)
    with S3T.load(digits_run) as service:
        before = chances(service.predict(images))
        exhaust(digits_run)
        found = service.predict(images)
        assert {one.view for one in found} == {1}
        model = service.serving._model
        assert model is not None
        base, rows = model._base, model.encode(images)
        with torch.inference_mode():
            hidden = base.run(base.start(rows), 0, base.depth, None)
            head = load_file(digits_run / "base_head.safetensors")
            logits = (
                base.pool(base.finish(hidden), None) @ head["head.weight"].T + head["head.bias"]
            )
        np.testing.assert_allclose(chances(found), logits.softmax(dim=1).numpy(), atol=2e-6)
        assert np.abs(before - chances(found)).max() > 1e-3
        assert 0 <= service.evaluate().value <= 1


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" * 99)])
def test_a_fallback_that_cannot_be_used_is_an_error_before_it_is_needed(
    digits_run: Path, images: list[np.ndarray], damage: Flip
) -> None:
    on_base(digits_run)
    damage(digits_run / "base_head.safetensors")
    with S3T.load(digits_run) as service, pytest.raises(IntegrityError, match="base_head"):
        service.predict(images)


# ── adapters averaged ────────────────────────────────────────────────────────────────────────


def averaged_run(run: Path) -> None:
    config = run / "config.yaml"
    text = config.read_text()
    assert "method: mean-probabilities" in text
    config.write_text(text.replace("method: mean-probabilities", "method: mean-adapters"))


def test_averaged_adapters_are_those_of_the_view(
    digits_run: Path, images: list[np.ndarray]
) -> None:
    from s3t.serving.ensemble.ensemble import Ensemble

    averaged_run(digits_run)
    with S3T.load(digits_run) as service:
        answers = []
        for view in range(3):
            answers.append(chances(service.predict(images)))
            model, current = service.serving._model, service.serving._views.current
            assert model is not None and current is not None and current.view == view
            plan = service._opened.plan
            members = [model._member(node, plan) for node in current.nodes if node is not None]
            lora = model._config.lora
            fresh = Ensemble(model._base, members, lora.alpha / lora.rank, "mean-adapters", "data")
            expected = fresh.probabilities(model.encode(images)).numpy()
            np.testing.assert_allclose(answers[-1], expected, atol=2e-6)
            service.deactivate([one_of_each(digits_run)[view, view][0]])
        assert np.abs(answers[0] - answers[1]).max() > 1e-6
        assert 0 <= service.evaluate().value <= 1


def test_averaged_adapters_fall_back_on_the_base(
    digits_run: Path, images: list[np.ndarray]
) -> None:
    on_base(digits_run)
    exhaust(digits_run)
    with S3T.load(digits_run) as service:
        expected = chances(service.predict(images))
    averaged_run(digits_run)
    with S3T.load(digits_run) as service:
        np.testing.assert_allclose(chances(service.predict(images)), expected, atol=2e-6)


def test_a_language_model_goes_on_with_averaged_adapters(text_run: Path) -> None:
    with S3T.load(text_run) as service:
        apart = service.evaluate()
    averaged_run(text_run)
    with S3T.load(text_run) as service:
        found = service.evaluate()
        assert found.metric == "perplexity"
        assert found.value == pytest.approx(apart.value, rel=0.5) and found.value != apart.value
        assert len(service.generate(["private"], max_new_tokens=4)) == 1


# ── memory ───────────────────────────────────────────────────────────────────────────────────


def test_tensors_of_dead_nodes_leave_memory(
    service: S3T, digits_run: Path, images: list[np.ndarray]
) -> None:
    service.predict(images)
    model = service.serving._model
    assert model is not None
    held = {
        key: [weakref.ref(t) for t in tensors.values()] for key, tensors in model._tensors.items()
    }
    assert len(held) == 4, "one of each shard: a nested prefix serves its last node alone"
    for slot in ((0, 0), (2, 3)):
        dead = set(service.deactivate([one_of_each(digits_run)[slot][0]]).nodes_dead)
        assert dead & held.keys()
        assert not dead & model._tensors.keys()
        gc.collect()
        assert not [key for key in dead & held.keys() for one in held[key] if one() is not None]


def test_stacks_that_hold_a_dead_node_leave_memory(
    service: S3T, digits_run: Path, images: list[np.ndarray]
) -> None:
    service.predict(images * 20)  # enough rows for merged weights

    def stacks() -> dict[int, Any]:
        view = service.serving._views.current
        assert view is not None and view.ensemble is not None
        maps = view.ensemble._stack._maps
        return {id(one): one for layer in maps for one in layer.values()}

    def tensors(one: Any) -> list[Any]:
        return [weakref.ref(tensor) for tensor in (one.a, one.b, one.merged())]

    held = {number: tensors(one) for number, one in stacks().items()}
    service.deactivate([one_of_each(digits_run)[1, 2][0]])
    kept = held.keys() & stacks().keys()
    gc.collect()
    assert len(kept) < len(held)
    for number, references in held.items():
        assert all((one() is not None) == (number in kept) for one in references)


def test_a_deletion_reads_only_nodes_that_have_not_served(
    service: S3T, digits_run: Path, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.predict(images)
    model, read = service.serving._model, []
    assert model is not None
    known, store = set(model._tensors), type(model._run.store)
    plain = store.read

    def reading(self: Any, key: Any) -> Any:
        read.append(key)
        return plain(self, key)

    monkeypatch.setattr(store, "read", reading)
    slots = one_of_each(digits_run)
    for slot in ((0, 3), (2, 1), (0, 0)):
        receipt = service.deactivate([slots[slot][0]])
        assert receipt.nodes_dead
        service.predict(images)
    assert len(read) == len(set(read)) and not set(read) & known
    assert len(read) < 12  # two shards' prefixes at most three times, never all sixteen nodes


def test_another_ones_deletion_frees_memory_at_the_next_answer(
    service: S3T, digits_run: Path, images: list[np.ndarray]
) -> None:
    service.predict(images)
    with S3T.load(digits_run) as other:
        dead = other.deactivate([one_of_each(digits_run)[0, 0][0]]).nodes_dead
    service.predict(images)
    model = service.serving._model
    assert model is not None and not set(dead) & model._tensors.keys()


wait_for = partial(until, seconds=30)


def test_one_that_is_asked_nothing_follows_what_others_delete_and_purge(
    service: S3T,
    digits_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("s3t.serving.file_check._LOOK_SECONDS", 0.0)
    service.join()
    model = service.serving._model
    assert model is not None and service.serving.readiness() is None
    with S3T.load(digits_run) as other:
        dead = other.deactivate([one_of_each(digits_run)[0, 0][0]]).nodes_dead
        other.purge()
        service.status()  # as /metrics do: the schedule is ahead of what serves
        assert set(dead) & model._tensors.keys(), "until it is asked whether it can answer"
        assert service.serving.readiness() is None
        wait_for(lambda: not set(dead) & model._tensors.keys())
        wait_for(lambda: service.serving.readiness() is None)
        with monkeypatch.context() as patched:
            patched.setattr(service.serving, "_build", lambda *_: 1 / 0)
            other.deactivate([one_of_each(digits_run)[1, 0][0]])
            said = "another view cannot be taken up, the log says why"
            wait_for(lambda: service.serving.readiness() == said)
        wait_for(lambda: service.serving.readiness() is None)
        exhaust(digits_run)
        wait_for(lambda: service.serving.readiness() == "exhausted")
    errors = [one.message for one in caplog.records if one.levelname == "ERROR"]
    assert errors == ["another view cannot be taken up: ZeroDivisionError"]


# ── answers ──────────────────────────────────────────────────────────────────────────────────


def test_evaluate_is_accuracy_of_predict(service: S3T, digits_run: Path) -> None:
    labels = [str(digit) for digit in range(10)]
    rows = load_public(load_config(digits_run / "config.yaml"), "test", labels)
    assert rows.labels is not None
    for view in (0, 1):
        found = service.evaluate()
        answers = service.predict(rows.inputs)
        right = sum(labels[t] == a.label for t, a in zip(rows.labels, answers, strict=True))
        assert (found.metric, found.samples, found.view) == ("accuracy", 400, view)
        assert found.value == right / 400
        service.deactivate([one_of_each(digits_run)[0, view][0]])


def test_a_deletion_waits_for_a_part_of_an_evaluation_which_begins_again(
    service: S3T, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, receipts = service.serving.model(), [], []
    tally, victim = model.tally, one_of_each(digits_run)[0, 0][0]

    def deleting(part: slice, ensemble: Any) -> Any:
        asked.append(part)
        if len(asked) == 1:  # in a thread, as another request: it is not held up until the end
            thread = threading.Thread(target=lambda: receipts.append(service.deactivate([victim])))
            thread.start()
            until(lambda: service.ledger.view() == 1)
        elif len(asked) == 2:
            until(lambda: bool(receipts))
        return tally(part, ensemble)

    monkeypatch.setattr(model, "tally", deleting)
    assert len(model.test_parts) > 1
    found = service.evaluate()
    assert receipts[0].effective_at is not None and found.view == 1
    assert asked[-len(model.test_parts) :] == list(model.test_parts)
    assert service.evaluate(lambda: True) is None


def test_predictions_are_whole(service: S3T, images: list[np.ndarray]) -> None:
    found = service.predict(images)
    for one in found:
        assert list(one.probabilities) == [str(digit) for digit in range(10)]
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert one.label == max(one.probabilities, key=lambda name: one.probabilities[name])
    assert service.predict([]) == []


def test_ways_to_give_an_image(service: S3T, images: list[np.ndarray], tmp_path: Path) -> None:
    from PIL import Image

    levels = (images[0] * 255).round().astype(np.uint8)
    Image.fromarray(levels[..., 0]).save(tmp_path / "one.png")
    ways = [levels, levels[..., 0], levels.tolist(), {"image": levels}, tmp_path / "one.png"]
    found = chances(service.predict([*ways, str(tmp_path / "one.png"), images[0]]))
    assert (found[:-1] == found[0]).all()
    assert np.abs(found[-1] - found[0]).max() < 0.02  # fractions are finer than levels


def test_a_run_answers_only_its_task(service: S3T, texts: S3T, images: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="does not generate: use predict"):
        service.generate(["a"])
    with pytest.raises(InputError, match="is a language model: use generate"):
        texts.predict(["a"])


# ── language ─────────────────────────────────────────────────────────────────────────────────


def plain_models(service: S3T) -> list[Any]:
    """Each shard's prefix as an untouched transformers model with its adapters merged in."""
    from safetensors.torch import load_file

    run, models = service._opened.run, []
    lora = service._opened.config.lora
    for node in service._opened.catch_up()[1]:
        if node is None:
            continue
        model = AutoModelForCausalLM.from_pretrained(run.base_path).eval()
        tensors = load_file(node_file(run.root, node.key))  # nested: it holds all that serves
        assert service.serving._model is not None
        for target in service.serving._model._base.targets:
            if target.a in tensors:
                weight = model.transformer.h[target.layer].get_submodule(target.path).weight
                low = tensors[target.a].T @ tensors[target.b].T  # a Conv1D is [in, out]
                weight.data += lora.alpha / lora.rank * low
        models.append(model)
    return models


def mixed(models: Sequence[Any], ids: Sequence[int]) -> torch.Tensor:
    """Mean of the models' next-token probabilities at every place, [T, V]."""
    with torch.inference_mode():
        rows = torch.tensor([list(ids)])
        return torch.stack([model(rows).logits[0].softmax(dim=-1) for model in models]).mean(dim=0)


def greedy(service: S3T, prompt: str, count: int) -> list[int]:
    """The plain loop: the likeliest token of the mixture, up to ``count`` or the closing one."""
    tokenizer = service.serving._model._encoder.tokenizer  # type: ignore[union-attr]
    models, ids = plain_models(service), list(tokenizer(prompt)["input_ids"])[:-1]
    assert len(models) == 2
    added: list[int] = []
    while len(added) < count:
        token = int(mixed(models, ids + added)[-1].argmax())
        if token == tokenizer.eos_token_id:
            break
        added.append(token)
    return added


PROMPTS = ("private line 7", "x", "said", "public line 11 aa")


def test_greedy_is_the_likeliest_token_of_the_mixture(texts: S3T) -> None:
    texts.deactivate(["t05"])
    found = texts.generate(PROMPTS, max_new_tokens=12)
    assert {one.view for one in found} == {1}
    tokenizer = texts.serving._model._encoder.tokenizer  # type: ignore[union-attr]
    for prompt, one in zip(PROMPTS, found, strict=True):
        added = greedy(texts, prompt, 12)
        assert one.completion == tokenizer.decode(added, skip_special_tokens=True)
    assert texts.generate([PROMPTS[0]], max_new_tokens=12) == found[:1]  # whatever stands beside it
    assert len({one.completion for one in found}) > 1


def test_a_completion_ends_at_the_closing_token(
    texts: S3T, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts.generate(["x"], max_new_tokens=1)
    prompt, added = max(
        ((prompt, greedy(texts, prompt, 8)) for prompt in PROMPTS), key=lambda one: len(set(one[1]))
    )
    at = max(number for number, token in enumerate(added) if token not in added[:number])
    encoder = texts.serving._model._encoder  # type: ignore[union-attr]
    ids = encoder.prompt(prompt)
    monkeypatch.setattr(encoder, "prompt", lambda text: ids)  # its cutting knows the closing token
    encoder.tokenizer.eos_token = encoder.tokenizer.convert_ids_to_tokens(added[at])
    cut, _ = texts.generate([prompt, prompt], max_new_tokens=8)
    assert at > 0
    assert cut.completion == encoder.tokenizer.decode(added[:at], skip_special_tokens=True)


def test_draws_follow_the_seed(texts: S3T) -> None:
    def drawn(seed: int, temperature: float) -> str:
        (one,) = texts.generate(["x"], max_new_tokens=20, temperature=temperature, seed=seed)
        return one.completion

    assert drawn(1, 1.0) == drawn(1, 1.0)
    assert len({drawn(seed, 3.0) for seed in range(4)}) > 1
    assert drawn(1, 1e-4) == drawn(2, 0.0)


def test_a_prompt_leaves_room_for_what_is_asked(texts: S3T) -> None:
    assert len(texts.generate(["x" * 27], max_new_tokens=4)) == 1  # 28 tokens and 4 are 32
    with pytest.raises(InputError, match="prompt 1 has 29 tokens: 1 to 28 leave room"):
        texts.generate(["x", "x" * 28], max_new_tokens=4)


def test_perplexity_is_that_of_the_mixture(texts: S3T, text_run: Path) -> None:
    found = texts.evaluate()
    rows = load_public(load_config(text_run / "config.yaml"), "test", ())
    models, lost = plain_models(texts), []
    tokenizer = texts.serving._model._encoder.tokenizer  # type: ignore[union-attr]
    for text in rows.inputs:
        ids = tokenizer(text)["input_ids"]
        chances_ = mixed(models, ids)
        lost += [-math.log(float(chances_[at, token])) for at, token in enumerate(ids[1:])]
    assert (found.metric, found.samples) == ("perplexity", 12)
    assert found.value == pytest.approx(math.exp(sum(lost) / len(lost)), rel=1e-4)


def test_receipts_and_status_of_the_service(texts: S3T) -> None:
    receipt = texts.deactivate(subjects=["p01"], request_id="r")
    assert receipt.deleted == ("t02", "t03") and receipt.seconds > 0
    again = texts.deactivate(subjects=["p01"], request_id="r")
    assert (again.view, again.deleted) == (receipt.view, receipt.deleted)
    assert json.loads(json.dumps(texts.status().to_dict()))["deleted"] == 2


def test_several_open_and_close(digits_run: Path) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(S3T.load(digits_run)) for _ in range(3)]
        opened[0].deactivate([one_of_each(digits_run)[0, 0][0]])
        assert {one.status().view for one in opened} == {1}
