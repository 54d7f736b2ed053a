"""From files to a config that was checked as ``s3t train`` checks its data.

    files ─► table ─► choices ─► draft ─► labels ─► all data, cut and dealt ─► grid ─► text

Invariant: the text is read back by ``load_config``'s rules, and its data were read whole: a file
with an empty label is refused here, not after minutes of training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from s3t.config import ColumnsConfig, Config, SourceConfig
from s3t.data import Data, load_all
from s3t.data.columns import read_columns
from s3t.data.looking import Role, look_at
from s3t.data.sources import Table, read_table
from s3t.errors import DataError, named
from s3t.run.init.base import BaseChoice, choose_base
from s3t.run.init.choices import Ask, Choices, Given, choose
from s3t.run.init.grid import Grid, find_grid
from s3t.run.init.text import config_text

__all__ = ["Proposal", "propose"]

_LEARNT: set[Role] = {"text", "prompt", "completion", "messages", "image"}
_CUTS = {"adapt": "20%", "validation": "10%", "test": "10%"}


@dataclass(frozen=True)
class Proposal:
    """A config for one's own data.

    Attributes:
        text: YAML with comments.
        lines: what was chosen, and why, a line each.
    """

    text: str
    lines: tuple[str, ...]


def propose(
    files: Sequence[str],
    output: Path,
    given: Given,
    *,
    public: Sequence[str] = (),
    base: str | None = None,
    deletions: int | None = None,
    encoding: str | None = None,
    ask: Ask | None = None,
) -> Proposal:
    """Look at data, and propose a config.

    Args:
        files: the private data: files, globs or folders of images.
        output: where the config will be written; paths in it are relative to its folder.
        given: task and columns that the caller names.
        public: public data; by default rows of the private data are cut aside.
        base: ``model.base``; default: a small one that is made here.
        deletions: number of deletions to plan for; default: 2 % of the persons, at least 5.
        encoding: of csv and JSON files; default: UTF-8.
        ask: asks for what is not clear; None refuses it.

    Raises:
        InputError: what is not clear; DataError: rows that could not be trained on, or too few.
    """
    source = _source(files, encoding)
    table = _table(source)
    choices = choose(look_at(table), given, ask)
    values = {
        role: table.column(choices.columns[role]) for role in _LEARNT & choices.columns.keys()
    }
    chosen = choose_base(choices.task, base, values)
    draft = _draft(source, _source(public, encoding) if public else None, choices, chosen)
    config = Config.model_validate(draft)
    data = load_all(config)
    salt = config.partition.salt
    grid = find_grid(data.private.samples, chosen.layers, chosen.epochs, salt, deletions)
    tree = _whole(draft, grid)
    Config.model_validate(tree)
    lines = (*choices.reasons, _parts(data), *chosen.lines, *grid.lines())
    for held in (tree["data"]["private"], tree["data"].get("public")):
        if held is not None:
            held["files"] = _beside(held["files"], output)
    if os.path.exists(chosen.name):
        tree["model"]["base"] = _beside(os.path.abspath(chosen.name), output)
    return Proposal(config_text(tree, _head(files, output, lines)), lines)


def _table(source: Mapping[str, Any]) -> Table:
    """The rows of the private data, by the reader of their format.

    Raises:
        DataError: files that cannot be read, or no rows.
    """
    table = read_table(SourceConfig.model_validate(source), ColumnsConfig())
    if not table.size:
        raise DataError([f"{source['files']} has no rows: give it data"], "data")
    return table


def _source(files: Sequence[str], encoding: str | None) -> dict[str, Any]:
    """A section ``data.private`` or ``data.public`` with absolute paths."""
    absolute = [os.path.abspath(os.path.expanduser(file)) for file in files]
    folders = {"format": "imagefolder"} if all(map(os.path.isdir, absolute)) else {}
    told = {} if encoding is None else {"encoding": encoding}
    return folders | {"files": absolute[0] if len(absolute) == 1 else absolute} | told


def _draft(
    source: dict[str, Any], public: dict[str, Any] | None, choices: Choices, chosen: BaseChoice
) -> dict[str, Any]:
    """All sections but those of the grid."""
    columns = {role: name for role, name in choices.columns.items() if role != "subject"}
    data: dict[str, Any] = {"private": source, "cut_from": "private"} | _CUTS
    if public is not None:
        data = {"private": source, "public": public} | {
            name: share for name, share in _CUTS.items() if name != "adapt"
        }
    data["columns"] = columns
    draft = {"task": choices.task, "data": data | chosen.data, **chosen.sections}
    if "subject" in choices.columns:
        draft["partition"] = {"subject": choices.columns["subject"]}
    if choices.task != "causal-lm":
        data["labels"] = _labels(draft)
        draft["data"] = data | chosen.data
    return draft


def _labels(draft: dict[str, Any]) -> list[str]:
    """The classes of the private rows, sorted.

    Raises:
        DataError: rows that cannot be read; all problems of the private data.
    """
    held = draft["data"] | {"labels": ["of the draft"]}
    config = Config.model_validate(draft | {"data": held})
    found = read_columns(config, config.data.private, "data.private")
    if found.problems:
        raise DataError([f"data.private: {problem}" for problem in found.problems], "data")
    return sorted({label for label in found.labels or () if label is not None})


def _whole(draft: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """The draft with the sections of the grid, in the order in which they are read."""
    merged = dict(draft)
    for name, section in grid.sections.items():
        merged[name] = {**section, **draft.get(name, {})}
    order = ("task", "data", "model", "partition", "sequences", "lora", "stage")
    return {name: merged[name] for name in order if name in merged}


def _parts(data: Data) -> str:
    """How many rows lie in which part, and which of them cannot be forgotten."""
    parts = {"adapt the base": data.adapt, "validate": data.validation, "test": data.test}
    told = [f"{len(rows):,} {what}" for what, rows in parts.items() if rows is not None]
    private = data.private.samples
    persons = {one.subject for one in private if one.subject is not None}
    of = f" of {len(persons):,} persons" if persons else ""
    line = f"rows: {len(private):,} private{of}, which can be forgotten; {', '.join(told)}"
    return line if data.cut is None else f"{line} ({data.cut.sentence()})"


def _beside(files: str | list[str], output: Path) -> str | list[str]:
    """Paths relative to the config's folder; absolute where they lie outside of it."""
    if not isinstance(files, str):
        return [one for file in files for one in [_beside(file, output)] if isinstance(one, str)]
    folder = output.absolute().parent
    path = Path(files)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else files


def _head(files: Sequence[str], output: Path, lines: Sequence[str]) -> list[str]:
    """The comment at the top: the command that takes the config, and what was chosen."""
    return [
        f"s3t train {output.name}",
        "",
        f"Written by s3t init from {named(files)}. Keys: docs/reference.md",
        "",
        *(part for line in lines for part in wrap(line, 96, subsequent_indent="  ")),
    ]
