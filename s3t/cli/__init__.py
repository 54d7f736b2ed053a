"""The command line: parse, make one call, print.

    s3t budget | plan | train | samples | status | forecast | deactivate | evaluate | predict
        repair | add | purge | receipt | log | audit | report | token | serve | export | sync

Invariants: with ``--json`` standard output holds one JSON document (``samples``: JSON lines) and
nothing else; every error is one message on standard error and the exit code of its class.

commands, upkeep, auditing, reporting, serve, exporting, tokens ──► parsing (what was said), tables
(lines for people), output (where answers go)
"""

from __future__ import annotations

from s3t.cli import (  # noqa: F401  (their commands)
    auditing,
    exporting,
    reporting,
    serve,
    tokens,
    upkeep,
)
from s3t.cli.commands import app, main

__all__ = ["app", "main"]
