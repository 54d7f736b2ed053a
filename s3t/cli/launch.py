"""Training commands under ``accelerate launch``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["launch"]


def launch(arguments: list[str], options: list[str]) -> int:
    """Run ``accelerate launch OPTIONS -m s3t.train ARGUMENTS``; returns its exit code."""
    from s3t.train import EXIT_CODE
    from s3t.training.work.launch import launch_command

    command, environment = launch_command(arguments, options)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "code"
        environment |= {EXIT_CODE: str(told)}
        process = subprocess.Popen(command, env={**os.environ, **environment})
        signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        code = process.wait()
        if code and told.exists():
            return int(told.read_text())
    if code > 0:
        print(
            f"s3t: accelerate launch ended with exit code {code}, and no process has said why: one "
            "was killed, maybe since memory ran out, or the output above says why. Finished nodes "
            "are kept; run the same command again to go on",
            file=sys.stderr,
        )
    return code
