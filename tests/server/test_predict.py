"""``/v1/predict`` over HTTP: what it takes, what it refuses, and when an answer may leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from s3t import S3T
from s3t.errors import ExhaustedError, IntegrityError, UnavailableError
from s3t.server.http.problems import CODES, MEDIA_TYPE
from tests.support.fake import Model, served

IMAGES = "image-classification"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path)


@pytest.fixture
def client(model: Model) -> Iterator[TestClient]:
    with served(model) as client:
        yield client


def predict(client: TestClient, rows: Any, **more: Any) -> Any:
    return client.post("/v1/predict", json={"rows": rows}, **more)


def sent(client: TestClient, body: bytes, kind: str = "application/json") -> Any:
    return client.post("/v1/predict", content=body, headers={"Content-Type": kind})


def refused(answer: Any, code: str) -> str:
    """The detail of a refusal that has the one shape."""
    body = answer.json()
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert (answer.status_code, body["code"]) == (CODES[code].status, code), body
    assert body["title"] == CODES[code].title
    assert set(body) >= {"type", "title", "status", "code", "detail"}
    return str(body["detail"])


def test_rows_are_answered_with_label_probabilities_and_view(
    client: TestClient, model: Model
) -> None:
    model.view = 7
    answer = predict(client, ["a", {"text": "b", "other": 1}])
    one = {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}
    assert answer.json() == {"predictions": [one, one], "view": 7}
    assert answer.headers["x-s3t-view"] == "7"
    assert model.passes == [["a", "b"]]


def test_images_reach_the_model_as_arrays(client: TestClient, model: Model) -> None:
    model.task = IMAGES
    assert predict(client, [[[0, 255], [3, 4]], [[[0.5], [1]]]]).status_code == 200
    whole, fractions = model.passes[0]
    assert whole.dtype == np.uint8 and whole.tolist() == [[0, 255], [3, 4]]
    assert fractions.dtype == np.float32 and fractions.shape == (1, 2, 1)


@pytest.mark.parametrize(
    "row",
    [
        "/etc/passwd",
        {"image": "/etc/passwd"},
        {"image": {"path": "/etc/passwd"}},
        {"image": {"bytes": "R0lGODlh"}},
        {"picture": [[0]]},
        [["/etc/passwd"]],
        [],
        [[]],
        [0, 1],
        [[[[0]]]],
        [[0, 1], [2]],
        [[0, None]],
        [[0, True, "1"]],
        [[256]],
        [[-1]],
        [[1.5]],
        [[-0.1]],
        [[10**30]],
        [[1e300]],
        5,
        None,
        True,
    ],
    ids=repr,
)
def test_images_are_nested_lists_of_numbers_and_nothing_else(
    client: TestClient, model: Model, row: Any
) -> None:
    model.task = IMAGES
    assert "row 1: " in refused(predict(client, [[[0]], row]), "invalid_body")
    assert not model.passes


@pytest.mark.parametrize("row", ["", " \n", 5, None, ["a"], {"text": ""}, {"texts": "a"}], ids=repr)
def test_texts_are_strings_that_are_not_blank(client: TestClient, model: Model, row: Any) -> None:
    assert "row 0: " in refused(predict(client, [row]), "invalid_body")
    assert not model.passes


def test_pairs_are_objects_or_lists_of_two_texts(client: TestClient, model: Model) -> None:
    data = model.config.data
    columns = data.columns.model_copy(update={"text_pair": "more"})
    changed = data.model_copy(update={"columns": columns})
    model.config = model.config.model_copy(update={"data": changed})
    assert predict(client, [{"text": "a", "more": "b"}, ["c", "d"]]).status_code == 200
    assert model.passes == [[("a", "b"), ("c", "d")]]
    for row in ("a", ["a"], ["a", 3], {"text": "a"}, {"text": "a", "more": " "}):
        assert "row 1: " in refused(predict(client, [["a", "b"], row]), "invalid_body")


def test_half_a_letter_is_no_text(client: TestClient, model: Model) -> None:
    refused(sent(client, b'{"rows": ["a\\ud800"]}'), "invalid_body")
    assert not model.passes


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"rows": [NaN]}', "invalid_json"),
        (b'{"rows": [-Infinity]}', "invalid_json"),
        (b'{"rows": ["a"], "rows": ["b"]}', "invalid_json"),
        (b'{"rows": [{"text": "a", "text": "b"}]}', "invalid_json"),
        (b'{"rows": ["\xff"]}', "invalid_json"),
        (b'\xef\xbb\xbf{"rows": ["a"]}', "invalid_json"),
        (b'{"rows": [' + b"1" * 5000 + b"]}", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"rows": ' + b"[" * 500 + b"]" * 500 + b"}", "invalid_body"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b'"rows"', "invalid_body"),
        (b"{}", "invalid_body"),
        (b'{"rows": []}', "invalid_body"),
        (b'{"rows": "a"}', "invalid_body"),
        (b'{"rows": ["a"], "view": 3}', "invalid_body"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bodies_that_two_readers_could_take_for_two_things_are_refused(
    client: TestClient, model: Model, body: bytes, code: str
) -> None:
    refused(sent(client, body), code)
    assert not model.passes


def test_the_body_has_to_be_called_json(client: TestClient) -> None:
    body = b'{"rows": ["a"]}'
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "jsonapplication/json"):
        refused(sent(client, body, kind), "unsupported_media_type")
    for kind in ("application/json; charset=utf-8", "application/vnd.x+json", "Application/JSON"):
        assert sent(client, body, kind).status_code == 200


def test_so_many_rows_and_bytes_and_no_more(model: Model) -> None:
    with served(model, request_rows=2, body_bytes=100) as client:
        assert predict(client, ["a", "b"]).status_code == 200
        refused(predict(client, ["a", "b", "c"]), "too_many_rows")
        refused(predict(client, ["a" * 100]), "body_too_large")
        pieces = iter([b'{"rows": ["', b"a" * 60, b"a" * 60, b'"]}'])
        answer = client.post(
            "/v1/predict", content=pieces, headers={"Content-Type": "application/json"}
        )
        assert "content-length" not in answer.request.headers
        refused(answer, "body_too_large")
    assert model.passes == [["a", "b"]]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ExhaustedError("run /secret/run: nothing"), "exhausted"),
        (UnavailableError("/secret/ledger"), "unavailable"),
        (IntegrityError("node 12 (/secret/file)"), "damaged"),
        (RuntimeError("/secret/reason"), "internal"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_inside_stays_inside(
    client: TestClient,
    model: Model,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
) -> None:
    model.error = error
    answer = predict(client, ["a person's text"])
    refused(answer, code)
    assert "secret" not in answer.text + str(answer.headers)
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)
    assert "person" not in caplog.text
    if code == "internal":
        number = answer.json()["instance"].rpartition(":")[2]
        assert number in caplog.text and "RuntimeError" in caplog.text
        assert "secret" not in caplog.text


def test_a_bad_row_is_named_by_its_own_number(client: TestClient, model: Model) -> None:
    assert refused(predict(client, ["bad"]), "invalid_body") == "row 0: it is bad"


def test_a_language_model_does_not_classify(client: TestClient, model: Model) -> None:
    model.task = "causal-lm"
    refused(predict(client, ["a"]), "wrong_task")


def test_an_answer_whose_view_was_hit_is_computed_anew(client: TestClient, model: Model) -> None:
    model.holds = [False, False, True]

    def die() -> None:
        model.view += 1

    model.before = die
    answer = predict(client, ["a"])
    assert answer.json()["view"] == 3
    assert model.held == [1, 2, 3]
    said = client.get("/metrics").text
    assert f's3t_answers_again_total{{run="{model.run_id}"}} 2.0' in said


def test_what_there_is_not_is_refused_in_the_same_shape(client: TestClient) -> None:
    refused(client.get("/v1/predictions"), "not_found")
    refused(client.get("/v1/predict"), "method_not_allowed")
    assert client.get("/v1/predict").headers["allow"] == "POST"


def test_a_real_run_answers_as_the_library_does(digits_run: Path) -> None:
    from sklearn.datasets import load_digits

    images = (load_digits().images[:3] * 15).astype(np.uint8)
    with S3T.load(digits_run) as run, served(run) as client:
        run.join()  # loads the model
        answer = predict(client, [image.tolist() for image in images])
        expected = [
            {"label": found.label, "probabilities": found.probabilities}
            for found in run.predict(list(images))
        ]
        assert answer.json() == {"predictions": expected, "view": 0}
        text = json.dumps({"rows": [str(digits_run / "config.yaml")]}).encode()
        refused(sent(client, text), "invalid_body")
