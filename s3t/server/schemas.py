"""What predictions and completions take and give, as pydantic checks and OpenAPI tells it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "COMPLETION_EVENTS",
    "PREDICT_BODY",
    "CompletionRequest",
    "Completions",
    "PredictionRequest",
    "Predictions",
]

_VIEW = "version of what answered; it grows with each deletion and repair"
_Text = Annotated[str, StringConstraints(min_length=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PredictionRequest(_Closed):
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
    view: int = Field(description=_VIEW)


class Message(_Closed):
    """One turn of a conversation."""

    role: _Text = Field(description="such as `user`; what the run's chat template knows")
    content: _Text


class CompletionRequest(_Closed):
    """Texts to continue, or a conversation to answer."""

    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, fail_fast=True)]
        | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    ) = Field(
        description="one text or several; or the messages of one conversation, where the run has "
        "a chat template; one if it is streamed"
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=2**16)] = Field(
        32, description="at most; prompt and answer have to fit the run's `data.max_length`"
    )
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=False)] = Field(
        0.0, description="0 takes the likeliest token, above it tokens are drawn"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="of the draws")
    top_k: Annotated[int, Field(ge=0, le=2**31)] = Field(
        0, description="draw among the likeliest so many alone; 0 for all"
    )
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] = Field(
        1.0, description="draw among the likeliest that are that likely together"
    )
    stream: bool = Field(False, description="send each piece as it comes, as server-sent events")
    strict: bool = Field(
        False,
        description="of a stream: end it with the code `text_hit` as soon as a deletion hits what "
        "any of its pieces came from; a text that is sent whole never outlives such a deletion",
    )

    @property
    def prompts(self) -> list[Any]:
        """As ``S3T.generate`` takes them."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [one for one in self.prompt if isinstance(one, str)]
        return texts or [[one.model_dump() for one in self.prompt if isinstance(one, Message)]]


class CompletedText(BaseModel):
    """One continued text."""

    text: str = Field(description="without its prompt")


class Completions(BaseModel):
    """Continued texts, in the order in which the prompts were sent."""

    completions: list[CompletedText]
    view: int = Field(description=_VIEW)


_NUMBER = {"type": "number", "minimum": 0, "maximum": 255}
_PIXEL = {"anyOf": [_NUMBER, {"type": "array", "minItems": 1, "items": _NUMBER}]}
_IMAGE = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "minItems": 1, "items": _PIXEL},
}
_ROW = {"anyOf": [{"type": "string", "minLength": 1}, _IMAGE, {"type": "object"}]}

PREDICT_BODY: dict[str, Any] = {
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
"""The request body of ``/v1/predict``, which is read without FastAPI's own machinery."""

COMPLETION_EVENTS: dict[str, Any] = {
    "schema": {"type": "string"},
    "example": 'data: {"text": " and", "view": 3}\n\n'
    'data: {"text": " on", "view": 4}\n\ndata: {"done": true, "views": [3, 4]}\n\n',
}
"""What ``stream: true`` gives: one event a token; the last one, or an error, ends it."""
