"""What counts as wrong in the list of hostile inputs."""

from __future__ import annotations

from benchmarks.serving.attacks import ATTACKS, Attack
from benchmarks.serving.besieged import told


def test_an_outcome_is_a_refusal_or_was_said_to_be_right() -> None:
    strict = Attack("a", "b", lambda _: iter(()))
    lenient = Attack("a", "b", lambda _: iter(()), ("200",))
    for outcome in ("422 invalid_body", "401 unauthenticated", "closed", "closed (OSError)"):
        assert strict.allows(outcome) and lenient.allows(outcome)
    for outcome in ("500 internal", "503 unavailable", "no answer", "NOT REFUSED 200", ""):
        assert not strict.allows(outcome) and not lenient.allows(outcome)
    assert lenient.allows("200") and not strict.allows("200")
    assert told(422, b'{"code": "invalid_body"}') == "422 invalid_body"
    assert told(200, b"not JSON") == told(200, b"[]") == "200"


def test_attacks_are_named_once() -> None:
    names = [(attack.group, attack.name) for attack in ATTACKS]
    assert len(set(names)) == len(names) > 25
