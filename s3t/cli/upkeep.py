"""Commands that look after a run: repair it, add to it, purge it, read its log."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from s3t.cli.commands import AsJson, Overrides, RunPath, app
from s3t.cli.launching import launch
from s3t.cli.output import print_json, quiet
from s3t.cli.parsing import split_launch
from s3t.cli.tables import log_line, purge_lines, stored_receipt_lines
from s3t.errors import InputError
from s3t.system.pinned import pin

__all__: list[str] = []

_TRAINS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_TRAINS)
def repair(
    context: typer.Context,
    run: RunPath,
    if_due: Annotated[
        bool, typer.Option("--if-due", help="only if the config's policy says so")
    ] = False,
    watch: Annotated[
        float | None, typer.Option(min=1, help="stay, and look every so many seconds if it is due")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run again on what is left, train what is missing, purge what is dead.

    Who serves the run goes on, and takes new nodes up as they come. Killed at any moment and
    started again, it goes on where it was. Options that s3t does not know, such as
    --num_processes 2, are passed on to accelerate launch.
    """
    more, options = split_launch(context.args)
    if more:
        raise InputError(f"s3t repair takes no {more[0]!r}: the run's own config counts")
    if not if_due and watch is None:
        _renew("repair", run, [], options, as_json)
        return
    while True:
        why = _due(run)
        if why is None and watch is None:
            if as_json:
                print_json({"run": str(run), "due": None})
            else:
                print(f"{run}: not due")
            return
        if why is not None:
            print(f"s3t: {run} is repaired: {why}", file=sys.stderr)
            _renew("repair", run, [], options, as_json)
        if watch is None:
            return
        time.sleep(watch)


@app.command(context_settings=_TRAINS)
def add(context: typer.Context, run: RunPath, as_json: AsJson = False) -> None:
    """Take in new samples: s3t add RUN [FILE]... [accelerate launch options].

    New are the rows of the private data, and of the files named (read from now on), that the run
    does not hold. Only nodes that contain their slices are trained; until that is done the run
    serves what it did.
    """
    files, options = split_launch(context.args)
    _renew("add", run, files, options, as_json)


@app.command()
def attach(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="empty or new; becomes RUN here")],
    url: Annotated[str, typer.Argument(metavar="URL", help="store.url of the run")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make a run directory on another machine, of a run whose ledger is a database.

    It serves, deletes and reports as the one where the run was trained; plans and nodes come from
    the store. Train or repair on one machine at a time.
    """
    with quiet():
        from s3t.training.work.remote_run import attach as make

        made = make(run, url, overrides or [])
    if as_json:
        print_json({"run": str(made.root), "url": url})
    else:
        print(f"{made.root}: attached to {url}")


@app.command()
def purge(
    run: RunPath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, remove nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove dead nodes, caches and the rows of deleted samples; report what is out of reach."""
    with quiet():
        from s3t.run import RunDir
        from s3t.run.purge import purge as remove

        found = remove(RunDir.existing(run, sweep=False), dry_run=dry_run)
    if as_json:
        print_json(found.to_dict())
    else:
        for line in purge_lines(found):
            print(line)


@app.command()
def receipt(
    run: RunPath,
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="of the deletion")],
    as_json: AsJson = False,
) -> None:
    """Show the receipt of a deletion, as the log of the run holds it."""
    from s3t.run import RunDir
    from s3t.serving.replica import receipt as stored_receipt

    opened = RunDir.existing(run)
    with opened.ledger() as ledger:
        found = stored_receipt(ledger, request_id, opened.tell_store)
    if as_json:
        print_json(found)
    else:
        for line in stored_receipt_lines(found):
            print(line)


@app.command()
def log(run: RunPath, as_json: AsJson = False) -> None:
    """List all that was done to a run; with --json, JSON lines with digests and signatures."""
    from s3t.run import RunDir

    with RunDir.existing(run).ledger() as ledger:
        for entry in ledger.log():
            if as_json:
                print_json(asdict(entry))
            else:
                print(log_line(entry))


def _due(run: Path) -> str | None:
    """Why a run is due for repair."""
    from s3t.run import RunDir
    from s3t.run.deletion import Forgetting
    from s3t.run.repair import reason

    forgetting = Forgetting(RunDir.existing(run))
    try:
        return reason(forgetting)
    finally:
        forgetting.close()


def _renew(what: str, run: Path, files: list[str], options: list[str], as_json: bool) -> None:
    from s3t.run import RunDir

    config = RunDir.existing(run).here()
    if options:
        with quiet():
            code = launch([what, str(run), *files], options)
        if code:
            raise typer.Exit(code)
        if as_json:
            print_json({"run": str(run)})
        return
    pin(config.training.arithmetic)  # before torch is loaded
    with quiet():
        from s3t.training.prepare.replan import Replan
        from s3t.training.work.train import train

        report: Any = train(config, replan=Replan(what == "add", tuple(files)))
    if as_json:
        print_json(asdict(report))
    else:
        print(report.sentence())
