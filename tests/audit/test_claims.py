"""What claims say, and what an audit does to a run: nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s3t.audit.audit import audit
from s3t.audit.audited_run import AuditedRun
from s3t.audit.findings import MOST_NAMED, Audit, Claim, Findings, judged
from s3t.cli import main
from s3t.data.partition import partition, slice_digest
from s3t.errors import InputError, IntegrityError
from s3t.ledger import Deletion, Ledger
from s3t.model.head import write_public_head
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.store import FileKeyRing
from s3t.training.prepare.replan import Replan, replan_run
from s3t.training.work.train import train
from s3t.types import Digest, NodeKey, Sample, SampleId, Subject
from tests.harness.damage.victim import HIT, Victim
from tests.support.small_runs import forget, person_rows, small_configs, write_csv


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file, but for SQLite's index of its log of writes, which is memory."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


class TestFindings:
    def test_broken_goes_before_pending_before_not_tried(self) -> None:
        def status(*steps: str) -> str:
            found = Findings()
            for step in steps:
                if step == "untried":
                    found.tried = False
                else:
                    getattr(found, step)("a sentence")
            return found.claim("E1").status

        assert status() == "holds"
        assert status("untried") == "not tried"
        assert status("untried", "pending") == "pending"
        assert status("pending", "broken", "untried") == "broken"

    def test_a_problem_is_said_once_and_many_are_counted(self) -> None:
        found = Findings()
        found.each([f"node {number}" for number in range(MOST_NAMED + 3)], "nodes")
        found.broken("node 1")
        assert len(found.claim("E1").problems) == MOST_NAMED + 1
        assert found.claim("E1").problems[-1] == "and 3 more nodes"

    @pytest.mark.parametrize("error", [IntegrityError("it is cut off"), KeyError("view")], ids=str)
    def test_what_cannot_be_judged_is_broken(self, error: Exception) -> None:
        def judge(found: Findings) -> None:
            found.checked("something")
            raise error

        claim = judged("E1", judge)
        assert claim.status == "broken"
        assert claim.problems[0].startswith("not judged")
        assert claim.checked == "something"

    def test_what_was_not_tried_does_not_fail_an_audit(self) -> None:
        def found(status: str) -> Audit:
            claims = (Claim("E1", "", "holds", "", ()), Claim("E2", "", status, "", ()))  # type: ignore[arg-type]
            return Audit("run", 3, claims)

        assert found("not tried").holds
        assert not found("pending").holds and found("pending").pending
        assert not found("broken").holds and not found("broken").pending
        assert found("broken").to_dict()["claims"][1]["status"] == "broken"


class TestReckoning:
    def samples(self) -> list[Sample]:
        return [
            Sample(
                SampleId(f"é{number:02d}" if number % 3 else f"s{number:02d}"),
                Subject(f"p{number // 2}") if number < 20 else None,
                Digest(f"{number % 17:064d}"),
            )
            for number in range(40)
        ]

    def test_slots_are_what_ledger_and_lineage_say(self, tmp_path: Path) -> None:
        run = RunDir(tmp_path)
        parts = partition(self.samples(), 2, 3, "salt")
        with run.ledger(create=True) as ledger:
            ledger.register(parts.slots())
            gone = [sample for sample, _ in parts.slots()][::7]
            for number, sample in enumerate(gone):
                ledger.delete(Deletion([sample.id]), lambda receipt, state: receipt)
                if number == 2:
                    ledger.deleted.purge(ledger.view(), [], {})
            persons = {(row.shard, row.slice): row for row in ledger.counts.persons()}
        facts = AuditedRun(run).ledger
        left = {sample.id for sample in self.samples()} - {sample.id for sample in gone}
        for shard, row in enumerate(parts.members):
            for part, members in enumerate(row):
                slot = facts.slot(shard, part)
                stay = [sample for sample in members if sample.id in left]
                assert slot.digest == slice_digest(stay)
                assert (slot.samples, slot.left) == (len(members), len(stay))
                there = persons[shard, part]
                assert (slot.persons, slot.persons_left) == (there.registered, there.left)
        assert facts.purged == 3
        assert not facts.wrong_copies
        reckoned = {slot: counts.last_hit for slot, counts in facts.recounted.items()}
        assert facts.hits == {slot: view for slot, view in reckoned.items() if view}

    def test_all_of_it_is_of_one_moment(self, victim: Victim) -> None:
        with Ledger.open(victim.run.ledger_path) as ledger, ledger.tables() as tables:
            before = len(list(tables.samples()))
            victim.delete("third")
            assert victim.sql("SELECT value FROM run WHERE key = 'view'") == [("3",)]
            rows = list(tables.samples())
            assert (len(rows), len(list(tables.forgotten()))) == (before, 2)
            assert all(row.deleted_view is None for row in rows)
            assert tables.values()["view"] == "2"


class TestNothingIsWritten:
    def test_to_a_run_that_nobody_has_open(self, victim: Victim) -> None:
        before = contents(victim.root)
        audit(victim.root, retrain=1, public_key=victim.public_key)
        assert contents(victim.root) == before
        assert not victim.run.ledger_path.with_name("ledger.db-shm").exists()

    def test_to_a_run_that_is_served(self, victim: Victim) -> None:
        with victim.run.ledger() as ledger:
            victim.delete("third")
            before = contents(victim.root)
            assert "ledger.db-wal" in before
            found = audit(victim.root)
            assert found.view == ledger.view() == 3
            assert contents(victim.root) == before

    def test_to_a_damaged_one(self, victim: Victim) -> None:
        victim.file(victim.living[0]).write_bytes(b"")
        victim.run.plan_path.write_text("{", encoding="utf-8")
        before = contents(victim.root)
        assert not audit(victim.root).holds
        assert contents(victim.root) == before

    def test_no_copy_is_fetched_from_the_url(self, tmp_path: Path) -> None:
        config = small_configs(tmp_path)(store={"url": str(tmp_path / "shared")})
        train(config)
        run = RunDir(config.run_dir)
        for path in run.store.root.iterdir():
            path.unlink()
        assert audit(run.root).holds
        assert not list(run.store.root.iterdir())


class TestTheWayOfADeletion:
    """One run: deleted, purged, repaired; by hand, as the commands do it."""

    def test_from_pending_to_from_scratch(self, small_run: RunDir, tmp_path: Path) -> None:
        run, config = small_run, small_run.here()
        forget(config, "p03")
        waiting = audit(run.root)
        assert {claim.name for claim in waiting.claims if claim.status == "pending"} == {"E7"}
        assert all("await" in problem for problem in waiting["E7"].problems)
        purge(run)
        assert audit(run.root).holds
        with run.training_lock():
            replan_run(run, torch.device("cpu"), Replan())
        planned = audit(run.root)
        assert planned["E8"].status == "pending"
        assert "is not trained yet" in planned["E8"].problems[0]
        copy = RunDir(shutil.copytree(run.root, tmp_path / "copy"))
        train(copy.here())
        fresh = min(copy.store.keys() - run.store.keys())
        shutil.copy(copy.store.path(fresh), run.store.root)  # as if killed before it was announced
        killed = audit(run.root)
        assert killed["E2"].status == "pending" and fresh in killed["E2"].problems[0]
        train(config, replan=Replan())
        repaired = audit(run.root, from_scratch=True)
        assert repaired.holds, repaired
        assert "8 nodes with the very bytes of this one" in repaired["E3"].checked
        forget(config, "p05")
        purge(run)
        hit = audit(run.root, from_scratch=True)
        assert hit.holds, hit
        assert "that s3t repair RUN would train" in hit["E3"].checked

    def test_new_samples_are_pending_until_they_are_trained(
        self, small_run: RunDir, tmp_path: Path
    ) -> None:
        run = small_run
        rows = [{**row, "id": f"n{row['id']}", "who": f"n{row['who']}"} for row in person_rows(3)]
        write_csv(tmp_path / "more.csv", rows)
        with run.training_lock():
            replan_run(run, torch.device("cpu"), Replan(True, (str(tmp_path / "more.csv"),)))
        planned = audit(run.root, retrain=1, from_scratch=True)
        wrong = {claim.name: claim.status for claim in planned.claims if claim.problems}
        assert wrong == {"E1": "pending", "E2": "pending", "E3": "pending"}
        train(run.here(), replan=Replan(True))
        added = audit(run.root, retrain="all")
        assert added.holds, added

    def test_a_node_from_another_seed_is_in_no_run_from_scratch(self, victim: Victim) -> None:
        key = victim.living[0]
        victim.remake(key, lambda tensors: {name: t * 2 for name, t in tensors.items()})
        found = audit(victim.root, from_scratch=True)
        assert found["E3"].status == "broken"
        assert f"node {key} has other bytes in a run from scratch" in found["E3"].problems[0]


class TestKindsOfRuns:
    def test_a_language_model_has_no_heads(self, text_run: Path) -> None:
        found = audit(text_run)
        assert found.holds, found
        assert "the base's own answers" in found["E4"].checked

    def test_data_keys_of_purged_nodes(self, tmp_path: Path) -> None:
        keys = tmp_path / "ring" / "keys.json"
        config = small_configs(tmp_path)(store={"encrypt": True, "keys": str(keys)})
        train(config)
        run, old = RunDir(config.run_dir), keys.read_bytes()
        forget(config, "p03")
        removed = purge(run).nodes
        found = audit(run.root, retrain=1)
        assert found.holds, found
        assert f"{len(removed)} data keys of purged nodes destroyed" in found["E7"].checked
        assert FileKeyRing(keys).get(NodeKey(next(iter(run.store.keys()))))
        keys.write_bytes(old)
        found = audit(run.root)
        assert found["E7"].status == "broken"
        assert all(any(key in problem for problem in found["E7"].problems) for key in removed)

    def test_a_fallback_head_is_the_one_of_the_log_and_of_the_public_data(
        self, tmp_path: Path
    ) -> None:
        config = small_configs(tmp_path)(aggregation={"on_exhausted": "base"})
        train(config)
        run = RunDir(config.run_dir)
        assert audit(run.root, retrain=1)["E5"].status == "holds"
        head = {name: tensor * 2 for name, tensor in load_file(run.head_path).items()}
        write_public_head(run.head_path, head, run.plan().base)
        assert "is not the one that the log names" in audit(run.root)["E5"].problems[0]
        found = audit(run.root, retrain=1)
        assert "is not what training on the public data gives" in found["E5"].problems[1]

    def test_no_run_and_no_use(self, tmp_path: Path, victim: Victim) -> None:
        with pytest.raises(InputError, match="is not a run directory"):
            audit(tmp_path)
        with pytest.raises(InputError, match="at least 1"):
            audit(victim.root, retrain=0)
        with pytest.raises(InputError, match="cannot be used"):
            audit(victim.root, receipts=[victim.root / "plan.json"])
        victim.run.joined_path.write_text("somewhere", encoding="utf-8")
        with pytest.raises(InputError, match="where its ledger is"):
            audit(victim.root)


class TestCommand:
    @pytest.fixture
    def s3t(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        def run(*words: object) -> int:
            monkeypatch.setattr("sys.argv", ["s3t", *map(str, words)])
            return main()

        return run

    def test_one_line_a_claim_and_exit_code_0(
        self, s3t: Callable[..., int], sound: Victim, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert s3t("audit", sound.root, "--receipt", sound.receipt) == 0
        lines = capfd.readouterr().out.splitlines()
        assert len(lines) == 12
        assert lines[2].startswith("holds      E1        keys prove what nodes have seen")
        assert lines[-1] == f"{sound.root} at view 2: 9 holds, 2 not tried"

    def test_problems_are_below_their_claim_and_exit_code_4(
        self, s3t: Callable[..., int], victim: Victim, capfd: pytest.CaptureFixture[str]
    ) -> None:
        change = "samples_left = samples_left + 1 WHERE shard = ? AND slice = ?"
        victim.sql(f"UPDATE slots SET {change}", *HIT)
        assert s3t("audit", victim.root) == 4
        lines = capfd.readouterr().out.splitlines()
        at = next(number for number, line in enumerate(lines) if line.startswith("broken"))
        assert " E6 " in lines[at]
        assert lines[at + 1].strip().startswith(f"slice {HIT[1]} of shard {HIT[0]}")

    def test_json_is_one_document(
        self, s3t: Callable[..., int], victim: Victim, capfd: pytest.CaptureFixture[str]
    ) -> None:
        victim.file(victim.living[0]).unlink()
        assert s3t("audit", victim.root, "--json", "--public-key", victim.public_key) == 4
        found = json.loads(capfd.readouterr().out)
        assert found["holds"] is False
        assert [c["name"] for c in found["claims"] if c["status"] == "broken"] == ["E8"]

    def test_bad_input_is_exit_code_2(
        self, s3t: Callable[..., int], sound: Victim, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert s3t("audit", sound.root, "--retrain", "some") == 2
        assert s3t("audit", sound.root, "--public-key", sound.receipt) == 2
        assert s3t("audit", sound.root.parent) == 2
        assert capfd.readouterr().out == ""
