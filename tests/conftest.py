"""What all tests share: an offline, repeatable environment, and the folder of real data."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from s3t.system.pinned import pin
from tests.support.commands import ROOT, Run, Said, here, process

if TYPE_CHECKING:
    from s3t.run import RunDir
    from tests.support.postgres import Server

__all__ = ["ROOT", "TINY", "Once", "Run", "Said", "text_rows", "write_lines"]

pytest_plugins = ("tests.support.postgres",)

# Before any test module imports torch, transformers or datasets, which read these once.
os.environ.update(
    OMP_NUM_THREADS="1",  # as training itself; several would wait for each other in small models
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

assert pin("native"), "torch was loaded before its arithmetic could be pinned"

# Runs are copied by the hundred and written durably: in memory that costs nothing.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 8 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

settings.register_profile("s3t", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("ci", settings.get_profile("s3t"), max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "s3t"))


# What is imported stays: nothing of it is garbage, and to look through it takes long.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage again, of what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def bases_read_once() -> Iterator[None]:
    """Small bases are read from the disk once a process (``tests/support/read_once.py``).

    Not where no test module loads models: torch and transformers take seconds to import.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "s3t.model.loading" in sys.modules:
            from tests.support.read_once import read_once

            read_once(patch)
        yield


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and small real models beside the repository; the test skips without them."""
    folder = (ROOT / os.environ.get("S3T_SHARED_DATA", "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set S3T_SHARED_DATA to where the shared data lies")
    return folder


@pytest.fixture(scope="session")
def run_python() -> Callable[[str], str]:
    """Run code in a fresh interpreter at the repository's root, and give what it printed."""

    def run(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


TINY = (
    "model.make.hidden=16",
    "model.make.heads=2",
    "model.adapt.steps=5",
    "stage.epochs=1",
    "training.workers=1",
    "aggregation.on_exhausted=base",  # so that there is a public head; copies raise by default
    "aggregation.weights=data",  # which change with nothing but the view
)
"""Overrides that make of configs/digits.yaml a run of seconds."""


@pytest.fixture(scope="session")
def command() -> Run:
    """Run a command as a process of its own, in a given directory."""
    return process


@pytest.fixture(scope="session")
def s3t() -> Run:
    """Run a command in this process."""
    return here


Once = Callable[[str, Callable[[Path], object]], Path]
"""A folder of a name, filled the first time that any test process asks for it."""


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Folders that all processes of this test session share: what is trained there is read only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def digits_training(once: Once) -> tuple[Path, Said]:
    """A tiny digits run, trained by ``s3t train --json`` without ``output``, and what that said."""

    def fill(folder: Path) -> None:
        done = here("train", ROOT / "configs/digits.yaml", *TINY, "--json", cwd=folder)
        assert done.code == 0, done.err
        (folder / "said.json").write_text(json.dumps([done.code, done.out, done.err]))

    folder = once("digits", fill)
    return folder / "runs" / "digits", Said(*json.loads((folder / "said.json").read_text()))


@pytest.fixture(scope="session")
def text_training(once: Once) -> Path:
    """A tiny language model's run on lines with ids, persons, and exact copies across persons."""
    return once("text", _train_texts) / "run"


def _train_texts(folder: Path) -> None:
    from s3t.config import load_config
    from s3t.training.work.train import train

    write_lines(folder / "private.jsonl", text_rows())
    public = [{"text": f"public line {number}"} for number in range(12)]
    write_lines(folder / "public.jsonl", public)
    source = f"{{format: json, files: {folder}/public.jsonl}}"
    (folder / "tiny.yaml").write_text(
        f"""
task: causal-lm
output: {folder}/run
data:
  private: {{format: json, files: {folder}/private.jsonl}}
  public: {{validation: {source}, test: {source}}}
  columns: {{id: key}}
  max_length: 32
model:
  base: make:gpt2
  make: {{hidden: 16, layers: 2, heads: 2, init_scale: 5}}
partition: {{shards: 2, slices: 2, salt: text, subject: who}}
stage: {{epochs: 1, learning_rate: 3e-2}}
aggregation: {{weights: uniform}}
training: {{workers: 1}}
""",
        encoding="utf-8",
    )
    train(load_config(folder / "tiny.yaml"))


@pytest.fixture(scope="session")
def small_training(once: Once) -> Path:
    """A small run on texts of persons (``tests/support/small_runs.py``)."""
    from s3t.training.work.train import train
    from tests.support.small_runs import small_configs

    return once("small", lambda folder: train(small_configs(folder)())) / "run"


@pytest.fixture
def small_run(small_training: Path, tmp_path: Path) -> RunDir:
    """A copy of the small run; its data lie where they lay."""
    from s3t.run import RunDir

    return RunDir(shutil.copytree(small_training, tmp_path / "run"))


@pytest.fixture(scope="session")
def postgres_training(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, its ledger a database that can be copied."""
    from s3t.training.work.train import train
    from tests.support.small_runs import small_configs

    config = small_configs(tmp_path_factory.mktemp("replicas"))(ledger=postgres.create_database())
    train(config)
    return config.run_dir


@pytest.fixture(params=["sqlite", "postgresql"])
def either_run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    """A copy of the small run, its ledger of one kind or the other."""
    from s3t.run import RunDir

    if request.param == "sqlite":
        found: RunDir = request.getfixturevalue("small_run")
        return found
    trained: Path = request.getfixturevalue("postgres_training")
    server: Server = request.getfixturevalue("postgres")
    copy = RunDir(shutil.copytree(trained, tmp_path / "run"))
    ledger = copy.config().ledger
    assert ledger is not None
    text = copy.config_path.read_text(encoding="utf-8")
    copy.config_path.write_text(text.replace(ledger, server.copy(ledger)), encoding="utf-8")
    return RunDir(copy.root)


@pytest.fixture(scope="session")
def language_training(once: Once) -> Path:
    """A tiny Llama's run on texts of persons (``tests/support/language_run.py``)."""
    from s3t.training.work.train import train
    from tests.support.language_run import language_config

    return once("language", lambda folder: train(language_config(folder))) / "run"


@pytest.fixture
def language_run(language_training: Path, tmp_path: Path) -> RunDir:
    """A copy of the tiny Llama's run; its data lie where they lay."""
    from s3t.run import RunDir

    return RunDir(shutil.copytree(language_training, tmp_path / "language"))


@pytest.fixture
def digits_run(digits_training: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy of the tiny digits run to do with as a test likes; exhausted, it raises."""
    run = Path(shutil.copytree(digits_training[0], tmp_path / "run"))
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "on_exhausted: base" in text
    config.write_text(text.replace("on_exhausted: base", "on_exhausted: raise"), encoding="utf-8")
    return run


@pytest.fixture
def text_run(text_training: Path, tmp_path: Path) -> Path:
    """A copy of the tiny language model's run."""
    return Path(shutil.copytree(text_training, tmp_path / "text-run"))


def text_rows() -> list[dict[str, str | None]]:
    """40 lines: two a person, the last eight nobody's; lines 0 and 2 are the same text."""
    return [
        {
            "key": f"t{number:02d}",
            "who": f"p{number // 2:02d}" if number < 32 else None,
            "text": "said twice" if number in (0, 2) else f"private line {number}",
        }
        for number in range(40)
    ]


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
