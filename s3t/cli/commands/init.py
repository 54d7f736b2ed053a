"""init: a first config for one's own data, or an example with its data."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s3t.cli.app import app
from s3t.cli.output import quiet, show, write
from s3t.errors import InputError, named

if TYPE_CHECKING:
    from s3t.data.looking import Role

__all__: list[str] = []

DataFiles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATA]...",
        help="files of rows (csv, tsv, JSON lines, JSON, parquet; gz too), or a folder of images",
    ),
]


def _column(what: str) -> Any:
    return typer.Option(metavar="COL", help=f"column that holds {what}")


Text = Annotated[str | None, _column("the text; default of this and of the next ones: found out")]
Label = Annotated[str | None, _column("the class")]
Person = Annotated[str | None, _column("the person of a row; none: rows have no person")]
Id = Annotated[str | None, _column("the id of a row; none: a digest of its content")]
Prompt = Annotated[str | None, _column("the prompt")]
Completion = Annotated[str | None, _column("the answer to the prompt")]
Messages = Annotated[str | None, _column("conversations, lists of {role, content}")]
Picture = Annotated[str | None, _column("the image")]
Task = Annotated[
    str | None,
    typer.Option(help="text-classification, image-classification or causal-lm; default: found out"),
]
Public = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE", help="public rows; default: some private ones are cut aside as public"
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="hub name or folder; default: a small base made here"),
]
Deletions = Annotated[
    int | None,
    typer.Option(min=0, help="deletions that the run has to last; default: 2 % of the persons"),
]
Encoding = Annotated[
    str | None, typer.Option(help="of csv and JSON files, such as cp1252 (Latin-1); default: utf-8")
]
Output = Annotated[
    Path | None, typer.Option(metavar="CONFIG", help="file to write; default: beside the data")
]
Example = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="write an example in place of DATA, into the folder given, or here: digits, texts, "
        "chat, or a config for a model of the hub, such as hub/roberta_sst2",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="ask nothing; refuse what is not clear")]
Force = Annotated[bool, typer.Option("--force", help="write over files that exist")]

_UNASKED = (
    "there is no terminal to ask on, so nothing was written. Give --yes to take what follows, or "
    "say what is to be another by --text, --label, --subject, --id, --prompt, --completion, --task"
)


@app.command()
def init(
    data: DataFiles = None,
    text: Text = None,
    label: Label = None,
    subject: Person = None,
    id: Id = None,
    prompt: Prompt = None,
    completion: Completion = None,
    messages: Messages = None,
    image: Picture = None,
    task: Task = None,
    public: Public = None,
    base: Base = None,
    deletions: Deletions = None,
    encoding: Encoding = None,
    output: Output = None,
    example: Example = None,
    yes: Yes = False,
    force: Force = False,
) -> None:
    """Write a first config for one's own data, or an example.

    Columns and task are found out. What is not clear is asked on a terminal, and elsewhere refused.
    The config can be trained as it is.
    """
    from s3t.run.init import Given

    if example is not None:
        _example(example, Path(*(data or ["."])[:1]), force)
        return
    if not data:
        raise InputError("s3t init needs DATA, or --example digits, texts or chat")
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty()
    said: dict[Role, str | None] = {
        "text": text, "label": label, "subject": subject, "id": id, "prompt": prompt,
        "completion": completion, "messages": messages, "image": image,
    }  # fmt: skip
    given = Given(task, {role: name for role, name in said.items() if name is not None})
    path = output or _beside(data[0])
    _fresh([path], force)
    with quiet():
        from s3t.run.init import propose

        found = propose(
            data,
            path,
            given,
            public=public or (),
            base=base,
            deletions=deletions,
            encoding=encoding,
            ask=_ask if asks else None,
        )
    if not (yes or asks):
        raise InputError("\n  ".join([_UNASKED, *found.lines]))
    write(path, found.text.encode(), "--output")
    show(None, [*found.lines, f"wrote {path}", f"next: s3t train {shlex.quote(str(path))}"])


def _beside(data: str) -> Path:
    """The config of ``customers.csv.gz`` is ``customers.yaml`` beside it."""
    path = Path(data).expanduser()
    stem = path.name.partition(".")[0] or "data"
    return path.with_name("".join(sign for sign in stem if sign not in "*?[]") + ".yaml")


def _fresh(paths: Sequence[Path], force: bool) -> None:
    """Refuse to write over files."""
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise InputError(
            f"{named(there)} exists, and is not written over: give --force, or another place "
            "(--output)"
        )


def _ask(what: str, flag: str, options: Sequence[str], default: str | None) -> str:
    """Ask on the terminal until the answer is one of the options."""
    while True:
        answer: str = typer.prompt(f"{what} ({', '.join(options)})", default=default, err=True)
        if answer in options:
            return answer
        print(f"{answer!r} is none of them", file=sys.stderr)


def _example(name: str, folder: Path, force: bool) -> None:
    """Write an example's data and config into a folder."""
    from s3t.run.init import Given, propose
    from s3t.run.init.examples import example_data, shipped_config

    text = shipped_config(name)
    config = folder / f"{Path(name).name}.yaml"
    file, content = ("", "") if text is not None else example_data(name)
    _fresh([config, *([folder / file] if file else [])], force)
    folder.mkdir(parents=True, exist_ok=True)
    lines: Sequence[str] = ()
    if text is None:
        write(folder / file, content.encode(), "--example")
        with quiet():
            found = propose([str(folder / file)], config, Given())
        text, lines = found.text, found.lines
    write(config, text.encode(), "--example")
    show(None, [*lines, f"wrote {config}", f"next: s3t train {shlex.quote(str(config))}"])
