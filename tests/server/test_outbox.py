"""A 202 is the ledger's: any replica answers for it, and does it when the one that gave it is lost.

Each on SQLite, where replicas share a directory, and on PostgreSQL, where each has its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from s3t import S3T
from s3t.errors import UnavailableError
from s3t.run import RunDir
from s3t.server import worker
from tests.conftest import ROOT
from tests.support.asked import Asked, asked
from tests.support.killed import MANY
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = pytest.mark.slow

POINTS = ("accepted", "claimed", "deleted", "ended", "told")
"""Where a process is killed (``tests/support/killed.py``)."""


class Stuck:
    """A model that cannot delete until it is let."""

    def __init__(self, model: S3T) -> None:
        self._model, self.open = model, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def deactivate(self, *names: Any, **more: Any) -> Any:
        if not self.open.is_set():
            raise UnavailableError("not now")
        return self._model.deactivate(*names, **more)


@pytest.fixture
def replicas(either_run: RunDir, tmp_path: Path) -> tuple[Path, Path]:
    """The directories of two replicas, with a key that signs."""
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(key)
    text = either_run.config_path.read_text(encoding="utf-8")
    assert "signing_key: null" in text
    text = text.replace("signing_key: null", f"signing_key: {tmp_path}/key.pem")
    either_run.config_path.write_text(text, encoding="utf-8")
    if either_run.ledger_at == str(either_run.ledger_path):
        return either_run.root, either_run.root
    return either_run.root, Path(shutil.copytree(either_run.root, tmp_path / "other"))


def asked_for(site: Asked) -> tuple[int, Any]:
    said = site.ask("GET", "/v1/deletions/large", "delete")
    return said.status_code, said.json().get("request_status")


def deletions(model: S3T) -> list[dict[str, Any]]:
    return [one for one in model.ledger.recent(1000) if one.kind == "deletion"]


@pytest.mark.parametrize(
    "either_run",
    ["sqlite", pytest.param("postgresql", marks=pytest.mark.heavy)],
    indirect=True,
)
def test_any_replica_answers_for_what_another_has_accepted(replicas: tuple[Path, Path]) -> None:
    with (
        asked(replicas[0], model=Stuck, job_samples=5) as a,
        asked(replicas[1], model=Stuck, job_samples=5) as b,
    ):
        body = {"sample_ids": MANY, "subject_request_id": "large"}
        assert a.delete(**body).status_code == 202
        for site in (a, b):
            status, said = asked_for(site)
            assert status == 200 and said in ("pending", "in_progress")
        again = b.delete(**body)
        assert again.status_code == 202 and b.model.ledger.outbox.counts()["jobs"] == 1
        for other in (MANY[:2], [*MANY, "s000"]):  # small, large
            said = b.delete(sample_ids=other, subject_request_id="large")
            assert (said.status_code, said.json()["code"]) == (409, "request_conflict")
        assert b.ask("GET", "/v1/status", "audit").json()["jobs"] == 1
        b.model.open.set()  # A never can
        until(lambda: asked_for(a) == asked_for(b) == (200, "completed"))
        assert b.delete(**body).status_code == 201
        assert len(deletions(a.model)) == 1 and a.model.status().deleted == len(MANY)
        assert a.model.ledger.outbox.counts() == {"jobs": 0, "callbacks": 0}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("either_run", "alone", "point"),
    [
        *(("sqlite", True, point) for point in POINTS),  # started again
        *(("postgresql", False, point) for point in POINTS),  # beside another, its disk is lost
        ("sqlite", False, "claimed"),
        ("postgresql", True, "claimed"),
    ],
    indirect=["either_run"],
)
def test_a_kill_loses_neither_the_deletion_nor_its_callback(
    replicas: tuple[Path, Path],
    receiver: Receiver,
    point: str,
    alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "LEASE", 1.0)
    first, second = replicas
    settings: dict[str, Any] = {"job_samples": 5, "callback_hosts": [receiver.host]}

    def kill() -> None:
        words = [sys.executable, "-m", "tests.support.killed", str(first), point, receiver.host]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.stdout.strip(), done.returncode) == ("202", -9), done.stderr
        if first != second:
            shutil.rmtree(first)  # its machine is lost with its disk

    def holds(site: Asked) -> None:
        until(lambda: asked_for(site) == (200, "completed"))
        until(lambda: site.model.ledger.outbox.counts() == {"jobs": 0, "callbacks": 0})
        assert len(deletions(site.model)) == 1 and site.model.status().deleted == len(MANY)
        bodies = [json.loads(body) for _, _, body in receiver.got]
        told = [(one["subject_request_id"], one["request_status"]) for one in bodies]
        assert told == [("large", "completed")] * (2 if point == "told" else 1)

    if alone:
        kill()
        with asked(second, insecure=True, **settings) as site:
            holds(site)
    else:
        with asked(second, insecure=True, model=Stuck, **settings) as site:
            kill()
            site.model.open.set()
            holds(site)
