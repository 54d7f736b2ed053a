"""token create, list, revoke: who may do what at a run's service."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from s3t.cli.app import AsJson, RunPath, app
from s3t.cli.output import print_json
from s3t.errors import InputError
from s3t.server.security.tokens import ROLES, TokenFile, token_path

__all__: list[str] = []

tokens = typer.Typer(
    name="token",
    help="Tokens that clients of a run's service (s3t serve) show.",
    no_args_is_help=True,
)
app.add_typer(tokens)

_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


Roles = Annotated[
    list[str],
    typer.Option("--role", help=f"{', '.join(ROLES)}; separated by commas, or repeated"),
]
Name = Annotated[str, typer.Option("--name", help="name of the client that gets it")]
Lasts = Annotated[
    str | None,
    typer.Option("--lasts", metavar="TIME", help="time until it expires: 12h, 90d, 52w"),
]
TokenId = Annotated[str, typer.Argument(metavar="ID", help="id that s3t token list shows")]


@tokens.command()
def create(
    run: RunPath,
    role: Roles,
    name: Name = "unnamed",
    lasts: Lasts = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it once. The run keeps only its hash."""
    roles = [one for given in role for one in given.split(",") if one]
    text, token = _file(run).create(name, roles, None if lasts is None else _time(lasts))
    if as_json:
        print_json({"token": text, **token.shown()})
    else:
        print(text)


@tokens.command("list")
def show(run: RunPath, as_json: AsJson = False) -> None:
    """List the tokens: ids, roles, names and times. The secrets are not stored."""
    found = _file(run).tokens()
    if as_json:
        print_json([token.shown() for token in found])
        return
    for token in found:
        until = "" if token.expires is None else f"  until {token.expires}"
        print(
            f"{token.id}  {','.join(token.roles):28s}  {token.name}  since {token.created}{until}"
        )


@tokens.command()
def revoke(run: RunPath, token_id: TokenId, as_json: AsJson = False) -> None:
    """Revoke a token. Every process that serves the run refuses it within a second."""
    token = _file(run).revoke(token_id)
    if as_json:
        print_json(token.shown())
    else:
        print(f"{token.id} of {token.name} is good for nothing any more")


def _file(run: Path) -> TokenFile:
    from s3t.run import RunDir

    directory = RunDir.existing(run)
    return TokenFile(token_path(directory.root, directory.config().serve))


def _time(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,4})([mhdw])", text)
    if found is None:
        raise InputError(f"--lasts {text!r:.40}: give a number and m, h, d or w, such as 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
