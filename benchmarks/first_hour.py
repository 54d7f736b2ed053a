"""From an empty folder with a wheel and one csv file to a forgotten customer: the five commands.

    python -m benchmarks.first_hour [--output DIR]

The wheel is built from this tree and unpacked into an empty folder, so that no file of the
repository is read; the packages that it needs are those of this environment. The csv file is that
of ``s3t init --example texts``. What is counted: commands, lines of config that a person writes,
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, write_json
from s3t.run.init.examples import example_data

__all__ = ["first_hour"]

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "s3t init customers.csv --yes",
    "s3t train customers.yaml",
    "s3t deactivate runs/customers --subjects {person}",
    "s3t predict runs/customers --input new.jsonl --output answers.jsonl",
    "s3t audit runs/customers",
)
BEFORE = {"commands": 7, "lines_of_config": 15}
"""What it took before ``s3t init``, and a script of one's own that cut public rows aside."""

AWAITS_PURGE = (0, 6)
"""Exit codes of an audit of a run that was not purged: what is dead is still on the disk."""


def first_hour(folder: Path) -> dict[str, Any]:
    """Run the commands in ``folder``, which is empty; returns counts, seconds and what was said.

    Raises:
        RuntimeError: a command failed; names it, and what it said.
    """
    packages, home = folder / "packages", folder / "home"
    home.mkdir()
    _unpack(packages)
    (home / "customers.csv").write_text(example_data("texts")[1], encoding="utf-8")
    (home / "new.jsonl").write_text('{"message": "Hello, I was charged twice."}\n')
    steps = []
    for command in COMMANDS:
        person = _private_person(home, packages) if "{person}" in command else ""
        started = time.perf_counter()
        words = shlex.split(command.format(person=person))
        done = _run([sys.executable, "-m", *words], home, packages)
        seconds = time.perf_counter() - started
        allowed = AWAITS_PURGE if "audit" in command else (0,)
        if done.returncode not in allowed:
            raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stderr}")
        steps.append(
            {
                "command": " ".join(words),
                "seconds": seconds,
                "exit": done.returncode,
                "said": done.stdout,
            }
        )
    return {
        "before": BEFORE,
        "commands": len(COMMANDS),
        "lines_of_config": 0,
        "minutes": sum(step["seconds"] for step in steps) / 60,
        "minutes_to_forgotten": sum(step["seconds"] for step in steps[:3]) / 60,
        "steps": steps,
    }


def _unpack(packages: Path) -> None:
    """Build the wheel of this tree, and unpack it as pip would."""
    with tempfile.TemporaryDirectory() as place:
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        build += ["--no-build-isolation", "--wheel-dir", place, str(ROOT)]
        subprocess.run(build, check=True, cwd=place)
        (wheel,) = Path(place).glob("*.whl")
        with zipfile.ZipFile(wheel) as held:
            held.extractall(packages)


def _run(words: list[str], home: Path, packages: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(packages)}
    return subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=False)


def _private_person(home: Path, packages: Path) -> str:
    """A customer whose rows were not cut aside as public: that of the run's first sample."""
    words = [sys.executable, "-m", "s3t", "samples", "runs/customers", "--json"]
    first = _run(words, home, packages).stdout.splitlines()[0]
    return str(json.loads(first)["subject"])


def main() -> int:
    """Run it in a temporary folder, print the counts, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    output = parser.parse_args().output
    facts = environment()
    with tempfile.TemporaryDirectory() as place:
        found = first_hour(Path(place))
    for step in found["steps"]:
        print(f"{step['seconds']:7.1f} s  {step['command']}")
    print(
        f"{found['commands']} commands, {found['lines_of_config']} lines of config, "
        f"{found['minutes_to_forgotten']:.1f} minutes to a forgotten customer (before: "
        f"{BEFORE['commands']} commands, {BEFORE['lines_of_config']} lines, a script)"
    )
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "first_hour.json", {"environment": facts, **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
