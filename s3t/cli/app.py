"""The typer application, the arguments that commands share, and errors to exit codes."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.parsing import key_as_option
from s3t.errors import InputError, S3TError, unavailable
from s3t.version import __version__

__all__ = [
    "AsJson",
    "ConfigPath",
    "DryRun",
    "JsonProgress",
    "MaxLoss",
    "Merging",
    "Overrides",
    "Picture",
    "Quiet",
    "Rank",
    "RunPath",
    "app",
    "main",
]

app = typer.Typer(
    name="s3t",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would take [serve] of an extra for markup
)

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file; configs/ has examples")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="values for keys of the config, dotted"),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="run directory")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of text")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what would happen, change nothing")]
Merging = Annotated[
    bool, typer.Option("--merge", help="one adapter, the average of the shards, instead of many")
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", metavar="R", help="cut the merged adapter to this rank, by SVD"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="tell nothing while it goes on")]
JsonProgress = Annotated[
    bool, typer.Option("--json-progress", help="tell how far it is as JSON lines on standard error")
]
Picture = Annotated[Path | None, typer.Option(help="draw the result to this file: png, svg or pdf")]
MaxLoss = Annotated[
    float | None,
    typer.Option(help="refuse a merged adapter that loses more than this to the ensemble"),
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"s3t {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """Exact machine unlearning of fine-tuned transformers."""


def main() -> int:
    """Run a command line.

    Returns:
        The exit code: 0, or that of the error's class (see ``s3t.errors``).
    """
    logging.basicConfig(format="s3t: %(message)s", stream=sys.stderr, level=logging.WARNING)
    try:
        code = app(standalone_mode=False)  # of typer.Exit, which typer catches itself
    except S3TError as error:
        return _tell(error)
    except typer.Exit as error:
        return int(error.exit_code)
    except typer.Abort:
        print("s3t: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _unexpected(error)
    return code if isinstance(code, int) else 0


def _tell(error: S3TError) -> int:
    print(f"s3t: {error}", file=sys.stderr)
    return error.exit_code


def _unexpected(error: Exception) -> int:
    known = unavailable(error) if isinstance(error, OSError) else None
    if known is not None:
        return _tell(known)
    if hasattr(error, "exit_code") and hasattr(error, "show"):  # click's usage errors
        told = key_as_option(getattr(error, "option_name", ""), "VALUE")
        if told is not None:
            return _tell(InputError(told))
        error.show()
        return int(error.exit_code)
    if os.environ.get("S3T_TRACEBACK"):
        raise error
    print(
        f"s3t: unexpected {type(error).__name__}: {error} (S3T_TRACEBACK=1 shows where; "
        "please report it)",
        file=sys.stderr,
    )
    return 1
