"""Small runs for tests of the walk: persons' texts, processes to kill, what a folder holds."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from s3t.config import Config
from s3t.run import RunDir
from s3t.types import NodeKey

Rows = list[dict[str, str]]
Make = Callable[..., Config]
Trained = Callable[..., Config]
"""Gives a config the run that ``train`` makes of it: ``config = trained(make())``. More words go to
``train``."""


def person_rows(persons: int = 16, each: int = 3) -> Rows:
    return [
        {
            "id": f"s{person:02d}{number}",
            "who": f"p{person:02d}",
            "text": f"person {person} says {number * 7 + person}",
            "label": "good" if (person + number) % 2 else "bad",
        }
        for person in range(persons)
        for number in range(each)
    ]


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def small_configs(folder: Path) -> Make:
    """Configs over persons' texts: a BERT of 2 layers, 2 × 2 slices, 8 nodes of 2 epochs."""
    write_csv(folder / "private.csv", person_rows())
    write_csv(folder / "public.csv", person_rows(8))

    def config(output: str = "run", private: str = "private.csv", **sections: Any) -> Config:
        public = {"format": "csv", "files": str(folder / "public.csv")}
        tree: dict[str, Any] = {
            "name": output,
            "output": str(folder / output),
            "task": "text-classification",
            "data": {
                "private": {"format": "csv", "files": str(folder / private)},
                "public": {"validation": public, "test": public, "adapt": public},
                "columns": {"id": "id"},
                "max_length": 32,
            },
            "model": {
                "base": "make:bert",
                "make": {"hidden": 16, "layers": 2, "heads": 2, "init_scale": 5},
            },
            "partition": {"shards": 2, "slices": 2, "salt": "walk", "subject": "who"},
            "sequences": {"strategy": "cyclic"},
            "lora": {"rank": 2},
            "stage": {"epochs": 2, "learning_rate": 1e-2},
            "training": {"workers": 1},
        }
        for name, section in sections.items():
            tree[name] = tree.get(name, {}) | section if isinstance(section, dict) else section
        return Config.model_validate(tree)

    return config


def nodes(config: Config) -> dict[str, bytes]:
    folder = RunDir(config.run_dir).store.root
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def evidence(config: Config) -> dict[str, bytes]:
    """What each node says of the public validation rows, as it lies beside the node."""
    folder = RunDir(config.run_dir).store.root
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.evidence"))}


def stamps(config: Config) -> dict[str, int]:
    folder = RunDir(config.run_dir).store.root
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".training.lock" and not path.name.startswith("ledger")
    }


def saved(config: Config, folder: Path) -> str:
    path = folder / f"{config.name}.yaml"
    # what is unset stays so: a default gives way where what is asked for is refused
    words = config.model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(words, sort_keys=False), encoding="utf-8")
    return str(path)


def start(*words: str) -> subprocess.Popen[str]:
    """``python -m s3t …`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "s3t", *words],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 90
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "it takes too long"
        time.sleep(0.002)


def forget(config: Config, *subjects: str) -> None:
    """Delete persons as the service does: in the ledger, durably."""
    from s3t.ledger import Deletion
    from s3t.run.deletion import delete
    from s3t.run.opened import OpenRun

    forgetting = OpenRun(RunDir(config.run_dir))
    delete(forgetting, Deletion([], [*subjects]))
    forgetting.close()


def dead_keys(config: Config) -> set[NodeKey]:
    run = RunDir(config.run_dir)
    with run.ledger() as ledger:
        hits = set(ledger.plans.in_force().hits)
    return {
        node.key
        for node in run.plan().forest.nodes
        if any((node.shard, part) in hits for part in node.prefix)
    }


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def children(process: int, command: bytes) -> list[int]:
    """Child processes whose command line holds some words."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(one) for one in found if command in Path(f"/proc/{one}/cmdline").read_bytes()]
