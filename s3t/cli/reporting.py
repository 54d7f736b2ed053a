"""The command that writes the report of a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.commands import AsJson, RunPath, app
from s3t.cli.output import print_json, write

__all__: list[str] = []


@app.command()
def report(
    run: RunPath,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="default: reports/report.html in the run"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the page of a run as one HTML file, which needs no service and no network.

    It shows the moment at which it was made. Samples appear by keyed hashes alone.
    """
    from s3t.server.report import report as page_of
    from s3t.server.report import snapshot
    from s3t.service import S3T

    with S3T.load(run) as service:
        data = snapshot(service, service.config.name, datetime.now(UTC))
    target = run / "reports" / "report.html" if output is None else output
    write(target, page_of(data), "--output")
    view, at = data["picture"]["view"], data["made_at"]
    if as_json:
        print_json({"report": str(target), "view": view, "made_at": at})
    else:
        print(f"{target}: view {view} at {at}")
