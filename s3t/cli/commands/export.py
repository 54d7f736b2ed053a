"""export: what a run serves as adapters for peft."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s3t.cli.app import AsJson, MaxLoss, Merging, Rank, app
from s3t.cli.output import quiet, show
from s3t.errors import InputError

if TYPE_CHECKING:
    from s3t.export import Checked, Export

__all__: list[str] = []

LoadableBy = Annotated[
    str | None,
    typer.Option(metavar="ENGINE", help="vllm or sglang: refuse adapters that it cannot load"),
]
Prune = Annotated[
    bool, typer.Option("--prune", help="also remove living adapters that no longer serve")
]
Check = Annotated[
    bool, typer.Option("--check", help="load the adapters with peft alone and compare answers")
]


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run directory")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="folder for adapters: new, or of this run")
    ] = None,
    merge: Merging = False,
    rank: Rank = None,
    max_loss: MaxLoss = None,
    target: LoadableBy = None,
    prune: Prune = False,
    check: Check = False,
    as_json: AsJson = False,
) -> None:
    """Write what each shard serves as an adapter that peft loads; s3t export DIR --check.

    Adapters that hold deleted data are removed from DIR first. A name stands for weights: other
    weights get another name. Exit code 4 if a check fails, 3 if no shard has a prefix left.
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
    lines = (*(() if done is None else _export_lines(done)), *_check_lines(checked))
    show(_document(done, checked) if as_json else None, lines)
    if not all(one.holds for one in checked):
        raise typer.Exit(4)
    if done is not None and not done.adapters:
        raise typer.Exit(3)


def _document(done: Export | None, checked: list[Checked]) -> dict[str, object]:
    found: dict[str, object] = {} if done is None else done.to_dict()
    if checked:
        found["checked"] = [asdict(one) | {"holds": one.holds} for one in checked]
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
