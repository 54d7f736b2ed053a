"""Every shipped config: it loads, says how it is run, and can be planned."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from s3t import cli
from s3t.config import load_config
from s3t.data.sources import read_table
from s3t.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands in the configs are meant to be run."""
    monkeypatch.chdir(ROOT)


def test_there_are_configs() -> None:
    assert ROOT / "configs/digits.yaml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_command(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    *before, command = first[2:].split(" && ")  # what makes its data may come before
    assert all(one.startswith("python -m benchmarks.") for one in before)
    verb, given, *overrides = command.removeprefix("s3t ").split()
    assert command.startswith("s3t ") and (verb, given) == ("train", f"configs/{path.name}")
    assert load_config(path, overrides).run_dir == Path("runs") / path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_can_be_planned(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load_config(path)
    public = config.data.public
    for source in filter(None, (config.data.private, public.adapt, public.validation, public.test)):
        if source.format == "hub":
            continue
        try:
            read_table(source, config.data.columns)
        except DataError as error:
            pytest.skip(f"its data is not here: {error.problems[0]}")
    base = Path(config.model.base)
    if config.model.base.startswith((".", "/")) and not base.exists():
        pytest.skip(f"its base is not here: {base}")
    clusters = config.partition.clusters is not None and config.model.adapt is not None
    short = ["model.adapt.steps=20"] if clusters else []  # they are of the adapted base
    monkeypatch.setattr(sys, "argv", ["s3t", "plan", str(path), *short, "--json"])
    assert cli.main() == 0
    plan = json.loads(capfd.readouterr().out)
    assert (plan["shards"], plan["slices"]) == (config.partition.shards, config.partition.slices)
    assert plan["nodes"] > 0 and plan["expected_deletions"] > 0
