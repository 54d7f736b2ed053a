"""When a run is repaired, and by whom: by hand, when its forecast falls, or on a schedule.

    status, forecast, log ─► reason ─► s3t repair RUN, in a process of its own ─► Report

Invariant: a run of which nothing was deleted since its plan is never due. Repairing changes no
answer's right to be given: who serves the run goes on, and picks new nodes up at its next view.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from s3t import errors
from s3t.errors import S3TError
from s3t.plan.forecast import Outlook
from s3t.run.forecast import run_forecast
from s3t.run.opened import OpenRun

__all__ = ["reason", "replan_apart"]


def reason(opened: OpenRun, now: datetime | None = None) -> str | None:
    """Why a run is due for repair by its own policy (``RepairConfig``); None if it is not.

    Args:
        opened: of the run.
        now: with its time zone; by default this moment.

    Raises:
        IntegrityError: the ledger is damaged.
    """
    policy, now = opened.config.repair, now or datetime.now(UTC)
    if policy.when == "hand" or not opened.ledger.plans.in_force().hits:
        return None
    if policy.when == "schedule":
        planned = max(e.at for e in opened.ledger.log() if e.kind in ("samples", "plan"))
        age = now - datetime.fromisoformat(planned)
        assert policy.every_days is not None
        if age < timedelta(days=policy.every_days):
            return None
        return f"the last plan is {age / timedelta(days=1):.1f} days old"
    assert policy.when == "forecast", policy.when
    found = run_forecast(opened, now=now)
    ahead: Outlook | None = getattr(found, policy.event)
    event = policy.event.replace("_", " ")
    if ahead is None:
        return f"{event} is past"
    told = ahead.to_dict(found.observed)
    for unit, limit in (("requests", policy.below_requests), ("days", policy.below_days)):
        left = told[unit] and told[unit]["p5"]
        if limit is not None and left is not None and left <= limit:
            return f"in 5 % of futures {event} is at most {left:.3g} {unit} away"
    return None


def replan_apart(
    what: str, run: Path, files: Sequence[str | Path] = (), launch: Sequence[str] = ()
) -> dict[str, Any]:
    """Run ``s3t repair RUN`` or ``s3t add RUN`` as a process of its own, and wait for it.

    Apart, because training takes torch's threads and memory, and may be killed: who serves loses
    nothing by it.

    Args:
        what: ``repair`` or ``add``.
        run: the run directory.
        files: more files of private rows, for ``add``.
        launch: options of ``accelerate launch``, such as ``--num_processes 2``.

    Returns:
        its report, as ``--json`` prints it.

    Raises:
        S3TError: what it ended with, of the class that its exit code names.
    """
    command = [sys.executable, "-m", "s3t", what, str(run), *map(str, files), "--json", *launch]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUTF8": "1"}
    )
    if done.returncode:
        said = done.stderr.strip().removeprefix("s3t: ") or f"exit code {done.returncode}"
        doing = "the repair of" if what == "repair" else "adding to"
        raise _error_of(done.returncode)(f"{doing} {run} failed: {said}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _error_of(code: int) -> type[S3TError]:
    kinds = (
        errors.InputError,
        errors.ExhaustedError,
        errors.IntegrityError,
        errors.UnavailableError,
    )
    return next((kind for kind in kinds if kind.exit_code == code), S3TError)
