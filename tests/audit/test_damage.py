"""Every kind of damage is found and named, and leaves the other claims to be judged."""

from __future__ import annotations

import pytest

from benchmarks.damage.kind import Kind
from benchmarks.damage.table import KINDS
from benchmarks.damage.victim import Victim
from s3t.audit.audit import audit
from s3t.audit.claims import TITLES


def test_an_undamaged_run_holds(sound: Victim) -> None:
    found = audit(sound.root, retrain="all", public_key=sound.public_key, receipts=[sound.receipt])
    assert found.holds, found
    assert {claim.name for claim in found.claims if claim.status == "not tried"} == {"E3"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_is_found_and_named(kind: Kind, victim: Victim) -> None:
    name = kind.inflict(victim)
    found = audit(victim.root, **kind.asks(victim))
    assert not found.holds
    assert found[kind.claims[0]].status == kind.status, found[kind.claims[0]]
    wrong = {claim.name for claim in found.claims if claim.status in ("broken", "pending")}
    assert wrong >= {*kind.claims}
    said = [problem for claim in found.claims for problem in claim.problems]
    assert any(name in problem for problem in said), said
    assert [claim.name for claim in found.claims] == [*TITLES]


@pytest.mark.parametrize(
    "name",
    [
        "a receipt edited, the chain made anew: what no table tells",
        "all signatures removed",
        "a node's weights changed, all digests, the ledger and the log made anew",
    ],
)
def test_some_takes_what_was_kept_elsewhere(name: str, victim: Victim) -> None:
    """If this fails, the audit has become better than its documentation says."""
    (kind,) = (kind for kind in KINDS if kind.name == name)
    kind.inflict(victim)
    assert kind.asks(victim)
    assert audit(victim.root).holds


def test_a_damaged_node_leaves_the_rest_to_hold(victim: Victim) -> None:
    victim.flip(victim.file(victim.living[-1]), -5)
    statuses = {claim.name: claim.status for claim in audit(victim.root).claims}
    assert {name for name, status in statuses.items() if status == "broken"} == {"E2", "E8"}


def test_an_unreadable_ledger_leaves_what_can_do_without_it(victim: Victim) -> None:
    victim.run.ledger_path.write_bytes(b"no database" * 99)
    found = audit(victim.root)
    assert found.view is None
    assert "recipe, 2 sequences are those of the plan" in found["E5"].checked
    assert "frozen tensors are those of the plan's base" in found["E9"].checked
    assert "E1" not in {claim.name for claim in found.claims if claim.status == "holds"}
