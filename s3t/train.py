"""``accelerate launch -m s3t.train CONFIG [key=value …]``: the same as ``s3t train CONFIG``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from s3t.config import load_config
from s3t.errors import InputError, S3TError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit code. Of several processes only the first one speaks."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = os.environ.get("RANK", "0") == "0"
    try:
        if not words or words[0].startswith("-"):
            raise InputError("usage: accelerate launch -m s3t.train CONFIG [key=value …]")
        config = load_config(words[0], words[1:])
        from s3t.training.walk import train

        report = train(config)
    except S3TError as error:
        if first:
            print(f"s3t: {error}", file=sys.stderr)
        return error.exit_code
    if first:
        print(report.sentence(), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
