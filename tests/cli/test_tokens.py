"""``s3t token``: made, listed, revoked; told once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3t.run import RunDir
from s3t.server.security.tokens import TokenFile
from tests.conftest import Run

pytestmark = pytest.mark.slow


def test_a_token_is_made_listed_and_revoked(s3t: Run, small_run: RunDir) -> None:
    run = small_run.root
    made = s3t("token", "create", run, "--role", "delete,audit", "--name", "privacy tool")
    text = made.out.strip()
    assert made.code == 0 and text.startswith("s3t_delete-audit_")
    token = TokenFile(run / "tokens.json").find(text)
    assert token is not None and token.expires is None
    listed = s3t("token", "list", run)
    assert listed.out.startswith(f"{token.id}  delete,audit ") and "privacy tool" in listed.out
    assert text not in listed.out and token.sha256 not in listed.out
    assert token.id in s3t("token", "revoke", run, token.id).out
    assert s3t("token", "list", run).out == ""
    assert TokenFile(run / "tokens.json").find(text) is None


def test_json_is_one_document(s3t: Run, small_run: RunDir) -> None:
    run = small_run.root
    made = json.loads(
        s3t("token", "create", run, "--role", "predict", "--lasts", "90d", "--json").out
    )
    assert made["token"].startswith("s3t_predict_") and made["expires"] > made["created"]
    (listed,) = json.loads(s3t("token", "list", run, "--json").out)
    assert listed == {name: value for name, value in made.items() if name != "token"}
    assert json.loads(s3t("token", "revoke", run, made["id"], "--json").out) == listed


def test_the_config_says_where_they_lie(s3t: Run, small_run: RunDir, tmp_path: Path) -> None:
    config = small_run.root / "config.yaml"
    text = config.read_text()
    assert "tokens: null" in text
    config.write_text(text.replace("tokens: null", f"tokens: {tmp_path}/elsewhere.json"))
    assert s3t("token", "create", small_run.root, "--role", "predict").code == 0
    assert (tmp_path / "elsewhere.json").is_file()
    assert not (small_run.root / "tokens.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("create", "RUN", "--role", "root"), "role 'root'"),
        (("create", "RUN", "--role", ","), "no role"),
        (("create", "RUN", "--role", "predict", "--lasts", "soon"), "--lasts"),
        (("create", "RUN", "--role", "predict", "--lasts", "0d"), "expires before it is created"),
        (("create", "RUN", "--role", "predict", "--name", "a\nb"), "printable"),
        (("revoke", "RUN", "deadbeef"), "no token 'deadbeef'"),
        (("create", "/nowhere", "--role", "predict"), "no plan.json"),
        (("list", "/nowhere"), "no plan.json"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    s3t: Run, small_run: RunDir, words: tuple[str, ...], said: str
) -> None:
    given = [str(small_run.root) if word == "RUN" else word for word in words]
    done = s3t("token", *given)
    assert (done.code, done.out) == (2, "") and said in done.err
    assert not (small_run.root / "tokens.json").exists()


def test_an_audit_takes_tokens_for_part_of_a_run(s3t: Run, small_run: RunDir) -> None:
    s3t("token", "create", small_run.root, "--role", "predict")
    done = s3t("audit", small_run.root)
    assert done.code == 0 and "broken" not in done.out
