"""predict, evaluate: answers of what serves now."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s3t.cli.app import AsJson, Picture, RunPath, app
from s3t.cli.output import make_folder, quiet, show, write
from s3t.cli.parsing import asked_rows
from s3t.cli.tables import weight_line
from s3t.errors import InputError

if TYPE_CHECKING:
    from s3t.service import S3T

__all__: list[str] = []

Texts = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT]...", help="texts, in place of --input")
]
Input = Annotated[
    Path | None,
    typer.Option(
        "--input",
        help="rows: csv, tsv, JSON lines or one JSON list, by the suffix; .txt has a text a line; "
        "- reads JSON lines or texts from standard input",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="JSON lines, or csv by the suffix; written whole or not at all; default: standard "
        "output",
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="language models: number of tokens to generate; default: 32")
]
Temperature = Annotated[
    float | None, typer.Option(help="language models: default 0, which takes the likeliest token")
]
Seed = Annotated[int | None, typer.Option(help="language models: seed of the draws; default: 0")]


@app.command()
def predict(
    run: RunPath,
    texts: Texts = None,
    source: Input = None,
    target: Output = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
) -> None:
    """Answer texts or the rows of a file: with labels, or with completions of a language model.

    Each answer names the view that gave it.
    """
    if bool(texts) == (source is not None):
        raise InputError("give texts, or --input FILE with rows (- for standard input)")
    rows = [*(texts or [])] if source is None else asked_rows(source)
    if not rows:
        raise InputError(f"--input {source} holds no rows: give one row a line")
    from s3t.run import RunDir
    from s3t.service import S3T

    config = RunDir.existing(run).config()
    drawn = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    draw = {key: value for key, value in drawn.items() if value is not None}
    if draw and not config.generates:
        option = next(iter(draw)).replace("_", "-")
        raise InputError(f"--{option} is for language models: {run} is of {config.task}")
    if target is not None:
        make_folder(target, "--output")
    if not config.generates:
        _check_columns(rows, next(iter(config.input_columns.values())), source)
    with quiet(), S3T.load(run) as service:
        service.serving.settle_weights()
        if config.generates:
            answers = _completions(service, rows, draw)
        else:
            answers = [asdict(prediction) for prediction in service.predict(rows)]
    name = config.data.columns.id or "id"
    found = [
        ({"id": row[name]} if isinstance(row, dict) and name in row else {}) | answer
        for row, answer in zip(rows, answers, strict=True)
    ]
    if target is not None and target.suffix.lower() == ".csv":
        write(target, _csv(found), "--output")
        return
    lines = [json.dumps(answer, ensure_ascii=False) for answer in found]
    if target is None or str(target) == "-":
        show(None, lines)
    else:
        write(target, "".join(f"{line}\n" for line in lines).encode(), "--output")


def _check_columns(rows: list[Any], column: str, source: Path | None) -> None:
    """Refuse rows without the column before anything is loaded."""
    from s3t.data.given import value_of

    try:
        for number, row in enumerate(rows):
            value_of(row, number, column)
    except InputError as error:
        raise InputError(f"--input {source}: {error}") from None


def _csv(answers: list[dict[str, Any]]) -> bytes:
    """Answers as csv: of the probabilities that of the label."""
    rows = []
    for answer in answers:
        rest = {name: value for name, value in answer.items() if name != "probabilities"}
        if "probabilities" in answer:
            rest["probability"] = answer["probabilities"][answer["label"]]
        rows.append(rest)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _completions(service: S3T, rows: list[Any], draw: dict[str, Any]) -> list[dict[str, Any]]:
    found = service.generate(rows, **draw)
    return [{"completion": one.completion, "view": one.view} for one in found]


@app.command()
def evaluate(run: RunPath, picture: Picture = None, as_json: AsJson = False) -> None:
    """Show the accuracy or perplexity of what serves, on the public test data.

    --picture draws all evaluations since the last purge, along the deletions.
    """
    from s3t.service import S3T

    with quiet(), S3T.load(run) as service:
        found = service.evaluate()
        along = service.ledger.served.history()
    if picture is not None:
        from s3t.cli.pictures import draw_evaluations, write_picture

        write_picture(picture, partial(draw_evaluations, evaluations=along))
    lines = [f"{found.metric} {found.value:.4f} on {found.samples} samples, view {found.view}"]
    if found.ensemble is not None:
        lines.append(f"{found.metric} of the shards' mean answer, not merged {found.ensemble:.4f}")
    if found.base is not None:
        lines.append(f"{found.metric} of the base alone {found.base:.4f}")
    if found.validation is not None:
        lines.append(weight_line(asdict(found.validation) | {"shards": found.validation.members}))
    show(found.to_dict() if as_json else None, lines)
