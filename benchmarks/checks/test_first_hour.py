"""The five commands work in an empty folder, with the wheel alone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.first_hour import first_hour


def test_a_customer_is_forgotten_by_five_commands(tmp_path: Path) -> None:
    found = first_hour(tmp_path)
    assert found["commands"] == 5
    said = {step["command"].split()[1]: step["said"] for step in found["steps"]}
    assert said["init"].splitlines()[-1] == "next: s3t train customers.yaml"
    answers = (tmp_path / "home" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 1
