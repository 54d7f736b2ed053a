"""Every kind of damage is found and named, and leaves the other claims to be judged; no bit that
is flipped, process that is killed or disk that loses what was not synced brings a sample back."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3t.audit.audit import CLAIMS, audit
from tests.harness.damage import flips, shim
from tests.harness.damage.kind import Kind
from tests.harness.damage.kinds import KINDS
from tests.harness.damage.opening import Opening
from tests.harness.damage.victim import Victim

ROOT = Path(__file__).resolve().parents[2]


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
    assert [claim.name for claim in found.claims] == [*CLAIMS]


@pytest.mark.parametrize(
    "name",
    [
        "a receipt edited, the chain made again: what no table tells",
        "all signatures removed",
        "a node's weights changed, all digests, the ledger and the log made again",
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


def test_a_request_that_is_told_to_be_effective_at_another_moment(victim: Victim) -> None:
    victim.sql("UPDATE requests SET effective = 1 WHERE request_id = 'first'")
    problems = audit(victim.root)["receipts"].problems
    assert any("'first'" in one and "took effect" in one for one in problems), problems


def test_an_unreadable_ledger_leaves_what_can_do_without_it(victim: Victim) -> None:
    victim.run.ledger_path.write_bytes(b"no database" * 99)
    found = audit(victim.root)
    assert found.view is None
    assert "recipe, 2 sequences are those of the plan" in found["E5"].checked
    assert "frozen tensors are those of the plan's base" in found["E9"].checked
    assert "E1" not in {claim.name for claim in found.claims if claim.status == "holds"}


# ── bits ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1200, pytest.param(400, marks=pytest.mark.heavy)])
def test_bits_are_found_or_harmless(victim: Victim, tmp_path: Path, count: int) -> None:
    states = flips.states_of(victim)
    openings = {name: Opening(tmp_path / name, state) for name, state in states.items()}
    found: dict[str, Counter[str]] = {}
    for state, name, bit in flips.chosen(states, count):
        verdict, why = openings[state].flip(name, bit)
        assert verdict != "FAULT", (state, name, bit, why)
        found.setdefault(name, Counter())[verdict] += 1
    assert {"ledger.db", "ledger.db-wal", "ledger.db-lock", "plan.json", "config.yaml"} <= {*found}
    assert sum(verdicts["opening"] for verdicts in found.values()) > count / 24
    for name in ("ledger.db-lock", "plan.json", "base_head.safetensors"):
        assert {*found[name]} == {"opening"}, "no bit of it is free"


def test_a_dead_node_that_serves_is_a_fault(
    victim: Victim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If who looks were blind, nothing above would fail."""
    opening = Opening(tmp_path / "copy", flips.states_of(victim)["at rest"])
    sound = opening.sound("plan.json")
    assert sound.dead
    alive = {**sound.served, next(iter(sound.dead)): "of a dead node"}
    monkeypatch.setattr(opening, "_look", lambda name: replace(sound, served=alive))
    assert opening.flip("plan.json", 0)[0] == "FAULT"


@pytest.mark.heavy
def test_flips_are_made_in_processes_of_their_own(victim: Victim, tmp_path: Path) -> None:
    """One that dies is a fault, and another goes on after it."""
    states = flips.states_of(victim)
    some: list[flips.Flip] = [("at rest", "plan.json", bit) for bit in range(120)]
    verdicts: list[str] = []
    for _, verdict, _ in flips.flipped(tmp_path, states, some, processes=1):
        verdicts.append(verdict)
        if len(verdicts) == 1:
            (process,) = multiprocessing.active_children()
            process.kill()
    assert Counter(verdicts) == {"opening": 119, "FAULT": 1}


# ── kills and crashes ────────────────────────────────────────────────────────────────────────


def alone(name: str, tmp_path: Path) -> dict[str, Any]:
    """What a quick benchmark writes, from a process of its own: it forks, and threads are here."""
    words = ["-m", "benchmarks.damage", "--only", name, "--quick", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    return found


@pytest.mark.heavy
def test_killed_writers_lose_no_deletion(tmp_path: Path) -> None:
    found = alone("kills", tmp_path)
    assert found["what_did_not_hold"] == []
    assert found["deletions acknowledged"] > 0
    assert found["kills"] == found["deleters"] + found["keepers"] + found["readers"] >= 40


@pytest.mark.heavy
@pytest.mark.skipif(shim.COMPILER is None, reason="there is no C compiler to make the shim with")
def test_a_disk_that_loses_what_was_not_synced_loses_no_deletion(tmp_path: Path) -> None:
    found = alone("crashes", tmp_path)
    assert found["what_did_not_hold"] == []
    assert all(found["calls"][call] > 0 for call in ("fsync", "fdatasync", "rename", "unlink"))
    assert all(points > 9 and known > 9 for _, points, known, _ in found["rows"])


def test_the_model_of_a_disk_loses_what_was_not_synced(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    old, new = root / "old", root / "new"
    old.write_text("as it was")
    gone = root / "gone"
    gone.write_text("removed")
    disk = shim.Disk(root)
    old.write_text("not synced")
    new.write_text("synced, its name is not")
    disk.sync(new)
    gone.unlink()

    def crashed(name: str, *, names_too: bool) -> dict[str, str]:
        disk.crash(tmp_path / name, names_too=names_too)
        return {path.name: path.read_text() for path in (tmp_path / name).iterdir()}

    before = {"old": "as it was", "gone": "removed"}
    assert crashed("strict", names_too=True) == before
    assert crashed("names", names_too=False) == {"old": "as it was", "new": new.read_text()}
    disk.sync(root)
    disk.sync(old)
    after = {"old": "not synced", "new": new.read_text()}
    assert crashed("later", names_too=True) == after
