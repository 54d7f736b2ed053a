"""What the tests of training share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from s3t.config import Config, anchored, dump_config, load_config
from s3t.types import digest
from tests.conftest import Once
from tests.support.small_runs import Make, Trained, small_configs

KEPT, MEMORY = "kept", "memory"
"""What a folder of a training holds: the run, and its store."""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes configs of small runs whose data lie in the test's folder."""
    return small_configs(tmp_path)


@pytest.fixture
def trained(tmp_path: Path, once: Once) -> Trained:
    """Equal configs over equal files are trained once a session, and each test gets a copy.

    A copy holds the run, what else the training made in the test's folder, and a store in memory.
    It is a run that was moved: no other lies where it was trained.
    """

    def copied(config: Config, **words: Any) -> Config:
        files = [path for path in sorted(tmp_path.iterdir()) if named(path, config)]
        content = [one.read_bytes().hex() for path in files for one in below(path)]
        key = digest([words, elsewhere(config, tmp_path, Path("/")).model_dump_json(), *content])
        folder = once(
            f"trained-{key[:16]}",
            lambda folder: fill(folder, files, elsewhere(config, tmp_path, folder), words),
        )
        shutil.copytree(folder / KEPT, config.run_dir)
        settled = load_config(folder / KEPT / "config.yaml").aggregation
        text = dump_config(anchored(config).model_copy(update={"aggregation": settled}))
        (config.run_dir / "config.yaml").write_text(text, encoding="utf-8")
        for path in folder.iterdir():
            if path.name not in (KEPT, MEMORY) and not (tmp_path / path.name).exists():
                copy(path, tmp_path)
        if in_memory(config):
            memory, root = fsspec.url_to_fs(config.store.url)
            memory.put(f"{folder / MEMORY}/", f"{root}/", recursive=True)
        return config

    return copied


def named(path: Path, config: Config) -> bool:
    """Whether a config reads a file or folder."""
    return path.name != "run" and f'"{path}"' in config.model_dump_json()


def below(path: Path) -> list[Path]:
    return sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def copy(path: Path, folder: Path) -> None:
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    else:
        shutil.copy(path, folder)


def elsewhere(config: Config, here: Path, folder: Path) -> Config:
    """The same config with all that lies here in another folder, and the run's name ``run``."""
    config = config.model_copy(update={"name": "run", "output": str(here / "run")})
    # what is unset stays so: a default gives way where what is asked for is refused
    text = config.model_dump_json(exclude_unset=True)
    return Config.model_validate_json(text.replace(str(here), str(folder)))


def fill(folder: Path, files: list[Path], config: Config, words: dict[str, Any]) -> None:
    """Train a run in a folder, beside copies of the files that it reads."""
    from s3t.training.work.train import train

    for path in files:
        copy(path, folder)
    train(config, **words)
    config.run_dir.rename(folder / KEPT)
    if in_memory(config):
        memory, root = fsspec.url_to_fs(config.store.url)
        memory.get(f"{root}/", f"{folder / MEMORY}/", recursive=True)


def in_memory(config: Config) -> bool:
    return config.store.url is not None and config.store.url.startswith("memory:")
