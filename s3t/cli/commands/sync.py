"""sync: an engine (vLLM, SGLang) serves what the run serves, and no more."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from s3t.cli.app import AsJson, DryRun, MaxLoss, Merging, Rank, RunPath, app
from s3t.cli.output import quiet
from s3t.errors import InputError, S3TError

if TYPE_CHECKING:
    from s3t.export.sync import EndedAdapter, Sync, Told, Watching

__all__: list[str] = []

EngineUrl = Annotated[
    str, typer.Argument(metavar="URL", help="address of the engine: http://HOST:PORT")
]
EngineName = Annotated[str, typer.Option(metavar="ENGINE", help="vllm or sglang")]
Adapters = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="folder for the adapters; default: RUN-adapters"),
]
SeenAt = Annotated[
    str | None, typer.Option(metavar="PATH", help="path of that folder on the engine's machine")
]
KeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="file that holds the engine's API key")
]
Timeout = Annotated[
    float,
    typer.Option(min=1, help="seconds for one request, and for running answers to end"),
]
Watch = Annotated[
    float | None,
    typer.Option(min=0.1, help="stay; check at every change, and every so many seconds"),
]


@app.command()
def sync(
    run: RunPath,
    url: EngineUrl,
    target: EngineName,
    adapters: Adapters = None,
    seen_at: SeenAt = None,
    merge: Merging = False,
    rank: Rank = None,
    max_loss: MaxLoss = None,
    api_key_file: KeyFile = None,
    timeout: Timeout = 60.0,
    watch: Watch = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Have vLLM or SGLang serve what the run serves: forget, export, load, probe, unload.

    A deletion is effective in the engine when this command has ended with exit code 0, or has
    reported each dead adapter as forgotten: unloaded, refused, and no answer with it running or
    waiting. Forgetting comes first, whatever happens to the rest. Adapters of others are left
    alone.
    """
    from s3t.service import S3T

    folder = adapters or run.with_name(f"{run.resolve().name}-adapters")
    key = _key(api_key_file)
    # quiet() takes standard output away from libraries, so answers go to a copy of it
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, quiet(), S3T.load(run) as service:
        engine = service.synchroniser(
            target,
            url,
            folder,
            merge=merge,
            rank=rank,
            max_loss=max_loss,
            key=key,
            timeout=timeout,
            seen_at=seen_at,
        )
        if watch is not None and not dry_run:
            engine.watch(watch, _Told(as_json, out))
        told = _Told(False, sys.stderr if as_json else out)  # --json is one document
        found = engine.would() if dry_run else engine.sync(told)
        _Told(as_json, out)(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


class _Told:
    """Prints what a sync tells of, each thing as it happens.

    Args:
        as_json: as a JSON document a line; all but that of a sync has its ``event``.
        out: where to.
    """

    def __init__(self, as_json: bool, out: TextIO) -> None:
        self._as_json, self._out = as_json, out
        self._watched = False

    def __call__(self, found: Told) -> None:
        """Print it, if it is worth a line."""
        from s3t.export.sync import EndedAdapter, Sync, Watching

        if isinstance(found, S3TError):
            print(f"s3t: {found}", file=sys.stderr, flush=True)
        elif isinstance(found, Sync):
            self._sync(found)
        elif isinstance(found, EndedAdapter):
            self._line(
                "forgotten",
                found,
                f"{found.name} held what was deleted: forgotten after {found.seconds:.2f} s "
                "(unloaded, refused, no answer with it runs or waits)",
            )
        elif isinstance(found, Watching):
            self._watched = True
            self._line(
                "watching",
                found,
                f"watching {found.target} at {found.url}: in force from view {found.view} on, at "
                f"every change of the ledger and every {found.every:g} s",
            )

    def _sync(self, found: Sync) -> None:
        if self._watched and not found.changed and not found.problems:
            return
        if self._as_json:
            self._print(json.dumps(found.to_dict(), ensure_ascii=False))
            return
        for line in _sync_lines(found):
            self._print(line)

    def _line(self, event: str, found: EndedAdapter | Watching, words: str) -> None:
        document = {"event": event, **asdict(found)}
        self._print(json.dumps(document, ensure_ascii=False) if self._as_json else words)

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path} cannot be read ({error})") from None
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"--api-key-file {path} holds no key: one line of printable ASCII")
    return key


def _sync_lines(found: Sync) -> Iterator[str]:
    would = "would be " if found.dry_run else ""
    yield f"{found.target} at {found.url}, view {found.view}"
    for name in found.forgotten if found.dry_run else ():  # else each was told as it went
        yield f"  {name}  held what was deleted: would be unloaded"
    for name in found.loaded:
        yield f"  {name}  {would}loaded{'' if found.dry_run else ', answers as the run'}"
    for name in found.kept:
        yield f"  {name}  is served"
    for name in found.replaced:
        yield f"  {name}  replaced: {would}unloaded"
    for shard in found.without:
        yield f"  shard {shard} has no prefix left: nothing of it is served"
    for problem in found.problems:
        yield f"  PROBLEM: {problem}"
