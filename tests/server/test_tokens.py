"""Tokens: told once, kept as hashes, compared in constant time, gone within a second."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from s3t.errors import InputError, UnavailableError
from s3t.server.security import tokens
from s3t.server.security.tokens import ROLES, TokenFile


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json")


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file at every question."""
    monkeypatch.setattr(tokens, "_LOOK", 0.0)


def test_a_token_is_found_with_its_roles_in_order(file: TokenFile) -> None:
    text, token = file.create("privacy tool", ["audit", "delete", "audit"])
    assert text.startswith("s3t_delete-audit_") and len(text.rpartition("_")[2]) == 48
    assert file.find(text) == token
    assert token.roles == ("delete", "audit") and token.name == "privacy tool"


def test_the_file_keeps_hashes_alone_and_is_the_owners(file: TokenFile) -> None:
    text, token = file.create("one", ["predict"])
    kept = file.path.read_text()
    assert text not in kept and text.rpartition("_")[2] not in kept
    assert token.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in file.path.parent.iterdir()] == ["tokens.json"]
    assert "sha256" not in token.shown()


def test_wrong_tokens_are_found_nowhere(file: TokenFile) -> None:
    assert file.find("s3t_predict_" + "0" * 48) is None  # no file at all
    text, _ = file.create("one", ["predict"])
    file.reload()
    for wrong in ("", text[:-1], text + "0", text.upper(), text + "\0", "\ud800", "x" * 10**6):
        assert file.find(wrong) is None


def test_every_entry_is_compared_in_constant_time(
    file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [file.create(f"{number}", ["predict"])[0] for number in range(5)]
    compared: list[Any] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for text in (texts[0], texts[4], "wrong"):
        compared.clear()
        file.find(text)
        assert len(compared) == 5


def test_an_expired_token_is_good_for_nothing(file: TokenFile) -> None:
    text, token = file.create("one", ["predict"], timedelta(hours=1))
    assert token.expires is not None
    end = datetime.fromisoformat(token.expires)
    assert file.find(text, end - timedelta(seconds=1)) == token
    assert file.find(text, end) is None
    with pytest.raises(InputError, match="expires"):
        file.create("two", ["predict"], timedelta(0))


def test_a_revoked_token_ends_where_it_is_served(file: TokenFile, at_once: None) -> None:
    serving = TokenFile(file.path)
    text, token = file.create("one", ["predict"])
    other, _ = file.create("two", ["predict"])
    assert serving.find(text) == token
    assert file.revoke(token.id) == token
    assert serving.find(text) is None
    assert serving.find(other) is not None
    with pytest.raises(InputError, match="there is no token"):
        file.revoke(token.id)


def test_the_file_is_looked_at_once_a_second_or_when_told(file: TokenFile) -> None:
    serving = TokenFile(file.path)
    assert serving.find("x") is None
    text, token = file.create("one", ["predict"])
    assert serving.find(text) is None  # it has looked a moment ago
    serving.reload()
    assert serving.find(text) == token


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2, "tokens": []}',
        b'{"format": 1, "tokens": [{}]}',
        b'{"format": 1, "tokens": 7}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_lets_nobody_in(file: TokenFile, at_once: None, damage: bytes) -> None:
    text, token = file.create("one", ["predict"])
    assert file.find(text) == token
    good = file.path.read_bytes()
    file.path.write_bytes(damage)
    with pytest.raises(UnavailableError, match="no token file"):
        file.find(text)
    with pytest.raises(InputError):
        file.create("two", ["predict"])
    assert file.path.read_bytes() == damage
    file.path.write_bytes(good)
    assert file.find(text) == token


def test_a_file_that_others_may_write_lets_nobody_in(file: TokenFile, at_once: None) -> None:
    text, _ = file.create("one", ["predict"])
    file.path.chmod(0o620)
    with pytest.raises(UnavailableError, match="may be written by others"):
        file.find(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha256", "00"),
        ("sha256", None),
        ("roles", ["root"]),
        ("roles", []),
        ("expires", "2030-01-01T00:00:00"),
        ("expires", "soon"),
        ("id", 7),
    ],
)
def test_an_entry_of_another_kind_is_no_token(file: TokenFile, field: str, value: Any) -> None:
    file.create("one", ["predict"])
    body = json.loads(file.path.read_text())
    body["tokens"][0][field] = value
    file.path.write_text(json.dumps(body))
    with pytest.raises(InputError):
        file.tokens()


@pytest.mark.parametrize("name", ["", " ", "x" * 201, "two\nlines", "\x1b[31m"])
def test_names_are_printable(file: TokenFile, name: str) -> None:
    with pytest.raises(InputError, match="printable"):
        file.create(name, ["predict"])
    assert not file.path.exists()


@pytest.mark.parametrize("roles", [[], ["root"], ["predict", "Delete"]])
def test_roles_are_of_the_list(file: TokenFile, roles: list[str]) -> None:
    with pytest.raises(InputError, match=", ".join(ROLES)):
        file.create("one", roles)


def test_a_file_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        TokenFile(tmp_path / "nowhere" / "tokens.json").create("one", ["predict"])


def test_many_writers_lose_no_token(file: TokenFile) -> None:
    import threading

    def make(number: int) -> None:
        TokenFile(file.path).create(str(number), ["predict"])

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in file.tokens()) == sorted(map(str, range(8)))


def test_the_moment_of_making_is_told(file: TokenFile) -> None:
    _, token = file.create("one", ["predict"])
    age = datetime.now(UTC) - datetime.fromisoformat(token.created)
    assert timedelta(0) <= age < timedelta(minutes=1)
