"""Deletions in the words of OpenDSR (formerly OpenGDPR), as far as it has words for them.

    subject_request_id, subject_request_type, subject_identities, status_callback_urls …  theirs
    sample_ids, subjects, dry_run, receipt                                                ours

Left out on purpose: ``encoded_request``, which would send the ids back. Signatures are Ed25519 with
the key of the receipts, not RSA with a certificate.

Invariant: answers name samples by keyed hashes alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from s3t.ledger import Deletion

__all__ = [
    "REQUEST_ID",
    "Answer",
    "DeletionRequest",
    "DryRun",
    "Page",
    "PageQuery",
    "RequestStatus",
]

API_VERSION = "1.0"
REQUEST_ID = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}$"
"""Safe in an address, whatever it passes through."""

_MOMENT = r"^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})$"

RequestStatus = Literal["pending", "in_progress", "completed", "cancelled"]


def _storable(text: str) -> str:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("no id holds a NUL or half a surrogate pair")
    return text


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096),
    AfterValidator(_storable),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": 4096, "pattern": r"^[^\u0000]*$"}
    ),
]


Item = TypeVar("Item")
_Listed = Annotated[list[Item], FailFast()]
"""Ends at the first wrong one: a large body of wrong ones must not keep the service busy."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Identity(_Closed):
    """A person, as OpenDSR names them. Runs know persons by the controller's own ids alone."""

    identity_type: Literal["controller_customer_id"]
    identity_value: Id = Field(description="a subject of the run")
    identity_format: Literal["raw"] = "raw"


class DeletionRequest(_Closed):
    """What to forget: all of it or, on any error, nothing."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"minItems": 1}}}
                for name in ("sample_ids", "subjects", "subject_identities")
            ],
            "examples": [
                {"sample_ids": ["digit-0007"], "dry_run": True},
                {
                    "subject_request_id": "a7551968-d5d6-44b2-9831-815ac9017798",
                    "subject_request_type": "erasure",
                    "submitted_time": "2026-10-02T15:00:00Z",
                    "subject_identities": [
                        {
                            "identity_type": "controller_customer_id",
                            "identity_value": "customer-4711",
                            "identity_format": "raw",
                        }
                    ],
                    "api_version": "1.0",
                },
            ],
        },
    )

    sample_ids: _Listed[Id] = Field([], description="of samples; ones deleted before are accepted")
    subjects: _Listed[Id] = Field([], description="persons, each with all their samples")
    subject_identities: _Listed[Identity] = Field([], description="the same, in OpenDSR's words")
    subject_request_id: Annotated[str, StringConstraints(pattern=REQUEST_ID)] | None = Field(
        None,
        description="names the request: the same again is one deletion. The header "
        "Idempotency-Key says the same; without either a new one is made",
    )
    subject_request_type: Literal["erasure"] = "erasure"
    submitted_time: Annotated[str, StringConstraints(pattern=_MOMENT)] | None = Field(
        None, description="when the person asked; not kept"
    )
    regulation: Annotated[str, StringConstraints(min_length=1, max_length=40)] | None = Field(
        None, description="such as gdpr or ccpa; not kept"
    )
    api_version: Annotated[str, StringConstraints(max_length=20)] | None = None
    status_callback_urls: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=2000)]],
        Field(max_length=5),
    ] = Field([], description="told, signed, when it has ended; of hosts that the config names")
    dry_run: bool = Field(False, description="say what would happen, and change nothing")

    def deletion(self, request_id: str | None) -> Deletion:
        """What it asks for.

        Args:
            request_id: of the body or of the header; None for a dry run without one.
        """
        persons = [*self.subjects, *(one.identity_value for one in self.subject_identities)]
        return Deletion(self.sample_ids, persons, request_id, self.dry_run)


class Failure(BaseModel):
    """Why a request was cancelled."""

    code: str = Field(description="as errors have it")
    title: str


class Answer(BaseModel):
    """What became of a deletion."""

    subject_request_id: str
    request_status: RequestStatus = Field(
        description="pending and in_progress: ask again at results_url. completed: durable, and no "
        "answer of any replica comes from a block that had seen the samples. cancelled: it could "
        "not be done, and nothing was deleted"
    )
    received_time: str
    expected_completion_time: str | None
    results_url: str
    api_version: str = API_VERSION
    controller_id: str | None = Field(None, description="name of the token")
    receipt: dict[str, Any] | None = Field(
        None, description="what it switched off, samples named by keyed hashes"
    )
    problem: Failure | None = None


class DryRun(BaseModel):
    """What a deletion would do."""

    dry_run: Literal[True] = True
    receipt: dict[str, Any]


class PageQuery(BaseModel):
    """Which deletions."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=200)
    before: int | None = Field(None, ge=1, le=2**62, description="`next` of a page")


class Page(BaseModel):
    """Deletions, the latest first."""

    deletions: list[Answer]
    next: int | None = Field(description="`before` of the next page; null on the last")
