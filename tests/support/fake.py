"""A model that does what a test says, and the app over it: without torch, in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from starlette.testclient import TestClient

from s3t.config import load_config
from s3t.config.aggregation import ServeConfig
from s3t.errors import InputError
from s3t.ledger import Ledger, Outbox
from s3t.server.app import create_app
from tests.conftest import ROOT

LABELS = ("no", "yes")
URL = "http://127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """A classified row."""

    label: str
    probabilities: dict[str, float]
    view: int


@dataclass
class Model:
    """Says "yes" to every row, at ``view``; refuses the row ``"bad"``.

    Attributes:
        passes: the rows of each call of ``predict``.
        holds: what ``hold`` says, in turn; True when there is nothing left.
        before: called at the start of each ``predict``.
        error: raised by ``predict``.
        text: what ``generate`` and ``stream`` write, a word a piece.
    """

    root: Path
    task: str = "text-classification"
    view: int = 0
    reason: str | None = None
    passes: list[list[Any]] = field(default_factory=list)
    holds: list[bool] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    sound_from: int = 0
    before: Callable[[], object] = lambda: None
    error: Exception | None = None
    text: str = "once upon a time"
    asked: list[Any] = field(default_factory=list)
    lease_left: float | None = None
    run_id: str = "0123456789ab"
    labels: tuple[str, ...] = LABELS

    def __post_init__(self) -> None:
        self.config = load_config(ROOT / "configs" / "digits.yaml")

    @cached_property
    def ledger(self) -> Ledger:
        """One for all models of a folder, as for replicas with directories of their own."""
        return Ledger.open(self.root.parent / "ledger.db", create=True)

    @property
    def outbox(self) -> Outbox:
        return self.ledger.outbox

    def predict(self, batch: Sequence[Any]) -> list[Answer]:
        self.before()
        self.passes.append(list(batch))
        if self.error is not None:
            raise self.error
        if any(isinstance(row, str) and row == "bad" for row in batch):
            raise InputError("row 0: it is bad")
        return [Answer("yes", {"no": 0.25, "yes": 0.75}, self.view) for _ in batch]

    @contextmanager
    def hold(self, view: int) -> Iterator[bool]:
        self.held.append(view)
        yield self.holds.pop(0) if self.holds else True

    def is_sound(self, view: int) -> bool:
        return view >= self.sound_from

    def generate(self, prompts: Sequence[Any], **draw: Any) -> list[Any]:
        self.before()
        self.asked += [*prompts, draw]
        return [SimpleNamespace(completion=f"{p} …", view=self.view) for p in prompts]

    def stream(self, prompt: Any, begun: Sequence[int] = (), **draw: Any) -> Iterator[Any]:
        self.asked.append((prompt, *begun))
        return iter(self._pieces(len(begun), draw["max_new_tokens"]))

    def _pieces(self, begun: int, most: int) -> Iterator[Any]:
        words = self.text.split()
        for number in range(begun, min(begun + most, len(words))):
            self.before()
            yield SimpleNamespace(text=f" {words[number]}", view=self.view, token=number)

    def readiness(self) -> str | None:
        return self.reason

    def picture(self) -> dict[str, Any]:
        return {
            "view": self.view,
            "samples": 10,
            "deleted": 2,
            "exhausted": False,
            "expected_deletions_left": 3.5,
            "jobs": 0,
            "callbacks": 0,
            "shards": 2,
            "serving": [[0, 1], []],
            "nodes": [{"state": "serving"}, {"state": "dead"}, {"state": "dead"}],
        }

    def receipts(self, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        return []

    def log(self, limit: int) -> list[dict[str, Any]]:
        return []

    def reload(self) -> None:
        pass

    def close(self) -> None:
        pass


class Gate:
    """Lets a thread wait until a test says go on."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


def config(**serve: Any) -> ServeConfig:
    return ServeConfig.model_validate(serve)


@contextmanager
def served(model: Any, **serve: Any) -> Iterator[TestClient]:
    """An insecure app over a model."""
    app = create_app(model, config(**serve), insecure=True)
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        yield client
