"""Runs whose nodes are sealed: trained, served, forgotten, and their backups with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from s3t.config import Config, anchored, load_config
from s3t.errors import ConfigError, DamagedNodeError, InputError, IntegrityError
from s3t.run import RunDir
from s3t.service import S3T
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.prepare import prepare
from s3t.training.retrain import retrain
from s3t.training.work.train import train
from s3t.training.work.worker_state import WorkerState
from tests.support.small_runs import Make, dead_keys, forget, saved, small_configs

TEXTS = [f"person {person} says {person}" for person in range(6)]


@pytest.fixture
def config(tmp_path: Path) -> Make:
    return small_configs(tmp_path)


@pytest.fixture
def sealed(config: Make, tmp_path: Path) -> Callable[..., Config]:
    """Configs of sealed runs, whose ring lies beside them."""

    def make(output: str = "run", **sections: Any) -> Config:
        keys = str(tmp_path / "keys" / f"{output}.keys")
        store = {"encrypt": True, "keys": keys} | sections.pop("store", {})
        return config(output, store=store, **sections)

    return make


def plain_bytes(config: Config) -> dict[str, bytes]:
    store = RunDir(config.run_dir).store
    return {key: store.content(key) for key in sorted(store.keys())}


@pytest.mark.heavy
def test_a_sealed_run_is_the_plain_run_to_whoever_has_its_ring(config: Make, sealed: Make) -> None:
    plain, run = config("plain"), sealed("sealed")
    train(plain)
    train(run)
    assert plain_bytes(run) == plain_bytes(plain)
    folder = RunDir(run.run_dir).store.root
    assert all(path.read_bytes()[:7] == b"S3TSEAL" for path in folder.iterdir())
    with S3T.load(run.run_dir) as one, S3T.load(plain.run_dir) as two:
        assert [str(a) for a in one.predict(TEXTS)] == [str(b) for b in two.predict(TEXTS)]


@pytest.mark.heavy
def test_workers_share_a_ring(sealed: Make) -> None:
    alone, pair = sealed("alone"), sealed("pair", training={"workers": 2})
    train(alone)
    train(pair)
    assert plain_bytes(pair) == plain_bytes(alone)


@pytest.mark.heavy
@pytest.mark.parametrize("encrypt", [False, True])
def test_hidden_states_of_a_sealed_run_are_on_no_disk(
    config: Make, sealed: Make, encrypt: bool
) -> None:
    made = (sealed if encrypt else config)("run")
    prepare(made, torch.device("cpu"))
    run = RunDir(made.run_dir)
    prepared = load_prepared(run, torch.device("cpu"))
    roots = [node.key for node in run.plan().forest.roots(0)]
    WorkerState(prepared, shared=True).train(roots)
    assert run.trunk_path.exists() != encrypt


@pytest.mark.heavy
def test_a_backup_of_the_run_forgets_what_the_run_forgets(sealed: Make, tmp_path: Path) -> None:
    run = sealed()
    train(run)
    backup = tmp_path / "backup"
    shutil.copytree(run.run_dir, backup)
    forget(run, "p03")
    dead, store = dead_keys(run), RunDir(run.run_dir).store
    alive = store.keys() - dead
    assert dead and alive
    assert len(store.remove(dead).files) == 2 * len(dead), "each with its evidence"
    shutil.rmtree(run.run_dir)
    shutil.copytree(backup, run.run_dir)
    restored = RunDir(run.run_dir)
    assert restored.store.keys() == dead | alive
    for key in sorted(dead):
        with pytest.raises(DamagedNodeError, match="its data key was destroyed"):
            restored.store.read(key)
    assert all(retrain(restored, sorted(alive), tmp_path / "again").values())


@pytest.mark.heavy
def test_a_sealed_run_needs_its_ring_and_says_so(sealed: Make) -> None:
    run = sealed()
    train(run)
    ring = Path(run.store.keys or "")
    content = ring.read_bytes()
    ring.unlink()
    with pytest.raises(IntegrityError, match=f"key ring {ring} is missing"), S3T.load(run.run_dir):
        pass
    ring.write_bytes(content)
    with pytest.raises(IntegrityError, match="by others"), S3T.load(run.run_dir):
        pass
    ring.chmod(0o600)
    with S3T.load(run.run_dir) as service:
        assert len(service.predict(TEXTS)) == len(TEXTS)


@pytest.mark.heavy
def test_nodes_at_a_url_are_sealed_too(sealed: Make, config: Make, tmp_path: Path) -> None:
    plain, run = config("plain"), sealed(store={"url": str(tmp_path / "shared")})
    train(plain)
    train(run)
    assert plain_bytes(run) == plain_bytes(plain)
    for path in (tmp_path / "shared").glob("*.safetensors"):
        assert path.read_bytes()[:7] == b"S3TSEAL"


# ── configs ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("store", "why"),
    [
        ({"encrypt": True}, r"encrypt needs keys.*such as store\.keys=/secure/RUN\.keys"),
        ({"keys": "/secure/run.keys"}, "give both, or none"),
        ({"encrypt": True, "keys": "python:no_factory"}, "not of the form python:package.module"),
        ({"encrypt": True, "keys": "s3://bucket/keys"}, "is a URL: give the path of a file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: Make, tmp_path: Path, store: dict[str, Any], why: str
) -> None:
    path = saved(config(), tmp_path)
    with pytest.raises(ConfigError, match=why):
        load_config(path, [f"store.{name}={value}" for name, value in store.items()])


def test_hidden_states_on_disk_do_not_fit(sealed: Make, tmp_path: Path) -> None:
    path = saved(sealed(), tmp_path)
    with pytest.raises(ConfigError, match=r"trunk_cache=disk .* does not fit store\.encrypt"):
        load_config(path, ["training.trunk_cache=disk"])
    for kept in ("auto", "memory", "'off'"):  # YAML takes a bare off for false
        load_config(path, [f"training.trunk_cache={kept}"])


def test_a_ring_in_the_run_is_refused_before_anything_is_written(
    sealed: Make, tmp_path: Path
) -> None:
    path, run = saved(sealed(), tmp_path), tmp_path / "run"
    with pytest.raises(ConfigError, match=f"store.keys {run}/ring lies in the run directory"):
        load_config(path, [f"store.keys={run}/ring"])
    (tmp_path / "link").symlink_to(run)
    linked = load_config(path, [f"store.keys={tmp_path}/link/ring"])
    with pytest.raises(InputError, match=f"lies in {run}"):
        RunDir(run, anchored(linked).store)
    at_url = load_config(path, [f"store.keys={tmp_path}/far/ring", f"store.url={tmp_path}/far"])
    with pytest.raises(InputError, match=f"lies in {tmp_path}/far"):
        RunDir(run, anchored(at_url).store)
    assert not run.exists()


def test_a_ring_means_the_same_from_anywhere(
    sealed: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = saved(sealed(), tmp_path)
    for given, meant in {
        "run.keys": f"{tmp_path}/run.keys",
        "~/run.keys": f"{tmp_path}/home/run.keys",
        "python:package.module:factory": "python:package.module:factory",
    }.items():
        assert anchored(load_config(path, [f"store.keys={given}"])).store.keys == meant
