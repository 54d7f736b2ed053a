"""predict, evaluate: answers of what serves now."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s3t.cli.app import AsJson, Picture, RunPath, app
from s3t.cli.output import quiet, show, write
from s3t.cli.parsing import json_row, numbered
from s3t.cli.tables import weight_line
from s3t.errors import InputError

if TYPE_CHECKING:
    from s3t.service import S3T

__all__: list[str] = []

Input = Annotated[Path, typer.Option("--input", help="JSON lines, one row each")]
Output = Annotated[Path, typer.Option("--output", help="JSON lines; written whole or not at all")]
MaxNewTokens = Annotated[int, typer.Option(help="language models: number of tokens to generate")]
Temperature = Annotated[float, typer.Option(help="language models: 0 takes the likeliest token")]
Seed = Annotated[int, typer.Option(help="language models: seed of the draws")]


@app.command()
def predict(
    run: RunPath,
    source: Input,
    target: Output,
    max_new_tokens: MaxNewTokens = 32,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Answer the rows of a file: with labels, or with completions of a language model.

    Each answer names the view that gave it.
    """
    rows = [json_row(line, number, source) for number, line in numbered(source)]
    if not rows:
        raise InputError(f"--input {source} holds no rows: give JSON lines, one row each")
    from s3t.config import load_config
    from s3t.run import RunDir
    from s3t.service import S3T

    config = load_config(RunDir.existing(run).config_path)
    with quiet(), S3T.load(run) as service:
        service.serving.settle_weights()
        if config.generates:
            answers = _completions(service, rows, max_new_tokens, temperature, seed)
        else:
            answers = [asdict(prediction) for prediction in service.predict(rows)]
    name = config.data.columns.id or "id"
    lines = [
        json.dumps(({"id": row[name]} if name in row else {}) | answer, ensure_ascii=False)
        for row, answer in zip(rows, answers, strict=True)
    ]
    write(target, "".join(f"{line}\n" for line in lines).encode(), "--output")


def _completions(
    service: S3T, rows: list[dict[str, Any]], tokens: int, temperature: float, seed: int
) -> list[dict[str, Any]]:
    found = service.generate(rows, max_new_tokens=tokens, temperature=temperature, seed=seed)
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
