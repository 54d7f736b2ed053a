"""train, repair, add, attach: commands that train nodes, or fetch a run that was trained."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.app import AsJson, ConfigPath, JsonProgress, Overrides, Quiet, RunPath, app
from s3t.cli.launch import launch
from s3t.cli.output import print_json, quiet, show, telling
from s3t.cli.parsing import split_launch
from s3t.errors import InputError
from s3t.system.pinned import pin
from s3t.system.progress import say
from s3t.system.scratch import sweep

__all__: list[str] = []

_TRAINS = {"allow_extra_args": True, "ignore_unknown_options": True}

IfDue = Annotated[
    bool, typer.Option("--if-due", help="repair only if the config's section repair says so")
]
Watch = Annotated[
    float | None, typer.Option(min=1, help="stay, and check every so many seconds if it is due")
]
NewRun = Annotated[Path, typer.Argument(metavar="DIR", help="empty or new; becomes RUN here")]
StoreUrl = Annotated[str, typer.Argument(metavar="URL", help="store.url of the run")]


@app.command(context_settings=_TRAINS)
def train(
    context: typer.Context,
    config: ConfigPath,
    quietly: Quiet = False,
    json_progress: JsonProgress = False,
    as_json: AsJson = False,
) -> None:
    """Train a config's missing nodes.

    KEY=VALUE arguments after CONFIG override keys of it. Options that s3t does not know, such as
    --num_processes 2, are passed on to accelerate launch. If it was killed, the same command goes
    on where it was.
    """
    overrides, options = split_launch(context.args)
    telling(quietly, json_progress)
    sweep()
    from s3t.config import load_config

    resolved = load_config(config, overrides)
    if options:
        _launch([str(config), *overrides], options, resolved.run_dir, as_json)
        return
    pin(resolved.training.arithmetic)  # before torch is loaded
    with quiet():
        from s3t.training.work.train import train as walk

        report = walk(resolved)
    show(asdict(report) if as_json else None, [report.sentence()])
    run = report.run
    say(f"next: s3t status {run}, s3t deactivate {run} --ids …, s3t serve {run} --insecure")


@app.command(context_settings=_TRAINS)
def repair(
    context: typer.Context,
    run: RunPath,
    if_due: IfDue = False,
    watch: Watch = None,
    quietly: Quiet = False,
    json_progress: JsonProgress = False,
    as_json: AsJson = False,
) -> None:
    """Train again what deletions took.

    The run is planned again on the samples left, the nodes that are missing are trained, and what
    is dead is purged. A process that serves the run goes on, and takes new nodes up as they come.
    If it was killed, the same command goes on where it was. Options that s3t does not know, such as
    --num_processes 2, are passed on to accelerate launch.
    """
    more, options = split_launch(context.args)
    telling(quietly, json_progress)
    if more:
        raise InputError(f"s3t repair takes no {more[0]!r}: the run's own config counts")
    if not if_due and watch is None:
        _renew("repair", run, [], options, as_json)
        return
    while True:
        why = _due(run)
        if why is not None:
            print(f"s3t: {run} is repaired: {why}", file=sys.stderr)
            _renew("repair", run, [], options, as_json)
        elif watch is None:
            show({"run": str(run), "due": None} if as_json else None, [f"{run}: not due"])
        if watch is None:
            return
        time.sleep(watch)


@app.command(context_settings=_TRAINS)
def add(
    context: typer.Context,
    run: RunPath,
    quietly: Quiet = False,
    json_progress: JsonProgress = False,
    as_json: AsJson = False,
) -> None:
    """Take in new samples: s3t add RUN FILE...

    New are the rows of the private data, and of the files named, that the run does not hold. The
    files named belong to the private data from then on. Only nodes that contain the slices of new
    rows are trained; until that is done the run serves what it did. Options that s3t does not
    know are passed on to accelerate launch.
    """
    files, options = split_launch(context.args)
    telling(quietly, json_progress)
    _renew("add", run, files, options, as_json)


@app.command()
def attach(
    run: NewRun, url: StoreUrl, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Make a run directory on another machine, of a run whose ledger is on PostgreSQL.

    It serves, deletes and reports like the first; plans and nodes come from the store. Train or
    repair on one machine at a time.
    """
    with quiet():
        from s3t.training.work.remote_run import attach as make

        made = make(run, url, overrides or [])
    document = {"run": str(made.root), "url": url}
    show(document if as_json else None, [f"{made.root}: attached to {url}"])


def _due(run: Path) -> str | None:
    """Why a run is due for repair, or None."""
    from s3t.run import RunDir
    from s3t.run.opened import OpenRun
    from s3t.run.repair import reason

    with closing(OpenRun(RunDir.existing(run))) as opened:
        return reason(opened)


def _renew(what: str, run: Path, files: list[str], options: list[str], as_json: bool) -> None:
    """Repair a run or add to it, in this process or under accelerate."""
    from s3t.run import RunDir

    config = RunDir.existing(run).here()
    if options:
        _launch([what, str(run), *files], options, run, as_json)
        return
    pin(config.training.arithmetic)  # before torch is loaded
    with quiet():
        from s3t.training.prepare.replan import Replan
        from s3t.training.work.train import train

        report = train(config, replan=Replan(what == "add", tuple(files)))
    lines = [report.sentence()]
    if what == "add":
        nothing = "nothing was new: the run held every sample of its data and of the files named"
        lines.append(f"{report.added:,} samples taken in" if report.added else nothing)
        if config.data.cut_from == "private":
            lines.append("rows of persons who are cut aside as public are left out")
    show(asdict(report) if as_json else None, lines)
    say(f"next: s3t status {run}, s3t audit {run}")


def _launch(arguments: list[str], options: list[str], run: Path, as_json: bool) -> None:
    """Train under accelerate, whose main process tells what it did."""
    with quiet():
        code = launch(arguments, options)
    if code:
        raise typer.Exit(code)
    if as_json:
        print_json({"run": str(run)})
