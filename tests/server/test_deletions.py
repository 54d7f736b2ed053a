"""``/v1/deletions``: done or accepted, once, told without ids, and nothing changed by a refusal."""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from s3t import S3T
from s3t.errors import PublicSampleError, UnavailableError
from s3t.ledger import Signer
from s3t.run import RunDir
from tests.support.asked import Asked, asked
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = pytest.mark.slow

MANY = [f"s{person:02d}{number}" for person in range(2, 5) for number in range(3)]


class Wrapped:
    """A model with some of its methods replaced."""

    def __init__(self, model: Any, **methods: Any) -> None:
        self._model = model
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@pytest.fixture
def site(small_run: RunDir) -> Iterator[Asked]:
    with asked(small_run.root) as found:
        yield found


@pytest.fixture
def signed_run(small_run: RunDir, tmp_path: Path) -> Path:
    """The run, with a key that signs its receipts."""
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(key)
    config = small_run.root / "config.yaml"
    text = config.read_text()
    assert "signing_key: null" in text
    config.write_text(text.replace("signing_key: null", f"signing_key: {tmp_path}/key.pem"))
    return small_run.root


def status_of(site: Asked, request_id: str) -> Any:
    return site.ask("GET", f"/v1/deletions/{request_id}", "delete").json().get("request_status")


def refused(site: Asked, status: int, code: str, **body: Any) -> Any:
    """The problem that a deletion gets, which changes nothing."""
    before = site.state()
    said = site.delete(**body)
    assert (said.status_code, said.json()["code"]) == (status, code), (said.text, body)
    assert said.headers["content-type"] == "application/problem+json"
    assert site.state() == before, body
    return said


# ── at once ──────────────────────────────────────────────────────────────────────────────────


def test_a_deletion_is_done_when_it_is_told(site: Asked) -> None:
    said = site.delete(sample_ids=["s000"], subjects=["p01"], subject_request_id="r-1")
    body = said.json()
    assert said.status_code == 201 and body["request_status"] == "completed"
    assert said.headers["location"] == body["results_url"] == "/v1/deletions/r-1"
    receipt = body["receipt"]
    assert receipt["request_id"] == body["subject_request_id"] == "r-1"
    assert len(receipt["deleted"]) == 4 and receipt["view"] == site.model.status().view == 1
    assert body["controller_id"] == "delete"
    assert body["received_time"] <= receipt["effective_at"] == body["expected_completion_time"]
    assert site.model.status().deleted == 4
    for secret in ("s000", "s010", "p01"):
        assert secret not in said.text


def test_what_became_of_it_can_be_asked_for(site: Asked) -> None:
    done = site.delete(sample_ids=["s000"], subject_request_id="r-1").json()
    for role in ("delete", "audit"):
        body = site.ask("GET", done["results_url"], role).json()
        assert body["request_status"] == "completed"
        assert body["receipt"] == site.model.receipt("r-1").to_dict()
    for absent in ("r-2", "..", "%2e%2e%2fr-1", "r-1%00", "%00", "x" * 3000, "%ff", "a%2Fb"):
        said = site.ask("GET", f"/v1/deletions/{absent}", "delete")
        assert said.status_code == 404, (absent, said.text)


def test_the_same_again_is_the_same_and_another_conflicts(site: Asked) -> None:
    first = site.delete(sample_ids=["s000"], subject_request_id="r-1").json()["receipt"]
    before = site.state()
    again = site.delete(sample_ids=["s000", "s000"], headers={"Idempotency-Key": "r-1"})
    assert again.status_code == 201
    for name in ("deleted", "nodes_dead", "view", "accepted_at", "effective_at"):
        assert again.json()["receipt"][name] == first[name]
    assert site.state() == before
    said = refused(site, 409, "request_conflict", sample_ids=["s001"], subject_request_id="r-1")
    assert "s001" not in said.text
    said = refused(
        site,
        422,
        "invalid_body",
        sample_ids=["s001"],
        subject_request_id="r-1",
        headers={"Idempotency-Key": "r-2"},
    )
    assert "differ" in said.json()["detail"]


def test_without_an_id_it_gets_one(site: Asked) -> None:
    body = site.delete(sample_ids=["s000"]).json()
    assert site.model.receipt(body["subject_request_id"]).view == 1


def test_what_the_run_does_not_hold_is_named_by_its_place(site: Asked) -> None:
    said = refused(
        site,
        404,
        "unknown_sample",
        sample_ids=["s000", "secret-a", "s001", "secret-a"],
        subjects=["p01", "secret-b"],
        subject_identities=[
            {"identity_type": "controller_customer_id", "identity_value": "secret-c"}
        ],
    )
    detail = said.json()["detail"]
    assert "secret" not in said.text and "nothing was deleted" in detail
    for place in ("sample_ids[1]", "sample_ids[3]", "subjects[1]", "subject_identities[0]"):
        assert place in detail
    said = refused(site, 404, "unknown_sample", sample_ids=[f"no{n}" for n in range(50)])
    assert "and 40 more" in said.json()["detail"]


def test_what_is_cut_aside_as_public_is_named_by_its_place(
    site: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def public(deletion: object) -> None:
        raise PublicSampleError(["secret-a"], ["secret-b"], "RUN")

    monkeypatch.setattr(site.model, "deactivate", public)
    said = refused(site, 409, "public_sample", sample_ids=["s0", "secret-a"], subjects=["secret-b"])
    detail = said.json()["detail"]
    assert detail == "cut aside as public: sample_ids[1], subjects[0]; nothing was deleted"
    assert "secret" not in said.text


def test_a_dry_run_changes_nothing_and_tells_the_truth(site: Asked) -> None:
    before = site.state()
    said = site.delete(sample_ids=["s000"], subject_request_id="r-1", dry_run=True)
    assert said.status_code == 200 and site.state() == before
    assert site.ask("GET", "/v1/deletions/r-1", "delete").status_code == 404
    real = site.delete(sample_ids=["s000"], subject_request_id="r-1").json()["receipt"]
    told = said.json()["receipt"]
    for name in ("deleted", "nodes_dead", "prefixes", "view", "expected_deletions_left"):
        assert told[name] == real[name]
    assert told["dry_run"] and not real["dry_run"]


def test_opendsr_requests_are_understood(site: Asked) -> None:
    said = site.delete(
        subject_request_id="a7551968-d5d6-44b2-9831-815ac9017798",
        subject_request_type="erasure",
        submitted_time="2018-10-02T15:00:00Z",
        regulation="gdpr",
        api_version="1.0",
        subject_identities=[
            {
                "identity_type": "controller_customer_id",
                "identity_value": "p01",
                "identity_format": "raw",
            }
        ],
    )
    assert said.status_code == 201 and len(said.json()["receipt"]["deleted"]) == 3
    assert "encoded_request" not in said.json()


REFUSED: list[dict[str, Any]] = [
    {},
    {"sample_ids": []},
    {"sample_ids": "s000"},
    {"sample_ids": [7]},
    {"sample_ids": [None]},
    {"sample_ids": [["s000"]]},
    {"sample_ids": [""]},
    {"sample_ids": ["a\0b"]},
    {"sample_ids": ["x" * 5000]},
    {"sample_ids": ["s000"], "dry_run": "true"},
    {"sample_ids": ["s000"], "dry_run": 1},
    {"sample_ids": ["s000"], "dryrun": True},
    {"sample_ids": ["s000"], "subject_request_type": "access"},
    {"sample_ids": ["s000"], "subject_request_id": "../../x"},
    {"sample_ids": ["s000"], "subject_request_id": ""},
    {"sample_ids": ["s000"], "subject_request_id": "a\n"},
    {"sample_ids": ["s000"], "subject_request_id": "x" * 201},
    {"sample_ids": ["s000"], "submitted_time": "yesterday"},
    {"sample_ids": ["s000"], "regulation": ""},
    {"subject_identities": [{"identity_type": "email", "identity_value": "a@b.example"}]},
    {
        "subject_identities": [
            {
                "identity_type": "controller_customer_id",
                "identity_value": "p01",
                "identity_format": "sha256",
            }
        ]
    },
    {"subjects": ["p01"], "status_callback_urls": ["https://evil.example/"]},
    {"subjects": ["p01"], "status_callback_urls": ["https://a.example/"] * 6},
]


def test_bodies_that_are_refused_change_nothing(site: Asked) -> None:
    for body in REFUSED:
        refused(site, 422, "invalid_body", **body)


BROKEN: list[tuple[bytes, int]] = [
    (b"", 422),
    (b"{", 400),
    (b"null", 422),
    (b"[]", 422),
    (b'{"sample_ids": ["s000"], "sample_ids": ["s001"]}', 400),
    (b'{"sample_ids": ["\xff"]}', 400),
    (b'{"sample_ids": ["\\ud800"]}', 422),
    (b'{"sample_ids": [NaN]}', 400),
    (b'{"sample_ids": [' + b"9" * 5000 + b"]}", 400),
    (b"[" * 100_000, 400),
    (b'{"a":' * 50_000, 400),
]


def test_bytes_that_are_refused_change_nothing(site: Asked) -> None:
    before, given = site.state(), {"Content-Type": "application/json"}
    for content, status in BROKEN:
        said = site.ask("POST", "/v1/deletions", "delete", content=content, headers=given)
        assert said.status_code == status, (content[:80], said.text)
        assert said.headers["content-type"] == "application/problem+json"
        assert site.state() == before, content[:80]


def test_large_bodies_of_wrong_things_are_not_read_to_their_end(site: Asked) -> None:
    for name, wrong in (("sample_ids", 0), ("subjects", ""), ("subject_identities", {})):
        said = refused(site, 422, "invalid_body", **{name: [wrong] * 20_000})
        assert "more" not in said.json()["detail"] and "20" not in said.json()["detail"]
    refused(site, 400, "invalid_json", **{f"key{number}": 0 for number in range(1001)})


HOSTILE = [
    "'; DROP TABLE samples; --",
    "s000' OR '1'='1",
    "s00_",
    "s%",
    "*",
    "../../ledger.db",
    "s000\n",
    " s000",
    "S000",
    "\u202es000",
    "ѕ000",
    "s000\u0000",
    "{{7*7}}",
    "${jndi:ldap://x}",
]


def test_no_id_means_another(site: Asked) -> None:
    before = site.state()
    for hostile in HOSTILE:
        said = site.delete(sample_ids=[hostile], subjects=[hostile])
        assert said.status_code in (404, 422) and site.state() == before, hostile


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────


def test_a_large_one_is_a_job_and_done_in_one(small_run: RunDir) -> None:
    calls: list[Any] = []

    def counting(model: S3T) -> Any:
        def deactivate(*names: Any, **more: Any) -> Any:
            calls.append(names)
            return model.deactivate(*names, **more)

        return Wrapped(model, deactivate=deactivate)

    with asked(small_run.root, model=counting, job_samples=5) as site:
        said = site.delete(sample_ids=MANY, subject_request_id="large")
        body = said.json()
        assert said.status_code == 202 and body["request_status"] in ("pending", "in_progress")
        assert body["expected_completion_time"] > body["received_time"]
        until(lambda: status_of(site, "large") == "completed")
        assert len(calls) == 1 and site.model.status().deleted == 9
        found = site.ask("GET", body["results_url"], "audit").json()
        assert found["receipt"] == site.model.receipt("large").to_dict()
        assert site.model.ledger.outbox.counts() == {"jobs": 0, "callbacks": 0}
        again = site.delete(sample_ids=MANY, subject_request_id="large")
        assert again.status_code == 201 and again.json()["request_status"] == "completed"
        refused(site, 409, "request_conflict", sample_ids=MANY[:6], subject_request_id="large")


def test_one_that_was_accepted_is_done_after_a_kill(small_run: RunDir) -> None:
    def stuck(model: S3T) -> Any:
        def deactivate(*_: Any, **__: Any) -> Any:
            raise UnavailableError("not now")

        return Wrapped(model, deactivate=deactivate)

    with asked(small_run.root, model=stuck, job_samples=5) as site:
        assert site.delete(sample_ids=MANY, subject_request_id="large").status_code == 202
        assert status_of(site, "large") in ("pending", "in_progress")
        assert site.ask("GET", "/v1/status", "audit").json()["jobs"] == 1
        refused(site, 409, "request_conflict", sample_ids=["s000"], subject_request_id="large")
        same = site.delete(sample_ids=MANY, subject_request_id="large")
        assert same.status_code == 202
    with asked(small_run.root, job_samples=5) as site:
        until(lambda: status_of(site, "large") == "completed")
        assert site.model.status().deleted == 9 and site.model.status().jobs == 0


def test_one_that_cannot_be_done_is_cancelled_whole(small_run: RunDir) -> None:
    with asked(small_run.root, job_samples=5) as site:
        said = site.delete(sample_ids=[*MANY, "secret-a"], subject_request_id="large")
        assert said.status_code == 202
        until(lambda: status_of(site, "large") == "cancelled")
        found = site.ask("GET", "/v1/deletions/large", "delete")
        assert found.json()["problem"]["code"] == "unknown_sample"
        assert site.model.status().deleted == 0
        job = site.model.ledger.outbox.job("large")
        assert job is not None and job.deletion.sample_ids == () and "secret" not in found.text
        assert site.delete(sample_ids=MANY, subject_request_id="large").status_code == 202
        until(lambda: status_of(site, "large") == "completed")


def test_audit_and_purge_tell_of_jobs_that_wait_and_of_no_others(small_run: RunDir) -> None:
    from s3t.audit.audit import audit

    def stuck(model: S3T) -> Any:
        def deactivate(*_: Any, **__: Any) -> Any:
            raise UnavailableError("not now")

        return Wrapped(model, deactivate=deactivate)

    def accepted(model: Any) -> tuple[int, int]:
        stores = {one.name: one for one in model.purge().stores}
        return stores["accepted deletions"].found, stores["accepted deletions"].purged

    with asked(small_run.root, model=stuck, job_samples=5) as site:
        site.delete(sample_ids=MANY, subject_request_id="large")
        assert accepted(site.model) == (1, 0), "a purge takes no request away"
    found = {claim.name: claim for claim in audit(small_run.root).claims}
    assert found["E7"].status == "pending"
    assert "'large'" in found["E7"].problems[0] and "not done" in found["E7"].problems[0]
    with asked(small_run.root, job_samples=5) as site:
        until(lambda: status_of(site, "large") == "completed")
        assert accepted(site.model) == (0, 0)
    found = {claim.name: claim for claim in audit(small_run.root).claims}
    assert found["E7"].status == "holds", found["E7"].problems
    files = [path for path in small_run.root.rglob("*") if path.is_file()]
    assert not [path for path in files if b"s020" in path.read_bytes()]


def test_an_audit_finds_a_cancelled_job_that_still_names_samples(small_run: RunDir) -> None:
    from s3t.audit.audit import audit

    with asked(small_run.root, job_samples=5) as site:
        site.delete(sample_ids=[*MANY, "secret-a"], subject_request_id="large")
        until(lambda: status_of(site, "large") == "cancelled")
    assert {one.name: one.status for one in audit(small_run.root).claims}["E7"] == "holds"
    with closing(sqlite3.connect(small_run.ledger_path)) as ledger, ledger:
        ledger.execute("UPDATE jobs SET sample_ids = '[\"s020\"]'")
    found = {claim.name: claim for claim in audit(small_run.root).claims}
    assert found["E7"].status == "broken" and "still names samples" in found["E7"].problems[0]


def test_a_ledger_that_takes_no_more_accepts_nothing(
    small_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(small_run.root, job_samples=5) as site:
        with monkeypatch.context() as patch:

            def full(*_: Any, **__: Any) -> Any:
                raise UnavailableError("there is no space left on its disk")

            patch.setattr(site.model.ledger.outbox, "accept", full)
            refused(site, 503, "unavailable", sample_ids=MANY, subject_request_id="large")
        assert site.ask("GET", "/v1/deletions/large", "delete").status_code == 404
        assert site.delete(sample_ids=MANY, subject_request_id="large").status_code == 202


# ── replicas, load ───────────────────────────────────────────────────────────────────────────


def test_one_that_was_not_seen_to_be_effective_is_accepted(small_run: RunDir) -> None:
    def unseen(model: S3T) -> Any:
        def deactivate(*names: Any, **more: Any) -> Any:
            return replace(model.deactivate(*names, **more), effective_at=None)

        return Wrapped(model, deactivate=deactivate)

    with asked(small_run.root, model=unseen) as site:
        said = site.delete(sample_ids=["s000"], subject_request_id="r-1")
        assert said.status_code == 202 and said.json()["request_status"] == "in_progress"
        assert status_of(site, "r-1") == "completed"  # as the ledger has it


def test_an_unreachable_ledger_is_told_as_such(small_run: RunDir) -> None:
    def away(model: S3T) -> Any:
        def deactivate(*_: Any, **__: Any) -> Any:
            raise UnavailableError("postgresql://secret@host")

        return Wrapped(model, deactivate=deactivate)

    with asked(small_run.root, model=away) as site:
        said = site.delete(sample_ids=["s000"])
        assert (said.status_code, said.json()["code"]) == (503, "unavailable")
        assert "secret" not in said.text and int(said.headers["retry-after"]) >= 1


def test_more_at_once_than_can_be_done_are_refused(small_run: RunDir) -> None:
    gate = threading.Event()

    def slow(model: S3T) -> Any:
        def deactivate(*names: Any, **more: Any) -> Any:
            gate.wait(10)
            return model.deactivate(*names, **more)

        return Wrapped(model, deactivate=deactivate)

    said: list[Any] = []
    with asked(small_run.root, model=slow, delete_rate=None) as site:
        asks = [
            threading.Thread(
                target=lambda: said.append(site.delete(sample_ids=["s000"], dry_run=True))
            )
            for _ in range(40)
        ]
        for one in asks:
            one.start()
        until(lambda: len(said) == 8)
        assert site.ask("GET", "/v1/status", "audit").status_code == 200  # others go on
        gate.set()
        for one in asks:
            one.join()
    assert sorted(one.status_code for one in said) == [200] * 32 + [503] * 8
    assert all(one.json()["code"] == "overloaded" for one in said if one.status_code == 503)
    assert all("retry-after" in one.headers for one in said if one.status_code == 503)


def test_looks_at_deletions_keep_none_of_them_out(small_run: RunDir) -> None:
    gate = threading.Event()

    def slow(model: S3T) -> Any:
        def receipts(*asked: Any) -> Any:
            gate.wait(20)
            return model.ledger.receipts(*asked)

        return Wrapped(model, ledger=Wrapped(model.ledger, receipts=receipts))

    said: list[Any] = []
    with asked(small_run.root, model=slow) as site:
        asks = [
            threading.Thread(
                target=lambda: said.append(site.ask("GET", "/v1/deletions", "audit").status_code)
            )
            for _ in range(40)
        ]
        for one in asks:
            one.start()
        until(lambda: len(said) == 8)
        assert site.delete(sample_ids=["s000"]).status_code == 201
        gate.set()
        for one in asks:
            one.join()
    assert sorted(said) == [200] * 32 + [503] * 8


def test_while_the_service_ends_none_is_taken(site: Asked) -> None:
    site.service.draining = True
    refused(site, 503, "draining", sample_ids=["s000"])


# ── the list ─────────────────────────────────────────────────────────────────────────────────


def test_receipts_are_listed_page_by_page(site: Asked) -> None:
    for number in range(7):
        site.delete(sample_ids=[f"s{number:02d}0"], subject_request_id=f"r-{number}")
    found, before = [], None
    for _ in range(4):
        query = "limit=2" + ("" if before is None else f"&before={before}")
        page = site.ask("GET", f"/v1/deletions?{query}", "audit").json()
        found += [one["subject_request_id"] for one in page["deletions"]]
        assert all(one["request_status"] == "completed" for one in page["deletions"])
        before = page.get("next")
    assert found == [f"r-{number}" for number in reversed(range(7))] and before is None
    assert site.ask("GET", "/v1/deletions?limit=0", "audit").status_code == 422
    assert site.ask("GET", "/v1/deletions?before=x", "audit").status_code == 422


# ── signatures and callbacks ─────────────────────────────────────────────────────────────────


def verified(headers: Any, body: bytes, run: Path) -> bool:
    signature = base64.b64decode(headers["X-OpenDSR-Signature"], validate=True)
    verifier = Signer(run.parent / "key.pem").verifier()
    return verifier.holds(body.decode(), signature.hex())


def test_answers_are_signed_where_there_is_a_key(signed_run: Path) -> None:
    with asked(signed_run, domain="forget.example") as site:
        done = site.delete(sample_ids=["s000"], subject_request_id="r-1")
        assert done.json()["results_url"] == "https://forget.example/v1/deletions/r-1"
        for said in (
            done,
            site.delete(sample_ids=["s001"], dry_run=True),
            site.ask("GET", "/v1/deletions/r-1", "delete"),
            site.ask("GET", "/v1/deletions", "audit"),
        ):
            assert said.headers["x-opendsr-processor-domain"] == "forget.example"
            headers = {"X-OpenDSR-Signature": said.headers["x-opendsr-signature"]}
            assert verified(headers, said.content, signed_run)


def test_without_a_key_nothing_is_signed_and_no_callback_taken(
    small_run: RunDir, receiver: Receiver
) -> None:
    with asked(small_run.root, insecure=True, callback_hosts=[receiver.host]) as site:
        said = site.delete(sample_ids=["s000"])
        assert "x-opendsr-signature" not in said.headers
        url = f"http://{receiver.host}/"
        refused(
            site,
            422,
            "invalid_body",
            role=None,
            sample_ids=["s001"],
            status_callback_urls=[url],
        )


@pytest.mark.parametrize("large", [False, True])
def test_whoever_asked_is_called_back(signed_run: Path, receiver: Receiver, large: bool) -> None:
    url = f"http://{receiver.host}/done"
    with asked(signed_run, insecure=True, callback_hosts=[receiver.host], job_samples=5) as site:
        said = site.delete(
            None,
            sample_ids=MANY if large else MANY[:2],
            subject_request_id="r-1",
            status_callback_urls=[url],
        )
        assert said.status_code == (202 if large else 201), said.text
        until(lambda: len(receiver.got) == 1)
        _, headers, content = receiver.got[0]
        body = json.loads(content)
        assert body["subject_request_id"] == "r-1" and body["request_status"] == "completed"
        assert body["status_callback_url"] == url and body["results_url"] == "/v1/deletions/r-1"
        assert verified(headers, content, signed_run) and b"s020" not in content
        until(lambda: site.model.ledger.outbox.counts() == {"jobs": 0, "callbacks": 0})


def test_a_cancelled_job_is_told_too(signed_run: Path, receiver: Receiver) -> None:
    with asked(signed_run, insecure=True, callback_hosts=[receiver.host], job_samples=5) as site:
        site.delete(
            None,
            sample_ids=[*MANY, "secret"],
            subject_request_id="r-1",
            status_callback_urls=[f"http://{receiver.host}/"],
        )
        until(lambda: len(receiver.got) == 1)
        assert json.loads(receiver.got[0][2])["request_status"] == "cancelled"
        assert b"secret" not in receiver.got[0][2]


def test_a_deletion_whose_callback_cannot_be_kept_says_so(
    signed_run: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(signed_run, insecure=True, callback_hosts=[receiver.host]) as site:

        def full(*_: Any) -> None:
            raise UnavailableError("there is no space left on its disk")

        body = {
            "sample_ids": ["s000"],
            "subject_request_id": "r-1",
            "status_callback_urls": [f"http://{receiver.host}/"],
        }
        with monkeypatch.context() as patch:
            patch.setattr(site.service.deletions.callbacks, "put", full)
            said = site.delete(None, **body)
            assert said.status_code == 503 and "is done" in said.json()["detail"]
        assert site.model.status().deleted == 1
        assert site.delete(None, **body).status_code == 201
        until(lambda: len(receiver.got) == 1)
