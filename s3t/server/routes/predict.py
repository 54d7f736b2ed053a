"""``POST /v1/predict``: classifies rows.

    body ─► strict JSON ─► rows checked, images as arrays ─► batcher ─► HeldResponse

Invariants: no value of a request is ever opened as a path. Rows are checked here as far as that
goes without the model, so that a wrong row fails its own request and not those of the same batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response

from s3t.server.http.held_response import VIEW, VIEW_HEADER, HeldResponse, gone
from s3t.server.http.problems import Problem, refusals, sentences
from s3t.server.security.access import AuthorizedRoute, requires_role
from s3t.server.security.bodies import DirectRoute, StrictBody, check_json, loads
from s3t.server.state import Service, service_of

if TYPE_CHECKING:
    from s3t.serving.predictor import Prediction

__all__ = ["router", "rows_of"]


class _Route(AuthorizedRoute, DirectRoute):
    """Checks the token; its endpoint reads the body itself."""


router = APIRouter(route_class=_Route, tags=["answers"])

_LARGE = 2**16
"""Bytes of a body above which it is parsed in a thread."""


class PredictionRequest(StrictBody):
    """Rows to classify."""

    rows: list[Any] = Field(
        min_length=1,
        description="texts; or images as nested lists [height, width(, channels)] of integers "
        "from 0 to 255 or fractions from 0 to 1; or objects with the run's input column",
    )


class RowPrediction(BaseModel):
    """One classified row."""

    label: str = Field(description="the likeliest one")
    probabilities: dict[str, float] = Field(description="of every label")


class Predictions(BaseModel):
    """Classified rows, in the order in which they were sent."""

    predictions: list[RowPrediction]
    view: int = Field(description=VIEW)


_NUMBER = {"type": "number", "minimum": 0, "maximum": 255}
_PIXEL = {"anyOf": [_NUMBER, {"type": "array", "minItems": 1, "items": _NUMBER}]}
_IMAGE = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "minItems": 1, "items": _PIXEL},
}
_ROW = {"anyOf": [{"type": "string", "minLength": 1}, _IMAGE, {"type": "object"}]}

_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "required": ["rows"],
                "properties": {
                    "rows": {
                        "type": "array",
                        "minItems": 1,
                        "items": _ROW,
                        "description": PredictionRequest.model_fields["rows"].description,
                    }
                },
            },
            "examples": {
                "texts": {"value": {"rows": ["what a day", "never again"]}},
                "images": {"value": {"rows": [[[0, 128], [255, 0]]]}},
            },
        }
    },
}
"""The request body in the OpenAPI document: the endpoint reads it without FastAPI."""


@router.post(
    "/v1/predict",
    summary="Classify rows",
    dependencies=[requires_role("predict")],
    response_model=Predictions,
    openapi_extra={"requestBody": _BODY},
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
    of the same moment share a forward pass of the model."""
    service = service_of(request)
    if service.model.config.generates:
        raise Problem("wrong_task", "the run is a language model: use /v1/completions")
    check_json(request)
    body = await request.body()
    if len(body) > _LARGE:
        rows = await asyncio.to_thread(_rows, service, body)
    else:
        rows = _rows(service, body)

    async def ask() -> Sequence[Prediction]:
        return await service.batcher.ask(rows, gone(request.scope))

    return HeldResponse(service.model, service.metrics, await ask(), _content, ask)


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
    if service.model.config.of_images:
        return rows_of(sent, columns.image, _image)
    if columns.text_pair is not None:
        return [*zip(*_sides(sent, columns.text, columns.text_pair), strict=True)]
    return rows_of(sent, columns.text, _text)


def _sides(sent: Sequence[Any], first: str, second: str) -> tuple[list[Any], list[Any]]:
    """The first and the second texts of rows that are objects or lists of two."""
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
    """The model's input of each row.

    Args:
        sent: rows as JSON values.
        column: key of the input in rows that are objects.
        read: turns a JSON value into the model's input; raises ValueError with the reason.

    Raises:
        Problem: ``invalid_body``, with the number of the row.
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
    """An array [height, width(, channels)], uint8 from 0 to 255 or float32 from 0 to 1."""
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
