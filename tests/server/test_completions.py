"""``/v1/completions``: whole texts, and texts as they grow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from s3t import S3T
from s3t.errors import ExhaustedError, InputError
from tests.server.test_predict import refused
from tests.support.fake import Gate, Model, served


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path, task="causal-lm")


@pytest.fixture
def client(model: Model) -> Iterator[TestClient]:
    with served(model) as client:
        yield client


def complete(client: TestClient, prompt: Any = "once", **more: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": prompt, **more})


def events(answer: Any) -> list[Any]:
    assert answer.headers["content-type"] == "text/event-stream"
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_texts_are_continued_by_one_view(client: TestClient, model: Model) -> None:
    model.view = 4
    answer = complete(client, ["a", "b"], max_new_tokens=3, temperature=1, seed=2)
    assert answer.json() == {"completions": [{"text": "a …"}, {"text": "b …"}], "view": 4}
    assert answer.headers["x-s3t-view"] == "4"
    assert complete(client, "a").json()["completions"] == [{"text": "a …"}]


def test_a_conversation_is_one_prompt(client: TestClient, model: Model) -> None:
    said = [{"role": "user", "content": "who?"}]
    assert len(complete(client, said).json()["completions"]) == 1
    assert model.asked[0] == said
    events(complete(client, said, stream=True))
    assert model.asked[-1] == (said,)


def test_draws_are_passed_on(client: TestClient, model: Model) -> None:
    how = {"max_new_tokens": 3, "temperature": 0.5, "seed": 2, "top_k": 4, "top_p": 0.9}
    complete(client, "a", **how)
    assert model.asked == ["a", how]


def test_a_text_that_was_hit_is_written_anew(client: TestClient, model: Model) -> None:
    model.holds = [False, True]

    def die() -> None:
        model.view += 1

    model.before = die
    assert complete(client).json()["view"] == 2


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [""]},
        {"prompt": 5},
        {"prompt": "a", "max_new_tokens": 0},
        {"prompt": "a", "max_new_tokens": "3"},
        {"prompt": "a", "max_new_tokens": 10**30},
        {"prompt": "a", "temperature": -1},
        {"prompt": "a", "temperature": 1e999},
        {"prompt": "a", "temperature": True},
        {"prompt": "a", "temperature": "0.5"},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "seed": 2**70},
        {"prompt": "a", "stream": "yes"},
        {"prompt": "a", "stream": True, "strict": "yes"},
        {"prompt": "a", "n": 2},
        {"prompt": "a", "top_k": -1},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "top_p": 1.5},
        {"prompt": "a", "top_p": True},
        {"prompt": [{"role": "user"}]},
        {"prompt": [{"role": "user", "content": "a"}, "b"]},
        {"prompt": [{"role": "user", "content": "a", "name": "b"}]},
        {"prompt": ["a", "b"], "stream": True},
    ],
    ids=repr,
)
def test_what_is_not_a_question_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    text = json.dumps(body).replace("Infinity", "1e999")
    answer = client.post(
        "/v1/completions", content=text, headers={"Content-Type": "application/json"}
    )
    refused(answer, "invalid_body")


def test_bodies_are_read_strictly_here_too(client: TestClient) -> None:
    def send(body: bytes, kind: str = "application/json") -> Any:
        return client.post("/v1/completions", content=body, headers={"Content-Type": kind})

    refused(send(b'{"prompt": "a", "prompt": "b"}'), "invalid_json")
    refused(send(b'{"prompt": "a", "temperature": NaN}'), "invalid_json")
    refused(send(b"[" * 100_000), "invalid_json")
    refused(send(b'{"prompt": "a"}', "text/plain"), "unsupported_media_type")
    refused(send(b""), "invalid_body")
    refused(send(b'{"prompt": "\\ud800"}'), "invalid_body")


def test_a_classifier_writes_nothing(client: TestClient, model: Model) -> None:
    model.task = "text-classification"
    refused(complete(client), "wrong_task")


def test_a_stream_tells_each_piece_with_its_view(client: TestClient, model: Model) -> None:
    views = iter([3, 3, 5, 5])

    def next_view() -> None:
        model.view = next(views)

    model.before = next_view
    assert events(complete(client, "once", stream=True)) == [
        {"text": " once", "view": 3},
        {"text": " upon", "view": 3},
        {"text": " a", "view": 5},
        {"text": " time", "view": 5},
        {"done": True, "views": [3, 5]},
    ]
    assert model.held == [3, 3, 5, 5]


def test_a_piece_whose_view_was_hit_is_written_anew_after_what_was_told(
    client: TestClient, model: Model
) -> None:
    model.holds = [True, True, False, True, True]
    found = events(complete(client, "it was", max_new_tokens=4, stream=True))
    texts = [event["text"] for event in found[:-1]]
    assert texts == [" once", " upon", " a", " time"]
    assert model.asked == [("it was",), ("it was", 0, 1)]


def test_a_strict_stream_is_held_to_the_view_of_its_first_piece(
    client: TestClient, model: Model
) -> None:
    views = iter([3, 3, 5, 5])
    model.before = lambda: setattr(model, "view", next(views))
    assert events(complete(client, "once", stream=True, strict=True))[-1] == {
        "done": True,
        "views": [3, 5],
    }
    assert model.held == [3, 3, 3, 3, 3]  # the last one for its end


@pytest.mark.parametrize("told", [1, 3, 4])
def test_a_strict_stream_that_is_hit_ends_with_its_code(
    client: TestClient, model: Model, told: int
) -> None:
    model.holds, model.sound_from = [True] * told + [False], 1
    *pieces, last = events(complete(client, "once", stream=True, strict=True))
    assert [piece["text"] for piece in pieces] == [" once", " upon", " a", " time"][:told]
    assert last["code"] == "text_hit" and "done" not in last


@pytest.mark.parametrize("told", [0, 2, 4])
def test_a_strict_stream_goes_on_if_the_deletion_was_of_others(
    client: TestClient, model: Model, told: int
) -> None:
    model.holds = [True] * told + [False]
    *pieces, last = events(complete(client, "once", stream=True, strict=True))
    assert [piece["text"] for piece in pieces] == [" once", " upon", " a", " time"]
    assert last["done"] and len(model.asked) == (2 if told == 0 else 1)


def test_an_error_before_the_first_piece_has_its_status(client: TestClient, model: Model) -> None:
    def fail() -> None:
        raise ExhaustedError("nothing is left")

    model.before = fail
    refused(complete(client, stream=True), "exhausted")


def test_an_error_between_pieces_ends_the_stream_with_its_code(
    client: TestClient, model: Model
) -> None:
    calls = iter(range(3))

    def fail() -> None:
        if next(calls) == 2:
            raise ExhaustedError("nothing is left, says /secret/run")

    model.before = fail
    answer = complete(client, stream=True)
    *pieces, last = events(answer)
    assert [piece["text"] for piece in pieces] == [" once", " upon"]
    assert last["code"] == "exhausted" and "secret" not in answer.text


def test_a_prompt_that_does_not_fit_is_refused(client: TestClient, model: Model) -> None:
    def refuse() -> None:
        raise InputError("prompt 0 has 99 tokens: 1 to 5 leave room")

    model.before = refuse
    assert "99 tokens" in refused(complete(client), "invalid_body")


def test_so_many_completions_and_no_more(model: Model) -> None:
    model.before = gate = Gate()
    with served(model, streams=1) as client:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(complete(client)))
        thread.start()
        assert gate.reached.wait(10)
        for stream in (False, True):
            answer = complete(client, stream=stream)
            refused(answer, "overloaded")
            assert answer.headers["retry-after"] == "1"
        gate.open()
        thread.join(10)
        assert first[0].status_code == 200
        assert complete(client, stream=True).status_code == 200


def test_a_text_that_takes_too_long_is_told(model: Model) -> None:
    model.before = gate = Gate()
    with served(model, timeout=0.1, streams=1) as client:
        refused(complete(client), "timeout")
        refused(complete(client), "overloaded")  # its thread is still at work
        gate.open()


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_a_deletion_in_the_middle_ends_a_strict_stream_alone(text_run: Path, strict: bool) -> None:
    class Hit(S3T):
        def stream(self, prompt: Any, **how: Any) -> Iterator[Any]:
            for number, piece in enumerate(super().stream(prompt, **how)):
                if number == 2:
                    self.deactivate(["t05"])
                yield piece

    with Hit.load(text_run) as run:
        run.join()
        with served(run) as client:
            answer = complete(client, "private line", max_new_tokens=6, stream=True, strict=strict)
    *pieces, last = events(answer)
    if strict:
        assert [piece["view"] for piece in pieces] == [0, 0] and last["code"] == "text_hit"
    else:
        assert [piece["view"] for piece in pieces[:3]] == [0, 0, 1] and last["views"] == [0, 1]


@pytest.mark.slow
def test_a_real_run_streams_what_it_generates(text_run: Path) -> None:
    with S3T.load(text_run) as run:
        run.join()
        with served(run) as client:
            whole = complete(client, "private line", max_new_tokens=6).json()
            *pieces, last = events(complete(client, "private line", max_new_tokens=6, stream=True))
            assert "".join(piece["text"] for piece in pieces) == whole["completions"][0]["text"]
            assert last == {"done": True, "views": [0]}
            refused(complete(client, "a " * 100), "invalid_body")
            deleted = client.post("/v1/deletions", json={"subjects": ["p03"]})
            assert deleted.status_code == 201
            assert complete(client, "private line", max_new_tokens=6).json()["view"] == 1
