"""``POST /v1/predict``: rows in, labels and probabilities out.

    body ─► strict JSON ─► rows checked, images as arrays ─► batcher ─► Held answer

Invariant: nothing that came over the network is ever opened as a path. A row is judged here as far
as it can be without the model, so that it fails its own request and not those of the same pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.responses import Response

from s3t.server.http.held_response import Held, gone
from s3t.server.http.problems import Problem, refusals, sentences
from s3t.server.schemas import PREDICT_BODY, PredictionRequest, Predictions
from s3t.server.security.access import Guarded, needs
from s3t.server.security.bodies import DirectRoute, check_json, loads
from s3t.server.state import Service, service_of

if TYPE_CHECKING:
    from s3t.serving.predictor import Prediction

__all__ = ["router", "rows_of"]


class _Route(Guarded, DirectRoute):
    """Guarded, and read here."""


router = APIRouter(route_class=_Route, tags=["answers"])

_LARGE = 2**16
"""Bytes of a body above which it is read in a thread."""

VIEW_HEADER = {
    "X-S3T-View": {
        "description": "version of what answered, as in the body",
        "schema": {"type": "integer"},
    }
}


@router.post(
    "/v1/predict",
    summary="Classify rows",
    dependencies=[needs("predict")],
    response_model=Predictions,
    openapi_extra={"requestBody": PREDICT_BODY},
    responses={
        200: {"headers": VIEW_HEADER},
        **refusals(
            *("invalid_json", "unauthenticated", "forbidden", "body_too_large"),
            *("unsupported_media_type", "invalid_body", "too_many_rows", "wrong_task"),
            *("rate_limited", "internal", "damaged", "overloaded", "exhausted", "unavailable"),
            "timeout",
        ),
    },
)
async def predict(request: Request) -> Response:
    """Label and probabilities of each row. All rows of a request are answered by one view; requests
    of the same moment share a pass of the model."""
    service = service_of(request)
    if service.model.config.task == "causal-lm":
        raise Problem("wrong_task", "the run is a language model: use /v1/completions")
    check_json(request)
    body = await request.body()
    if len(body) > _LARGE:
        rows = await asyncio.to_thread(_rows, service, body)
    else:
        rows = _rows(service, body)

    async def ask() -> Sequence[Prediction]:
        return await service.batcher.ask(rows, gone(request.scope))

    return Held(service.model, service.metrics, await ask(), _content, ask)


def _content(answers: Sequence[Prediction]) -> dict[str, Any]:
    return {
        "predictions": [
            {"label": answer.label, "probabilities": answer.probabilities} for answer in answers
        ],
        "view": answers[0].view,
    }


def _rows(service: Service, body: bytes) -> list[Any]:
    try:
        sent = PredictionRequest.model_validate(loads(body)).rows
    except ValidationError as error:
        raise Problem("invalid_body", sentences(error.errors())) from None
    most = service.config.request_rows
    if len(sent) > most:
        raise Problem("too_many_rows", f"{len(sent)} rows: send up to {most} in one request")
    columns = service.model.config.data.columns
    if service.model.config.task == "image-classification":
        return rows_of(sent, columns.image, _image)
    if columns.text_pair is not None:
        return [*zip(*_sides(sent, columns.text, columns.text_pair), strict=True)]
    return rows_of(sent, columns.text, _text)


def _sides(sent: Sequence[Any], first: str, second: str) -> tuple[list[Any], list[Any]]:
    """The first and the second texts of rows of two, objects or lists."""
    names = first, second
    rows = []
    for number, row in enumerate(sent):
        pair = isinstance(row, list) and len(row) == len(names)
        rows.append(dict(zip(names, row, strict=True)) if pair else row)
        if not isinstance(rows[-1], Mapping):
            problem = f"row {number}: two texts are expected, {first!r} and {second!r}"
            raise Problem("invalid_body", problem)
    return rows_of(rows, first, _text), rows_of(rows, second, _text)


def rows_of(sent: Sequence[Any], column: str, read: Any) -> list[Any]:
    """What the model takes of each row.

    Args:
        sent: JSON values.
        column: of the input, in rows that are objects.
        read: one value to what the model takes; raises ValueError with the reason.

    Raises:
        Problem: ``invalid_body``, naming the row.
    """
    found = []
    for number, row in enumerate(sent):
        try:
            if isinstance(row, Mapping) and column not in row:
                raise ValueError(f"the object has no {column!r}")
            found.append(read(row[column] if isinstance(row, Mapping) else row))
        except ValueError as error:
            raise Problem("invalid_body", f"row {number}: {error}") from None
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not blank is expected")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair is no text") from None
    return value


def _image(value: Any) -> NDArray[Any]:
    """[height, width(, channels)], uint8 or float32."""
    if not isinstance(value, list):
        raise ValueError("nested lists [height, width(, channels)] are expected")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError):
        raise ValueError("its lines are of different lengths") from None
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError("nested lists [height, width(, channels)] are expected")
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and array.min() >= 0 and array.max() <= 1:
        return array.astype(np.float32)
    raise ValueError("pixels are integers from 0 to 255, or fractions from 0 to 1")
