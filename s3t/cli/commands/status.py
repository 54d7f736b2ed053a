"""status, samples, forecast, receipt, log, report: what there is, what is left, what was done."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.app import AsJson, Picture, RunPath, app
from s3t.cli.output import show, write
from s3t.cli.tables import forecast_lines, log_line, sample_line, status_lines, stored_receipt_lines

__all__: list[str] = []

Trials = Annotated[
    int | None, typer.Option(help="number of simulated streams, where risk rates are configured")
]
Seed = Annotated[int, typer.Option(help="seed of the simulation")]
RequestId = Annotated[str, typer.Argument(metavar="REQUEST_ID", help="request id of the deletion")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE.html", help="default: reports/report.html in the run"),
]


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show shards × slices, what serves, and what waits."""
    from s3t.service import S3T

    with S3T.load(run) as service:
        found = service.status()
        lines = () if as_json else status_lines(found, service.forecast())
    show(found.to_dict() if as_json else None, lines)


@app.command()
def samples(run: RunPath, as_json: AsJson = False) -> None:
    """List the private samples: shard, slice, person, deleted or not. --json prints JSON lines."""
    from s3t.run import RunDir

    with RunDir.existing(run).ledger() as ledger:
        for entry in ledger.samples():
            show(asdict(entry) if as_json else None, [sample_line(entry)])


@app.command()
def forecast(
    run: RunPath,
    trials: Trials = None,
    seed: Seed = 0,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Show how many requests and days are left until a shard dies and until exhaustion."""
    from s3t.service import S3T

    with S3T.load(run) as service:
        found = service.forecast(trials=trials, seed=seed).to_dict()
    if picture is not None:
        from s3t.cli.pictures import draw_forecast, write_picture

        write_picture(picture, partial(draw_forecast, found=found))
    show(found if as_json else None, forecast_lines(found))


@app.command()
def receipt(run: RunPath, request_id: RequestId, as_json: AsJson = False) -> None:
    """Show the receipt of a deletion, as the log of the run holds it."""
    from s3t.run import RunDir
    from s3t.serving.effective import stored_receipt

    opened = RunDir.existing(run)
    with opened.ledger() as ledger:
        found = stored_receipt(ledger, request_id, opened.tell_store)
    show(found.to_dict() if as_json else None, stored_receipt_lines(found))


@app.command()
def log(run: RunPath, as_json: AsJson = False) -> None:
    """List every step of a run. --json prints JSON lines, with digests and signatures."""
    from s3t.run import RunDir

    with RunDir.existing(run).ledger() as ledger:
        for entry in ledger.log():
            show(asdict(entry) if as_json else None, [log_line(entry)])


@app.command()
def report(run: RunPath, output: Output = None, as_json: AsJson = False) -> None:
    """Write the service's page as one HTML file, which needs no service and no network.

    It shows the run as it is now. Samples appear as keyed hashes only.
    """
    from s3t.server.report import report as page_of
    from s3t.server.report import snapshot
    from s3t.service import S3T

    with S3T.load(run) as service:
        data = snapshot(service, service.config.name, datetime.now(UTC))
    target = run / "reports" / "report.html" if output is None else output
    write(target, page_of(data), "--output")
    view, at = data["picture"]["view"], data["made_at"]
    document = {"report": str(target), "view": view, "made_at": at}
    show(document if as_json else None, [f"{target}: view {view} at {at}"])
