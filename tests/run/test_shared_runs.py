"""Runs whose ledger is a database: the same nodes, and directories on several machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from s3t.audit.audit import audit
from s3t.config import Config, dump_config
from s3t.errors import InputError, IntegrityError, S3TError, UnavailableError
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.service import S3T
from s3t.training.prepare.replan import Replan
from s3t.training.work.remote_run import attach
from s3t.training.work.train import train
from tests.conftest import Run
from tests.support.postgres import Server
from tests.support.small_runs import Make, dead_keys, nodes, small_configs

ROW = [{"text": "person 4 says 5"}]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return small_configs(tmp_path)


@pytest.fixture(scope="module")
def trained(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str, Path]:
    """A run whose ledger and nodes any machine reaches; copies of its database and its folders."""
    folder = tmp_path_factory.mktemp("shared")
    url, store = postgres.create_database(), {"url": str(folder / "all" / "store")}
    config = small_configs(folder)("all/run", ledger=url, store=store)
    train(config)
    shutil.copytree(folder / "all", folder / "kept")
    return config, postgres.copy(url), folder / "kept"


@pytest.fixture
def shared(trained: tuple[Config, str, Path], postgres: Server) -> Config:
    """That run, as it was after its training, where it was."""
    config, copy, kept = trained
    assert config.ledger is not None
    postgres.replace(config.ledger, copy)
    shutil.rmtree(kept.with_name("all"))
    shutil.copytree(kept, kept.with_name("all"))
    return config


@pytest.fixture
def store(shared: Config) -> Path:
    """Where the run keeps its nodes for all machines."""
    return Path(str(shared.store.url))


def rewritten(run: RunDir, **changes: object) -> None:
    config = run.config().model_copy(update=changes)
    run.config_path.write_text(dump_config(config), encoding="utf-8")


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_where_the_ledger_is_shapes_no_node(shared: Config, small_run: RunDir) -> None:
    config = shared
    run = RunDir(config.run_dir)
    assert not run.ledger_path.exists()
    assert run.plan().digest == small_run.plan().digest
    kept = {path.name: path.read_bytes() for path in small_run.store.root.glob("*.safetensors")}
    assert nodes(config) == kept
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"], request_id="r")
        assert service.predict(ROW)[0].view == 1
    dead = dead_keys(config)
    train(run.here(), replan=Replan())  # and a purge at its end
    assert not dead & run.store.keys()
    with run.ledger() as ledger:
        assert ledger.receipt("r").purged_at is not None
    found = audit(run.root, from_scratch=True)
    assert found.holds, [claim for claim in found.claims if claim.status == "broken"]


def test_another_machine_serves_and_deletes(shared: Config, store: Path, tmp_path: Path) -> None:
    here, there = RunDir(shared.run_dir), attach(tmp_path / "there", str(store))
    assert not there.ledger_path.exists() and not there.joined
    with S3T.load(here.root) as one, S3T.load(there.root) as two:
        assert one.predict(ROW) == two.predict(ROW)
        receipt = two.deactivate(subjects=["p03"])
        assert one.status().to_dict() | {"run": ""} == two.status().to_dict() | {"run": ""}
        answers = one.predict(ROW), two.predict(ROW)
        assert answers[0] == answers[1] and answers[0][0].view == receipt.view
        before, dead = there.plan().digest, dead_keys(shared)
        assert dead and not dead & there.store.copies(), "gone with the deletion"
        train(here.here(), replan=Replan())
        assert there.plan().digest == here.plan().digest != before, "made there, found here"
        assert one.predict(ROW) == two.predict(ROW)
        assert two.status().view == one.status().view > receipt.view
    assert audit(here.root).holds and audit(there.root).holds
    left = min(dead)  # as if this machine had been off all the time
    there.store.path(left).write_bytes(there.store.path(min(there.store.copies())).read_bytes())
    found = audit(there.root)["E7"]
    assert found.status == "pending", found
    assert any("another machine purged it" in line for line in found.problems)
    assert purge(there).nodes == (left,)
    assert audit(there.root).holds


def test_one_machine_trains_at_a_time(shared: Config, store: Path, tmp_path: Path) -> None:
    here, there = RunDir(shared.run_dir), attach(tmp_path / "there", str(store))
    with here.training_lock():
        with pytest.raises(S3TError, match="on another machine"), there.training_lock():
            pass
        with S3T.load(there.root) as service:
            service.deactivate(subjects=["p03"])
    with there.training_lock():
        pass


def test_a_machine_that_was_away_attaches_to_the_plan_in_force(
    shared: Config, store: Path, tmp_path: Path
) -> None:
    run = RunDir(shared.run_dir)
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"])
    train(run.here(), replan=Replan())
    there = attach(tmp_path / "there", str(store))
    assert there.plan().digest == run.plan().digest
    assert there.plans.others() == []
    with S3T.load(there.root) as service:
        assert service.status().deleted == 3 and service.predict(ROW)


def test_copies_of_dead_nodes_are_forgotten(shared: Config, store: Path, tmp_path: Path) -> None:
    there = attach(tmp_path / "there", str(store))
    here = RunDir(shared.run_dir).store
    assert there.store.copies() == frozenset()
    for key in sorted(here.keys()):
        there.store.read(key)
    assert there.store.copies() == there.store.keys()
    key, *others = sorted(there.store.copies())
    assert there.store.forget_copies([key, "ab" * 32]) == []  # type: ignore[list-item]
    assert there.store.copies() == frozenset(others)
    assert there.store.has(key), "it is still at the URL, for whoever purges"
    stuck = there.store.path(others[0])
    stuck.unlink()
    stuck.mkdir()  # as good as a file that cannot be removed, for root too
    assert there.store.forget_copies(others) == [str(stuck)]
    plain = RunDir(tmp_path / "plain").store
    assert plain.copies() == frozenset() and plain.forget_copies(others) == []


class TestTheLedgerOfAnotherRun:
    def test_no_new_run_takes_it(self, shared: Config, make: Make) -> None:
        other = make("other", partition={"salt": "other"}, ledger=shared.ledger)
        with pytest.raises(InputError, match=r"holds the ledger of another run.*s3t attach"):
            train(other)
        with RunDir(shared.run_dir).ledger() as ledger:
            assert len(ledger.plans.all()) == 1

    def test_no_command_believes_it(
        self, shared: Config, make: Make, postgres: Server, s3t: Run
    ) -> None:
        other = make("other", partition={"salt": "other"}, ledger=postgres.create())
        train(other)
        run = RunDir(other.run_dir)
        before = everything(run.root)
        rewritten(run, ledger=shared.ledger)
        for words in (
            ("status", run.root),
            ("samples", run.root),
            ("deactivate", run.root, "--ids", "s030"),
            ("purge", run.root),
            ("log", run.root),
            ("repair", run.root),
        ):
            said = s3t(*words)
            assert said.code == 2 and "holds the ledger of another run" in said.err, words
        assert everything(run.root) == before
        with RunDir(shared.run_dir).ledger() as ledger:
            assert ledger.counts.totals()["deleted"] == 0

    def test_a_config_that_names_it_is_not_taken_over(self, shared: Config, make: Make) -> None:
        alone = make("alone", partition={"salt": "other"})
        train(alone)
        run = RunDir(alone.run_dir)
        before = run.config_path.read_bytes()
        with pytest.raises(InputError, match="another run"):
            train(alone.model_copy(update={"ledger": shared.ledger}))
        assert run.config_path.read_bytes() == before

    def test_no_ledger_is_no_ledger(self, shared: Config, postgres: Server) -> None:
        run = RunDir(shared.run_dir)
        rewritten(run, ledger=None)
        with pytest.raises(IntegrityError, match=r"ledger\.db is missing"):
            S3T.load(run.root)
        rewritten(run, ledger=postgres.create())
        with pytest.raises(IntegrityError, match="no ledger"):
            S3T.load(run.root)


class TestAttach:
    def test_from_the_command_line(self, store: Path, tmp_path: Path, s3t: Run) -> None:
        there = tmp_path / "deep" / "there"
        said = s3t("attach", there, store, "serve.port=8123", "--json")
        assert said.code == 0, said.err
        assert json.loads(said.out) == {"run": str(there), "url": str(store)}
        config = RunDir(there).config()
        assert (config.output, config.serve.port) == (str(there), 8123)
        assert config.store.url == str(store)
        again = s3t("attach", there, store)
        assert again.code == 2 and "empty or new" in again.err

    def test_all_or_nothing(self, store: Path, tmp_path: Path) -> None:
        there, before = tmp_path / "there", everything(store.parent)
        url = "ledger=postgresql+psycopg://s3t@127.0.0.1:1/run"
        with pytest.raises(UnavailableError, match="cannot be reached"):
            attach(there, str(store), [url])
        with pytest.raises(S3TError, match="nothing"):
            attach(there, str(store), ["nothing=1"])
        with pytest.raises(InputError, match="no run is kept"):
            attach(there, str(tmp_path / "nowhere"))
        (store / "run" / "plan.json").write_text("{}")
        with pytest.raises(IntegrityError):
            attach(there, str(store))
        assert everything(tmp_path) <= {"nowhere"} and everything(store.parent) == before

    def test_a_run_whose_ledger_is_a_file_is_not_attached(self, make: Make, tmp_path: Path) -> None:
        config = make(store={"url": str(tmp_path / "store")})
        train(config)
        with pytest.raises(InputError, match=r"file of the machine.*train it with ledger="):
            attach(tmp_path / "there", str(tmp_path / "store"))
        assert not (tmp_path / "there").exists()

    def test_no_password_is_published(
        self, make: Make, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = database_url.replace("s3t@", "s3t:geheim@")  # trusted, whatever it is
        config = make(ledger=given, store={"url": str(tmp_path / "store")})
        train(config)
        run = RunDir(config.run_dir)
        assert run.config().ledger == given, "as it was given"
        published = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
        assert not [path for path in published if b"geheim" in path.read_bytes()]
        monkeypatch.setenv("PGPASSWORD", "geheim")
        there = attach(tmp_path / "there", str(tmp_path / "store"))
        assert there.config().ledger == database_url
        assert "geheim" not in json.dumps(purge(run).to_dict())


def test_a_plan_that_is_nowhere_is_told(shared: Config, store: Path, tmp_path: Path) -> None:
    run = RunDir(shared.run_dir)
    there = attach(tmp_path / "there", str(store))
    with S3T.load(run.root) as service:
        service.deactivate(subjects=["p03"])
    train(run.here(), replan=Replan())
    plans = store / "run" / "plans"
    kept = plans / f"{run.plan().digest}.json"
    content = kept.read_bytes()
    kept.write_bytes(content.replace(b"0", b"1"))
    with pytest.raises(IntegrityError):
        there.plan()
    shutil.rmtree(plans)
    with pytest.raises(IntegrityError, match="is not the plan"):
        there.plan()
