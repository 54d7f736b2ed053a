"""What ``accelerate launch -m s3t.train …`` runs, in every process.

CONFIG [key=value …]     the same as s3t train CONFIG [key=value …]
repair RUN               the same as s3t repair RUN
add RUN [FILE …]         the same as s3t add RUN [FILE …]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from s3t.config import load_config
from s3t.errors import InputError, S3TError
from s3t.run import RunDir
from s3t.system.pinned import pin
from s3t.system.progress import quiet_libraries
from s3t.training.rank import Rank

__all__ = ["EXIT_CODE", "REPLANS", "main"]

REPLANS = ("repair", "add")

EXIT_CODE = "S3T_EXIT_CODE_FILE"
"""Names the file that takes the exit code of a failure: accelerate itself makes 1 of any."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code. What all processes of a machine meet only one says."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = Rank.found().speaks
    try:
        if not words or words[0].startswith("-"):
            raise InputError("usage: accelerate launch -m s3t.train CONFIG [key=value …]")
        replans = words[0] in REPLANS and len(words) > 1
        config = RunDir.existing(words[1]).here() if replans else load_config(words[0], words[1:])
    except S3TError as error:
        return _failed(error, speak=first)
    pin(config.training.arithmetic)  # before torch is loaded
    quiet_libraries()
    from s3t.training.node.process_group import depart
    from s3t.training.prepare.replan import Replan
    from s3t.training.work.train import train

    replan = Replan(words[0] == "add", tuple(words[2:])) if replans else None
    code = 0
    try:
        report = train(config, replan=replan)
        if first:
            print(report.sentence(), file=sys.stderr)
    except S3TError as error:
        code = _failed(error, speak=True)
    except SystemExit as error:  # another process of the group says why
        code = error.code if isinstance(error.code, int) else 1
    if config.stage.processes > 1:
        depart(code)
    return code


def _failed(error: S3TError, *, speak: bool) -> int:
    if speak:
        print(f"s3t: {error}", file=sys.stderr)
    if EXIT_CODE in os.environ:
        Path(os.environ[EXIT_CODE]).write_text(str(error.exit_code))
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
