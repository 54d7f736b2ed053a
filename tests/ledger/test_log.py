"""The log of a run: chained, signed where there is a key, and without a raw id."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from s3t.audit.audit import audit
from s3t.config import Config, dump_config
from s3t.errors import InputError
from s3t.ledger import GENESIS, LogEntry, Signer, Verifier, link
from s3t.ledger.log.chain import canonical
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train


@pytest.fixture
def run(small_run: RunDir) -> RunDir:
    return small_run


def pem(key: Any, path: Path) -> Path:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return pem(ed25519.Ed25519PrivateKey.generate(), tmp_path / "key.pem")


def signing(run: RunDir, key: Path) -> None:
    tree = run.config().model_dump(mode="json") | {"receipts": {"signing_key": str(key)}}
    run.config_path.write_text(dump_config(Config.model_validate(tree)), encoding="utf-8")


def log(run: RunDir) -> list[LogEntry]:
    with run.ledger() as ledger:
        return list(ledger.log())


def proved(entries: list[LogEntry]) -> None:
    previous = GENESIS
    for number, entry in enumerate(entries, start=1):
        assert (entry.number, entry.previous) == (number, previous)
        body = canonical(entry.body)
        assert entry.digest == link(number, entry.kind, entry.at, body, previous)
        previous = entry.digest


def test_every_step_of_a_run_is_an_entry(run: RunDir) -> None:
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"], request_id="one")
        service.deactivate(subjects=["p03"], request_id="two")  # nothing new
        service.deactivate(subjects=["p04"], dry_run=True)
    train(run.config().model_copy(update={"output": str(run.root)}), replan=Replan())
    entries = log(run)
    kinds = [entry.kind for entry in entries]
    assert "announced" in kinds[10:-3], "once for each lot of nodes that came"
    assert [kind for kind in kinds if kind != "announced"] == [
        *("samples", "plan", "force", "nodes"),
        *("deletion", "effective", "deletion", "effective"),
        *("plan", "force", "nodes", "purge", "nodes"),
    ]
    proved(entries)
    assert all(entry.signature is None for entry in entries)
    text = json.dumps([dataclasses.asdict(entry) for entry in entries])
    assert "s03" not in text and "p03" not in text


def test_the_receipt_of_a_request(run: RunDir) -> None:
    with S3T.load(run.root) as service:
        receipt = service.deactivate(subjects=["p03"], request_id="one")
        told = service.receipt("one").to_dict()
        assert told["schedule"]["nodes_dead"] == list(receipt.nodes_dead)
        assert (told["view"], told["accepted_at"] <= told["effective_at"]) == (receipt.view, True)
        assert told["purged_at"] is None
        service.purge()
        purged = service.receipt("one").to_dict()
        assert purged["purged_at"] >= purged["effective_at"]
        assert {k: v for k, v in purged.items() if k != "purged_at"} == {
            k: v for k, v in told.items() if k != "purged_at"
        }
        service.deactivate(subjects=["p04"], request_id="two")
        assert service.receipt("two").purged_at is None
        with run.ledger() as ledger:
            assert told["deleted"] == sorted(ledger.deleted.keyed(one) for one in receipt.deleted)
    entry = next(entry for entry in log(run) if entry.kind == "deletion")
    assert (told["digest"], told["previous"]) == (entry.digest, entry.previous)


@pytest.mark.parametrize("key", ["effective_at", "purged_at", "signer", "signature"])
def test_a_kept_receipt_of_another_moment_is_found(run: RunDir, tmp_path: Path, key: str) -> None:
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"], request_id="one")
        service.purge()
        told = service.receipt("one").to_dict()
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({**told, "purged_at": None}))
    assert audit(run.root, receipts=[kept])["ledger"].status == "holds"
    kept.write_text(json.dumps({**told, key: "2000-01-01T00:00:00.000+00:00"}))
    claim = audit(run.root, receipts=[kept])["ledger"]
    assert claim.status == "broken" and f"says {key} 2000" in claim.problems[0]


def test_a_request_told_again_takes_effect_once(run: RunDir) -> None:
    with S3T.load(run.root) as service:
        for _ in range(3):
            service.deactivate(subjects=["p03"], request_id="one")
    assert [entry.kind for entry in log(run)][4:] == ["deletion", "effective"]


def test_a_kill_before_it_was_told_as_effective_is_made_good_by_the_next(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3t.ledger.replicas import ReplicaTable

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with S3T.load(run.root) as service:
        with monkeypatch.context() as patched:
            patched.setattr(ReplicaTable, "settle", die)
            with pytest.raises(KeyboardInterrupt):
                service.deactivate(subjects=["p03"], request_id="one")
        with run.ledger() as ledger:
            assert ledger.receipt("one").effective_at is None
        service.deactivate(subjects=["p03"], request_id="one")
        assert service.receipt("one").effective_at is not None


def test_entries_are_signed(run: RunDir, key: Path) -> None:
    before = len(log(run))
    signing(run, key)
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"], request_id="one")
    purge(run)
    signer = Signer(key)
    verifier, entries = signer.verifier(), log(run)[before:]
    assert len(entries) == 4
    for entry in entries:
        assert entry.signer == signer.fingerprint == verifier.fingerprint
        assert entry.signature and verifier.holds(entry.digest, entry.signature)
        assert not verifier.holds(entry.previous, entry.signature)
        assert not verifier.holds(entry.digest, "00" * 64)
        assert not verifier.holds(entry.digest, "no hex")
    other = Signer(pem(ed25519.Ed25519PrivateKey.generate(), key.with_name("other.pem")))
    assert not other.verifier().holds(entries[0].digest, str(entries[0].signature))


def test_a_public_key_is_read(key: Path, tmp_path: Path) -> None:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    public = tmp_path / "public.pem"
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert Verifier.load(public).fingerprint == Signer(key).fingerprint
    for bad in (key, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="cannot be used"):
            Verifier.load(bad)


@pytest.mark.parametrize("what", ["missing", "empty", "another kind"])
def test_a_key_that_cannot_sign_fails_the_deletion_whole(run: RunDir, key: Path, what: str) -> None:
    if what == "missing":
        key.unlink()
    elif what == "empty":
        key.write_bytes(b"")
    else:
        pem(ec.generate_private_key(ec.SECP256R1()), key)
    signing(run, key)
    before = log(run)
    with S3T.load(run.root) as service:
        with pytest.raises(InputError, match=r"signing_key .*key\.pem.*openssl genpkey"):
            service.deactivate(subjects=["p03"])
        assert service.status().deleted == 0
    assert log(run) == before
