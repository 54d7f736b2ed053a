"""The command line: parse, make one call, print.

Invariants: with ``--json`` standard output holds one JSON document (``samples`` and ``log``: JSON
lines) and nothing else. Every error is one message on standard error and the exit code of its
class.

    app        the typer application, its shared arguments, errors to exit codes
    commands/  one file for a few commands of one kind
    parsing    what was typed: names, rows, curves, options of accelerate
    tables     answers as lines of text
    output     where answers go
    reference  docs/reference.md, generated from the commands and the config
"""

from __future__ import annotations

from s3t.cli import commands  # noqa: F401  (registers them)
from s3t.cli.app import app, main

__all__ = ["app", "main"]
