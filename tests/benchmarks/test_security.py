"""The list of hostile inputs: what it counts as wrong, and that no poisoned node is ever read."""

from __future__ import annotations

import pytest

from benchmarks.serving.attacks import ATTACKS, ROUTES, Attack
from benchmarks.serving.besieged import told
from benchmarks.serving.poison import KINDS, MARKER
from s3t.errors import IntegrityError
from s3t.run import RunDir
from tests.server.test_access import ROUTES as JUDGED


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


def test_attacks_are_named_once_and_know_every_route() -> None:
    names = [(attack.group, attack.name) for attack in ATTACKS]
    assert len(set(names)) == len(names) > 25
    assert list(ROUTES) == JUDGED


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_poisoned_node_is_read(small_run: RunDir, name: str) -> None:
    node = small_run.plan().forest.nodes[0].key
    path = small_run.store.root / f"{node}.safetensors"
    KINDS[name](path)
    run = RunDir(small_run.root)
    if name.startswith("strangers"):
        assert run.store.strays() and run.store.read(node)
    else:
        with pytest.raises(IntegrityError, match=node):
            run.store.read(node)
    assert not list(small_run.root.rglob(MARKER))
