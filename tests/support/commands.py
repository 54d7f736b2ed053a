"""The command line, in a process of its own or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import pytest
import typer.main

from s3t.system.progress import MODE

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Said:
    """What a command ended with."""

    code: int
    out: str
    err: str


_built = cache(typer.main.get_command)
"""The command line of an app, which typer else builds again for each call."""

Run = Callable[..., Said]
"""Runs a command: ``s3t("plan", path, "a.b=1", cwd=folder)``."""


def process(*words: object, cwd: Path = ROOT) -> Said:
    """Run ``python -m s3t …`` as a process of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "s3t", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def here(*words: object, cwd: Path | str = ".") -> Said:
    """Run the same in this process: what it and its children write is caught, from the files up."""
    from s3t import cli

    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(MODE, "")  # so that what the command sets is put back
        patch.delenv(MODE)
        patch.setattr(sys, "argv", ["s3t", *map(str, words)])
        patch.setattr(typer.main, "get_command", _built)
        with chdir(cwd), _descriptor(1, out), _descriptor(2, err):
            with redirect_stdout(out), redirect_stderr(err):
                code = cli.main()
            out.flush()
            err.flush()
        return Said(code, _whole(out), _whole(err))


class _descriptor:
    """Let a descriptor write to a file for a while."""

    def __init__(self, number: int, file: IO[str]) -> None:
        self._number, self._file = number, file

    def __enter__(self) -> None:
        self._before = os.dup(self._number)
        os.dup2(self._file.fileno(), self._number)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, self._number)
        os.close(self._before)


def _whole(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
