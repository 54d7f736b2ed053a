"""The command line: parse, make one call, print.

    s3t plan | train | samples | status | deactivate | evaluate | predict

Invariants: with ``--json`` standard output holds one JSON document (``samples``: JSON lines) and
nothing else; every error is one message on standard error and the exit code of its class.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from s3t.errors import InputError, S3TError

__all__ = ["app", "main"]

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
def plan(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what a config would train: slices, sequences, nodes, costs. Trains nothing."""
    from s3t.config import load_config

    resolved = load_config(config, overrides or [])
    with _quiet():
        from s3t.training.draft import preview

        summary = preview(resolved)
    if as_json:
        _print_json(summary)
    else:
        for line in _plan_lines(summary):
            print(line)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(context: typer.Context, config: ConfigPath, as_json: AsJson = False) -> None:
    """Train a config's missing nodes: s3t train CONFIG [KEY=VALUE]... [accelerate launch options].

    Killed at any moment and started again, it goes on where it was. Options that s3t does not
    know, such as --num_processes 2, are passed on to accelerate launch.
    """
    overrides, launch = _split_launch(context.args)
    from s3t.config import load_config

    resolved = load_config(config, overrides)
    if launch:
        with _quiet():
            code = _launch([str(config), *overrides], launch)
        if code:
            raise typer.Exit(code)
        if as_json:
            _print_json({"run": str(resolved.run_dir)})
        return
    with _quiet():
        from s3t.training.walk import train as walk

        report = walk(resolved)
    if as_json:
        _print_json(asdict(report))
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
                subject = "" if entry.subject is None else f"  subject {entry.subject}"
                gone = "  deleted" if entry.deleted else ""
                print(f"{entry.sample_id}  {entry.shard}:{entry.slice}{subject}{gone}")


@app.command()
def status(run: RunPath, as_json: AsJson = False) -> None:
    """Show shards × slices, what serves, and what is left."""
    from s3t.service import S3T

    with S3T.load(run) as service:
        found = service.status()
    if as_json:
        _print_json(found.to_dict())
    else:
        for line in _status_lines(found):
            print(line)


@app.command()
def deactivate(
    run: RunPath,
    ids: Annotated[
        list[str] | None, typer.Option("--ids", help="sample ids, comma-separated or repeated")
    ] = None,
    ids_file: Annotated[
        Path | None, typer.Option("--ids-file", help="file with one sample id per line")
    ] = None,
    subjects: Annotated[
        list[str] | None, typer.Option("--subjects", help="subjects, comma-separated or repeated")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="makes the request idempotent")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, commit nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget samples or persons: all that are named or, on any error, none."""
    listed = [line for _, line in _numbered(ids_file)] if ids_file else []
    sample_ids = [*_words(ids), *listed]
    from s3t.service import S3T

    with S3T.load(run) as service:
        receipt = service.deactivate(
            sample_ids, _words(subjects), request_id=request_id, dry_run=dry_run
        )
    if as_json:
        _print_json(receipt.to_dict())
    else:
        for line in _receipt_lines(receipt):
            print(line)


@app.command()
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Accuracy or perplexity of the active prefixes on the public test data."""
    from s3t.service import S3T

    with _quiet(), S3T.load(run) as service:
        found = service.evaluate()
    if as_json:
        _print_json(found.to_dict())
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
    rows = [_json_row(line, number, source) for number, line in _numbered(source)]
    if not rows:
        raise InputError(f"--input {source} holds no rows: give JSON lines, one row each")
    from s3t.config import load_config
    from s3t.run import RunDir
    from s3t.service import S3T
    from s3t.store import write_durably

    config = load_config(RunDir.existing(run).config_path)
    with _quiet(), S3T.load(run) as service:
        if config.task == "causal-lm":
            completions = service.generate(
                rows, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
            )
            answers = [asdict(completion) for completion in completions]
        else:
            answers = [asdict(prediction) for prediction in service.predict(rows)]
    name = config.data.columns.id or "id"
    lines = [
        json.dumps(({"id": row[name]} if name in row else {}) | answer, ensure_ascii=False)
        for row, answer in zip(rows, answers, strict=True)
    ]
    try:
        write_durably(target, "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise InputError(f"--output {target} cannot be written ({error})") from None


# ── parsing ──────────────────────────────────────────────────────────────────────────────────


def _words(values: list[str] | None) -> list[str]:
    return [word for value in values or [] for word in value.split(",") if word]


def _numbered(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    # not splitlines, which also cuts at characters that JSON allows inside a string
    lines = enumerate(text.split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} holds a {type(row).__name__}, expected an object")
    return row


def _split_launch(words: list[str]) -> tuple[list[str], list[str]]:
    """Overrides (``key=value``) and launch options (``--num_processes 2``)."""
    overrides: list[str] = []
    launch: list[str] = []
    expecting = False
    for word in words:
        if word.startswith("-"):
            launch.append(word)
            expecting = "=" not in word
        elif expecting and not _is_override(word):
            launch.append(word)
            expecting = False
        else:
            overrides.append(word)
            expecting = False
    return overrides, launch


def _is_override(word: str) -> bool:
    """Whether a word after a launch option is a config key's, not the option's value."""
    from s3t.config import Config

    key, sep, _ = word.partition("=")
    return bool(sep) and key.partition(".")[0] in Config.model_fields


def _launch(arguments: list[str], options: list[str]) -> int:
    """Run ``accelerate launch OPTIONS -m s3t.train ARGUMENTS``; returns its exit code."""
    from s3t.train import EXIT_CODE
    from s3t.training.launching import launch_command

    command, environment = launch_command(arguments, options)
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "code"
        environment |= {EXIT_CODE: str(told)}
        process = subprocess.Popen(command, env={**os.environ, **environment})
        signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
        code = process.wait()
        return int(told.read_text()) if code and told.exists() else code


# ── printing ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _quiet() -> Iterator[None]:
    """Third parties' bars and advice are not ours to print; what they print all the same, from
    Python or from below it, goes to standard error, so that standard output holds our answer."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _plan_lines(summary: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{summary['shards']} shards × {summary['slices']} slices, budget {summary['budget']}: "
        f"{summary['nodes']} nodes"
    )
    yield "samples per slice"
    for shard, sizes in enumerate(summary["slice_sizes"]):
        yield f"  shard {shard}: " + " ".join(f"{size:5d}" for size in sizes)
    yield "sequences, each of every shard"
    for sequence in summary["sequences"][0]:
        yield "  " + " → ".join(str(part) for part in sequence)
    yield "tree of shard 0 (slice numbers; each is a node)"
    yield from summary["tree"]
    yield "stage  nodes  sample passes      bytes"
    for stage in summary["stages"]:
        yield (
            f"{stage['stage']:5d}  {stage['nodes']:5d}  {stage['sample_passes']:13,d}  "
            f"{stage['bytes']:9,d}"
        )
    yield f"  all  {summary['nodes']:5d}  {summary['sample_passes']:13,d}  {summary['bytes']:9,d}"
    yield f"expected deletions until exhaustion: {summary['expected_deletions']:.1f}"
    for note in summary["notes"]:
        yield f"note: {note}"


def _status_lines(found: Any) -> Iterator[str]:
    yield (
        f"view {found.view}: {found.deleted} of {found.samples} samples deleted, "
        f"{found.expected_deletions_left:.1f} more expected until exhaustion"
        + (", EXHAUSTED" if found.exhausted else "")
    )
    yield "shard  " + " ".join(f"{part:>2d}" for part in range(found.slices)) + "   serves"
    for shard in found.shards:
        marks = [
            " ×" if part in shard.slices_hit else " ●" if part in shard.prefix else " ·"
            for part in range(found.slices)
        ]
        serves = " → ".join(map(str, shard.prefix)) or "nothing"
        missing = f", {shard.nodes_missing} missing" if shard.nodes_missing else ""
        yield (
            f"{shard.shard:5d}  {' '.join(marks)}   {serves}   "
            f"({shard.nodes_alive} nodes alive, {shard.nodes_dead} dead{missing})"
        )
    yield "● serves   · intact, does not serve   × holds a deleted sample"


def _receipt_lines(receipt: Any) -> Iterator[str]:
    verb = "would delete" if receipt.dry_run else "deleted"
    yield (
        f"request {receipt.request_id}: {verb} {len(receipt.deleted)} samples "
        f"({len(receipt.already_deleted)} were deleted before), view {receipt.view}, "
        f"{receipt.seconds * 1000:.1f} ms"
    )
    if receipt.copies_elsewhere:
        yield f"{receipt.copies_elsewhere} exact copies that other subjects hold stay"
    yield f"{len(receipt.nodes_dead)} nodes switched off"
    for change in receipt.prefixes:
        if change.before != change.after:
            before = " → ".join(map(str, change.before)) or "nothing"
            after = " → ".join(map(str, change.after)) or "nothing"
            yield f"shard {change.shard}: served {before}, now {after}"
    yield f"expected deletions left: {receipt.expected_deletions_left:.1f}"


if __name__ == "__main__":
    sys.exit(main())
