"""What routes share: the model, its config, and what counts and limits their work.

    app.state.service : Service ─┬─ model     what answers and forgets (an S3T, or anything with
                                 │            its surface)
                                 ├─ config    ServeConfig
                                 ├─ access    who may do what
                                 ├─ batcher   predictions that share a pass
                                 ├─ desk      where completions are written
                                 └─ metrics

A route reaches it through ``service_of(request)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import HTTPConnection

from s3t.config.aggregation import ServeConfig

if TYPE_CHECKING:
    from s3t.ledger import Outbox
    from s3t.server.deletions.service import Intake
    from s3t.server.logs import Causes
    from s3t.server.metrics import Metrics
    from s3t.server.routes.completions import Desk
    from s3t.server.routes.repair import Repairs
    from s3t.server.security.access import Access
    from s3t.server.work.batcher import Batcher
    from s3t.server.work.threads import Lane

__all__ = ["Answer", "Model", "Piece", "Service", "Text", "service_of"]


class Answer(Protocol):
    """One classified row (``s3t.serving.predictor.Prediction``)."""

    @property
    def label(self) -> str: ...
    @property
    def probabilities(self) -> dict[str, float]: ...
    @property
    def view(self) -> int: ...


class Text(Protocol):
    """One continued text (``s3t.serving.predictor.Completion``)."""

    @property
    def completion(self) -> str: ...
    @property
    def view(self) -> int: ...


class Piece(Protocol):
    """The text that one token adds, the view that gave it, and the token."""

    @property
    def text(self) -> str: ...
    @property
    def view(self) -> int: ...
    @property
    def token(self) -> int | None: ...


class Model(Protocol):
    """The surface of ``s3t.S3T`` that the service uses. All calls but ``hold`` may block."""

    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def config(self) -> Any: ...
    @property
    def root(self) -> Path: ...
    @property
    def outbox(self) -> Outbox: ...
    @property
    def run_id(self) -> str: ...

    def join(self, name: str | None = None, lease: float | None = None) -> None: ...
    def close(self) -> None: ...
    def readiness(self) -> str | None: ...
    @property
    def lease_left(self) -> float | None: ...
    def hold(self, view: int) -> AbstractContextManager[bool]: ...
    def is_sound(self, view: int) -> bool: ...
    def predict(self, batch: Sequence[Any]) -> Sequence[Answer]: ...
    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Sequence[Text]: ...
    def stream(
        self,
        prompt: Any,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        begun: Sequence[int] = (),
    ) -> Iterator[Piece]: ...
    def deactivate(
        self,
        sample_ids: Sequence[str] = (),
        subjects: Sequence[str] = (),
        *,
        request_id: str | None = None,
        dry_run: bool = False,
    ) -> Any: ...
    def receipt(self, request_id: str) -> dict[str, Any]: ...
    def receipts(self, limit: int, before: int | None = None) -> Sequence[dict[str, Any]]: ...
    def status(self) -> Any: ...
    def forecast(self) -> Any: ...
    def picture(self) -> dict[str, Any]: ...
    def replicas(self) -> Sequence[dict[str, Any]]: ...
    def log(self, limit: int) -> Sequence[dict[str, Any]]: ...
    def repair(self, launch: Sequence[str] = ()) -> dict[str, Any]: ...
    def purge(self, *, dry_run: bool = False) -> Any: ...
    def reload(self) -> None: ...


@dataclass(eq=False)
class Service:
    """One app's shared objects.

    Attributes:
        model: what answers and forgets.
        config: limits and waits.
        access: who may do what.
        metrics: what is counted.
        batcher: predictions that share a pass.
        desk: where completions are written.
        intake: where deletions are taken in.
        repairs: repair, purge and reload.
        lookups: threads for what only looks.
        probes: a thread for what ``/metrics`` looks at.
        causes: what the log is told of failures, once each.
        draining: the process is about to end, and takes nothing new.
        reloads: called on SIGHUP, after the model has looked at store and ledger anew.
    """

    model: Model
    config: ServeConfig
    access: Access
    metrics: Metrics
    batcher: Batcher
    desk: Desk
    intake: Intake
    repairs: Repairs
    lookups: Lane
    probes: Lane
    causes: Causes
    draining: bool = False
    reloads: list[Callable[[], None]] = field(default_factory=list)


def service_of(request: HTTPConnection) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
