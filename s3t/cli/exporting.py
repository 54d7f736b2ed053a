"""Commands that hand a run's adapters to others: to peft, and to engines that serve them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from s3t.cli.commands import AsJson, RunPath, app
from s3t.cli.output import print_json, quiet
from s3t.errors import InputError, S3TError

if TYPE_CHECKING:
    from s3t.export import Checked, Export
    from s3t.export.sync import EndedAdapter, Sync, Told, Watching

__all__: list[str] = []

Merging = Annotated[
    bool, typer.Option("--merge", help="one adapter that averages the shards, not one a shard")
]
Rank = Annotated[
    int | None, typer.Option("--rank", metavar="R", help="of the merged adapter, at most; by SVD")
]
MaxLoss = Annotated[
    float | None,
    typer.Option(help="write no merged adapter that loses more than this to the ensemble"),
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="for the adapters: new, or of this run")
    ] = None,
    merge: Merging = False,
    rank: Rank = None,
    max_loss: MaxLoss = None,
    target: Annotated[
        str | None, typer.Option(metavar="ENGINE", help="refuse what vllm or sglang would")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove living adapters that are served no more, too")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="load them with peft alone, and compare answers")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write what each shard serves as an adapter that peft loads; s3t export DIR --check.

    What holds deleted data leaves DIR first. Names stand for weights: another generation of an
    adapter has another name. Exit code 4 if a check fails, 3 if no shard has a prefix left.
    """
    if folder is None and not check:
        raise InputError("give a folder: s3t export RUN DIR, or s3t export DIR --check")
    done: Export | None = None
    with quiet():
        from s3t.export import check_folder
        from s3t.service import S3T

        if folder is not None:
            with S3T.load(run) as service:
                done = service.export(
                    folder, merge=merge, rank=rank, target=target, max_loss=max_loss, prune=prune
                )
        checked = check_folder(folder or run) if check else []
    if as_json:
        print_json(_document(done, checked))
    else:
        for line in (*(() if done is None else _export_lines(done)), *_check_lines(checked)):
            print(line)
    if not all(one.holds for one in checked):
        raise typer.Exit(4)
    if done is not None and not done.adapters:
        raise typer.Exit(3)


@app.command()
def sync(
    run: RunPath,
    url: Annotated[str, typer.Argument(metavar="URL", help="of the engine: http://HOST:PORT")],
    target: Annotated[str, typer.Option(metavar="ENGINE", help="vllm or sglang")],
    adapters: Annotated[
        Path | None, typer.Option(metavar="DIR", help="for the adapters; default: RUN-adapters")
    ] = None,
    seen_at: Annotated[
        str | None, typer.Option(metavar="PATH", help="of DIR, as the engine sees it")
    ] = None,
    merge: Merging = False,
    rank: Rank = None,
    max_loss: MaxLoss = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="that holds the engine's API key")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(min=1, help="seconds for one request, and for what still runs to end"),
    ] = 60.0,
    watch: Annotated[
        float | None, typer.Option(min=0.1, help="stay; look at every change, and so many seconds")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show it, change nothing")] = False,
    as_json: AsJson = False,
) -> None:
    """Have vLLM or SGLang serve what the run serves: forget, export, load, probe, unload.

    A deletion is effective in the engine when this has returned with exit code 0, or told of every
    dead adapter that it was forgotten: unloaded, refused, no answer with it running or waiting.
    That comes first, whatever happens to others; foreign names are left alone.
    """
    from s3t.service import S3T

    folder = adapters or run.with_name(f"{run.resolve().name}-adapters")
    key = _key(api_key_file)
    # answers of --watch come while others' output is kept from standard output
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


def _document(done: Export | None, checked: list[Checked]) -> dict[str, object]:
    found: dict[str, object] = {} if done is None else done.to_dict()
    if checked:
        found["checked"] = [
            {
                "name": one.name,
                "difference": one.difference,
                "tolerance": one.tolerance,
                "holds": one.holds,
            }
            for one in checked
        ]
    return found


def _export_lines(done: Export) -> Iterator[str]:
    yield f"{done.folder} at view {done.view}"
    for one in done.adapters:
        what = "all shards" if one["shard"] is None else f"shard {one['shard']}"
        prefix = " → ".join(map(str, one["prefix"]))
        new = "written" if one["name"] in done.written else "was there"
        yield (
            f"  {one['name']}  {what}{f', slices {prefix}' if prefix else ''}, rank {one['rank']}, "
            f"layers from {one['lowest_layer']} up, {one['samples']} samples: {new}"
        )
    for shard in done.without:
        yield f"  shard {shard} has no prefix left: no adapter"
    for name in done.removed:
        yield f"  {name}  held dead nodes: removed"
    for name in done.replaced:
        yield f"  {name}  is alive, and served no more: left there (--prune removes it)"
    for name in done.strays:
        yield f"  {name}  is not ours: left alone"
    if done.merge is not None:
        merge = done.merge
        cut = (
            f", {merge.error:.2%} of the average cut off" if merge.error else ", the exact average"
        )
        yield (
            f"  {merge.metric} on {merge.samples} public test rows: ensemble {merge.ensemble:.4f}, "
            f"merged {merge.merged:.4f}{cut}"
        )
        if merge.loss > 0:
            yield f"  merging loses {merge.loss:.4f} of {merge.metric} to the ensemble"
    if done.engine_rank is not None:
        yield f"  start the engine with --max-lora-rank {done.engine_rank} or more"
    for note in done.notes:
        yield f"  note: {note}"


def _check_lines(checked: list[Checked]) -> Iterator[str]:
    for one in checked:
        verdict = "as the run" if one.holds else "NOT AS THE RUN"
        yield (
            f"  {one.name}  loaded by peft: logits differ by {one.difference:.1e} at most "
            f"(up to {one.tolerance:.1e} are allowed): {verdict}"
        )


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
