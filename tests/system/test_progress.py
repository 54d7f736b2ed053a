"""Progress: lines now and then, JSON for programs, nothing when it is not asked for."""

from __future__ import annotations

import json
import logging
import time

import pytest

from s3t.system import progress
from s3t.system.progress import MODE, Progress, quiet_libraries, say, taking_time, tell


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "")  # so that it is put back
    monkeypatch.delenv(MODE)
    monkeypatch.setattr(progress, "_MOMENT", 0.01)
    monkeypatch.setattr(progress, "_EVERY", {"lines": 0.0, "json": 0.0})


def work(speaks: bool = True) -> None:
    with taking_time("reading the data"):
        time.sleep(0.05)
    with Progress("training", 4, speaks) as bar:
        bar.update(1)
        bar.note(nodes="1/2", score="0.5")
        bar.update(3)


def test_lines_say_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tell("lines")
    work()
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and lines[0] == "s3t: reading the data"
    assert lines[1].startswith("s3t: training, 25%") and "about" in lines[1]
    assert "nodes 1/2, score 0.5" in lines[-1] and "100%" in lines[-1]


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    tell("json")
    work()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert told[0] == {"event": "said", "said": "reading the data"}
    last = told[-1]
    assert (last["event"], last["doing"], last["steps"], last["of"]) == (
        *("progress", "training"),
        *(4, 4),
    )
    assert last["nodes"] == "1/2" and last["left"] == 0 and last["seconds"] >= 0


@pytest.mark.parametrize("mode", ["quiet", None])
def test_nothing_is_told_unasked(mode: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if mode == "quiet":
        tell("quiet")
    work()
    assert capsys.readouterr() == ("", "")


def test_what_takes_a_moment_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    tell("lines")
    with taking_time("a moment"):
        pass
    say("done")
    time.sleep(0.05)
    assert capsys.readouterr().err == "s3t: done\n"


def test_of_several_processes_one_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    tell("json")
    work(speaks=False)
    assert capsys.readouterr().err.count("\n") == 1, "what is done is said, the steps are not"


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    work()
    said = capsys.readouterr().err
    assert "training: 100%" in said and "nodes=1/2" in said


def test_libraries_keep_their_advice() -> None:
    quiet_libraries()
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
