"""The run directory: plans that change place while somebody looks for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s3t.errors import IntegrityError
from s3t.plan import Plan
from s3t.run import RunDir
from s3t.run.files import plans
from s3t.types import Digest


def test_a_plan_that_is_given_its_place_between_two_looks_is_found(
    small_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process does that serves the run at the moment in which a repair takes effect."""
    now = small_run.plan()
    waiting = small_run.root / f"plan.{now.digest[:16]}.json"
    waiting.write_text(now.to_json(), encoding="utf-8")
    older = now.to_json().replace(now.digest, "0" * 64)
    small_run.plan_path.write_text(older, encoding="utf-8")
    read, looks = plans.plan_in, list[Path]()

    def settled_meanwhile(path: Path) -> Plan:
        looks.append(path)
        if path == waiting:
            os.replace(waiting, small_run.plan_path)
        return read(path)

    monkeypatch.setattr(plans, "plan_in", settled_meanwhile)
    assert small_run.plans.find(lambda: now.digest).digest == now.digest
    assert looks == [small_run.plan_path, waiting, small_run.plan_path]


def test_a_plan_that_is_nowhere_is_an_error(small_run: RunDir) -> None:
    with pytest.raises(IntegrityError, match="is not the plan"):
        small_run.plans.find(lambda: Digest("1" * 64))
