"""A signing key that was changed: the audit takes both, in their order, and no key comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from s3t import S3T
from s3t.audit.audit import audit
from s3t.run import RunDir
from tests.conftest import Run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two private keys; the public one of each lies beside it as ``.pub``."""
    made = []
    for name in ("old", "new"):
        key, path = Ed25519PrivateKey.generate(), tmp_path / f"{name}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        path.with_suffix(".pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        made.append(path)
    return made[0], made[1]


def delete_with(run: RunDir, key: Path, person: str) -> None:
    text = run.config_path.read_text(encoding="utf-8")
    head, _, rest = text.partition("signing_key:")
    run.config_path.write_text(f"{head}signing_key: {key}\n{rest.partition(chr(10))[2]}")
    with S3T.load(run.root) as model:
        model.deactivate(subjects=[person])


def claim(run: RunDir, *keys: Path) -> tuple[str, str]:
    found = audit(run.root, public_key=[key.with_suffix(".pub") for key in keys])
    (ledger,) = [one for one in found.claims if one.name == "ledger"]
    return ledger.status, " ".join(ledger.problems)


def test_keys_follow_each_other_and_none_comes_back(
    small_run: RunDir, pair: tuple[Path, Path], s3t: Run
) -> None:
    old, new = pair
    delete_with(small_run, old, "p01")
    delete_with(small_run, new, "p02")
    assert claim(small_run, old, new) == ("holds", "")
    words = [word for key in pair for word in ("--public-key", key.with_suffix(".pub"))]
    (told,) = [
        one
        for one in json.loads(s3t("audit", small_run.root, "--json", *words).out)["claims"]
        if one["name"] == "ledger"
    ]
    assert told["status"] == "holds" and told["checked"].count(", then ") == 1
    for wrong in ((old,), (new,)):
        assert "is signed by another key" in claim(small_run, *wrong)[1]
    assert "a key that had been replaced" in claim(small_run, new, old)[1]

    delete_with(small_run, old, "p03")
    verdict, why = claim(small_run, old, new)
    assert verdict == "broken" and "a key that had been replaced" in why
