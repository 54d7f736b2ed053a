"""deactivate, purge: forget samples, and remove from the disk what is dead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.app import AsJson, DryRun, JsonProgress, Quiet, RunPath, app
from s3t.cli.output import quiet, show, telling
from s3t.cli.parsing import names, near_names
from s3t.cli.tables import purge_lines, receipt_lines
from s3t.errors import InputError, PublicSampleError, UnavailableError, UnknownSampleError

__all__: list[str] = []

Ids = Annotated[
    list[str] | None, typer.Option("--ids", metavar="ID", help="id of a sample; repeatable")
]
IdsFile = Annotated[
    Path | None, typer.Option("--ids-file", help="ids of samples, one (or a JSON string) a line")
]
Subjects = Annotated[
    list[str] | None, typer.Option("--subjects", metavar="SUBJECT", help="a person; repeatable")
]
SubjectsFile = Annotated[
    Path | None, typer.Option("--subjects-file", help="persons, one (or a JSON string) a line")
]
RequestId = Annotated[
    str | None,
    typer.Option("--request-id", help="name of the request; repeating it deletes nothing more"),
]


@app.command()
def deactivate(
    run: RunPath,
    ids: Ids = None,
    ids_file: IdsFile = None,
    subjects: Subjects = None,
    subjects_file: SubjectsFile = None,
    request_id: RequestId = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Forget samples or persons: all that are named or, on any error, none.

    Names are compared byte for byte: nothing is split at commas and no blanks are removed. Exit
    code 5 if the deletion is durable but the store at store.url could not be told yet.
    """
    sample_ids, people = names(ids, ids_file), names(subjects, subjects_file)
    if not sample_ids and not people:
        empty = [f"{path} names none" for path in (ids_file, subjects_file) if path is not None]
        given = f" ({', '.join(empty)})" if empty else ""
        raise InputError(
            f"nothing to delete{given}: give at least one sample id or subject (--ids, --subjects)"
        )
    from s3t.service import S3T

    with S3T.load(run) as service:
        try:
            receipt = service.deactivate(sample_ids, people, request_id=request_id, dry_run=dry_run)
        except PublicSampleError:
            raise
        except UnknownSampleError as error:
            hints = tuple(near_names(error, service.samples(deleted=False)))
            raise InputError("\n  - ".join([str(error), *hints])) from None
        lines = () if as_json else receipt_lines(receipt, service.forecast())
    show(receipt.to_dict() if as_json else None, lines)
    if receipt.untold is not None:  # the reason was logged
        raise typer.Exit(UnavailableError.exit_code)


@app.command()
def purge(
    run: RunPath,
    dry_run: DryRun = False,
    quietly: Quiet = False,
    json_progress: JsonProgress = False,
    as_json: AsJson = False,
) -> None:
    """Remove dead nodes, caches and the rows of deleted samples; report what is out of reach."""
    telling(quietly, json_progress)
    with quiet():
        from s3t.run import RunDir
        from s3t.run.purge import purge as remove

        found = remove(RunDir.existing(run, sweep=False), dry_run=dry_run)
    show(found.to_dict() if as_json else None, purge_lines(found))
