"""The commands: each parses, makes one call, prints."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.launching import launch
from s3t.cli.output import print_json, quiet, write
from s3t.cli.parsing import json_row, names, numbered, points, split_launch
from s3t.cli.tables import (
    budget_lines,
    forecast_lines,
    plan_lines,
    receipt_lines,
    shown,
    status_lines,
)
from s3t.errors import InputError, S3TError, UnavailableError, unavailable
from s3t.system.pinned import pin
from s3t.system.scratch import sweep

__all__ = ["AsJson", "Overrides", "RunPath", "app", "main"]

app = typer.Typer(
    name="s3t",
    help="Exact machine unlearning of fine-tuned transformers: forget without stopping.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted config overrides")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="run directory")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]


def main() -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(format="s3t: %(message)s", stream=sys.stderr, level=logging.WARNING)
    try:
        code = app(standalone_mode=False)  # of typer.Exit, which typer catches itself
    except S3TError as error:
        print(f"s3t: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as error:
        return int(error.exit_code)
    except typer.Abort:
        print("s3t: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = unavailable(error) if isinstance(error, OSError) else None
        if known is not None:
            print(f"s3t: {known}", file=sys.stderr)
            return known.exit_code
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # click's usage errors
            error.show()
            return int(error.exit_code)
        if os.environ.get("S3T_TRACEBACK"):
            raise
        print(
            f"s3t: unexpected {type(error).__name__}: {error} (S3T_TRACEBACK=1 shows where; "
            "please report it)",
            file=sys.stderr,
        )
        return 1
    return code if isinstance(code, int) else 0


@app.command()
def budget(
    samples: Annotated[int, typer.Option(help="private samples in all")],
    layers: Annotated[int, typer.Option(help="of the base: the most slices there can be")],
    deletions: Annotated[int, typer.Option(help="requests along the horizon")],
    curve: Annotated[
        str | None,
        typer.Option(help="linear, power:TOP,GAP,EXPONENT[,NOTHING], or a CSV or JSON of points"),
    ] = None,
    max_passes: Annotated[float | None, typer.Option(help="training: samples × epochs")] = None,
    max_bytes: Annotated[float | None, typer.Option(help="storage of all nodes")] = None,
    risk: Annotated[float, typer.Option(help="of exhaustion within the horizon")] = 0.01,
    epochs: Annotated[int, typer.Option(help="of each stage")] = 10,
    min_slice: Annotated[int, typer.Option(help="samples per slice at the least")] = 8,
    stage_overhead: Annotated[float, typer.Option(help="sample passes per node on top")] = 0.0,
    bytes_per_layer: Annotated[int | None, typer.Option(help="of one layer's adapter")] = None,
    picture: Annotated[Path | None, typer.Option(help="png, svg or pdf")] = None,
    as_json: AsJson = False,
) -> None:
    """Weigh shards, slices and trees: what it costs, and is worth, to last so many deletions."""
    from math import inf

    from s3t.plan.budget.advice import advise
    from s3t.plan.budget.curve import DEFAULT, parse_curve
    from s3t.plan.budget.question import Question

    question = Question(
        samples=samples,
        layers=layers,
        deletions=deletions,
        curve=DEFAULT if curve is None else parse_curve(curve, points),
        epochs=epochs,
        least=min_slice,
        overhead=stage_overhead,
        layer_bytes=bytes_per_layer,
        risk=risk,
        max_passes=inf if max_passes is None else max_passes,
        max_bytes=inf if max_bytes is None else max_bytes,
    )
    found = advise(question)
    if picture is not None:
        from s3t.cli.budget_picture import picture_of

        write(picture, picture_of(found, picture.suffix.removeprefix(".")), "--picture")
    if as_json:
        print_json(found.to_dict())
    else:
        for line in budget_lines(found):
            print(line)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    horizon: Annotated[
        int | None, typer.Option(min=0, help="say what serves along so many deletions")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a config would train: slices, sequences, nodes, costs. Trains nothing."""
    from s3t.config import load_config

    sweep()
    resolved = load_config(config, overrides or [])
    with quiet():
        from s3t.training.prepare.preview import preview

        summary = preview(resolved, horizon)
    if as_json:
        print_json(summary)
    else:
        for line in plan_lines(summary):
            print(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context, config: ConfigPath, as_json: AsJson = False) -> None:
    """Train a config's missing nodes: s3t train CONFIG [KEY=VALUE]... [accelerate launch options].

    Killed at any moment and started again, it goes on where it was. Options that s3t does not
    know, such as --num_processes 2, are passed on to accelerate launch.
    """
    overrides, options = split_launch(context.args)
    sweep()
    from s3t.config import load_config

    resolved = load_config(config, overrides)
    if options:
        with quiet():
            code = launch([str(config), *overrides], options)
        if code:
            raise typer.Exit(code)
        if as_json:
            print_json({"run": str(resolved.run_dir)})
        return
    pin(resolved.training.arithmetic)  # before torch is loaded
    with quiet():
        from s3t.training.work.train import train as walk

        report = walk(resolved)
    if as_json:
        print_json(asdict(report))
    else:
        print(report.sentence())


@app.command()
def samples(run: RunPath, as_json: AsJson = False) -> None:
    """List the private samples, where they lie and whether they are deleted."""
    from s3t.run import RunDir

    with RunDir.existing(run).ledger() as ledger:
        for entry in ledger.samples():
            if as_json:
                print(json.dumps(asdict(entry), ensure_ascii=False))
            else:
                subject = "" if entry.subject is None else f"  subject {shown(entry.subject)}"
                gone = "  deleted" if entry.deleted else ""
                print(f"{shown(entry.sample_id)}  {entry.shard}:{entry.slice}{subject}{gone}")


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show shards × slices, what serves, and what is left."""
    from s3t.service import S3T

    with S3T.load(run) as service:
        found = service.status()
    if as_json:
        print_json(found.to_dict())
    else:
        for line in status_lines(found):
            print(line)


@app.command()
def forecast(
    run: RunPath,
    trials: Annotated[
        int | None, typer.Option(help="simulated streams, where risk rates need them")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the simulation")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show how many requests, and days, are left: until a shard dies, until exhaustion."""
    from s3t.service import S3T

    with S3T.load(run) as service:
        found = service.forecast(trials=trials, seed=seed)
    if as_json:
        print_json(found.to_dict())
    else:
        for line in forecast_lines(found.to_dict()):
            print(line)


@app.command()
def deactivate(
    run: RunPath,
    ids: Annotated[
        list[str] | None, typer.Option("--ids", metavar="ID", help="a sample; repeatable")
    ] = None,
    ids_file: Annotated[
        Path | None, typer.Option("--ids-file", help="samples, one id or JSON string a line")
    ] = None,
    subjects: Annotated[
        list[str] | None, typer.Option("--subjects", metavar="SUBJECT", help="a person; repeatable")
    ] = None,
    subjects_file: Annotated[
        Path | None, typer.Option("--subjects-file", help="persons, one or a JSON string a line")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="makes the request idempotent")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, commit nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget samples or persons: all that are named or, on any error, none.

    Names are what the data say, byte for byte: nothing is split or stripped.
    """
    sample_ids, people = names(ids, ids_file), names(subjects, subjects_file)
    from s3t.service import S3T

    with S3T.load(run) as service:
        receipt = service.deactivate(sample_ids, people, request_id=request_id, dry_run=dry_run)
    if as_json:
        print_json(receipt.to_dict())
    else:
        for line in receipt_lines(receipt):
            print(line)
    if receipt.untold is not None:  # it was logged why
        raise typer.Exit(UnavailableError.exit_code)


@app.command()
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Accuracy or perplexity of the active prefixes on the public test data."""
    from s3t.service import S3T

    with quiet(), S3T.load(run) as service:
        found = service.evaluate()
    if as_json:
        print_json(found.to_dict())
    else:
        print(f"{found.metric} {found.value:.4f} on {found.samples} samples, view {found.view}")


@app.command()
def predict(
    run: RunPath,
    source: Annotated[Path, typer.Option("--input", help="JSON lines, one row each")],
    target: Annotated[Path, typer.Option("--output", help="JSON lines, written whole or not")],
    max_new_tokens: Annotated[int, typer.Option(help="language models: tokens to add")] = 32,
    temperature: Annotated[float, typer.Option(help="language models: 0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="language models: of the draws")] = 0,
) -> None:
    """Answer JSON lines: labels, or completions of a language model; each with its view."""
    rows = [json_row(line, number, source) for number, line in numbered(source)]
    if not rows:
        raise InputError(f"--input {source} holds no rows: give JSON lines, one row each")
    from s3t.config import load_config
    from s3t.run import RunDir
    from s3t.service import S3T

    config = load_config(RunDir.existing(run).config_path)
    with quiet(), S3T.load(run) as service:
        if config.task == "causal-lm":
            completions = service.generate(
                rows, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
            answers = [{"completion": one.completion, "view": one.view} for one in completions]
        else:
            answers = [asdict(prediction) for prediction in service.predict(rows)]
    name = config.data.columns.id or "id"
    lines = [
        json.dumps(({"id": row[name]} if name in row else {}) | answer, ensure_ascii=False)
        for row, answer in zip(rows, answers, strict=True)
    ]
    write(target, "".join(f"{line}\n" for line in lines).encode(), "--output")
