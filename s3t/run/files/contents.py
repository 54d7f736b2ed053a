"""What lies in a run directory, by kind: parts of a run, half-written files, strangers; and words.

Invariant: whatever is not known to be a part of a run is told of, by purge and by the audit.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from s3t.store.content import MALFORMED, entry_of, head_of
from s3t.store.seal import is_sealed
from s3t.system.scratch import FOLDER, PREFIX

__all__ = ["LEAST", "half_written", "strangers", "written", "written_files"]

_FILES = {
    "config.yaml",
    "plan.json",
    "ledger.db",
    "ledger.db-lock",
    "ledger.db-readers",
    "ledger.db-wal",
    "ledger.db-shm",
    "ledger.db-journal",
    "base_head.safetensors",
    "prototypes.safetensors",
    "tokens.json",
    "exports.json",
    "joined",
    ".training.lock",
}
_FOLDERS = {"base", "nodes", "trunk", ".work", FOLDER, "tracking", "reports", "public"}
_WRITTEN = ("tracking", "reports", ".work")
"""Folders of texts that trackers, reports and trainers write."""

_BASE = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|(generation_)?config\.json"
    r"|\w+_(config|map|tokens)\.json|(tokenizer|vocab|merges|chat_template)[\w.-]*"
    r"|[\w.-]+\.(model|bpe|tiktoken|jinja)"
)
"""What models and tokenizers are saved as."""

_DATABASE = b"SQLite format 3\0"
"""How a file of SQLite begins."""

_HALF = re.compile(r"\..*\.tmp")
_YOUNG = 60.0
"""Seconds for which a half-written file may be one that a living process is at."""

LEAST = 4
"""Shorter names, and those of digits alone, cannot be told from words and numbers."""

_WORD = re.compile(r"[\w.@:+-]+")
_QUOTED = re.compile(r'"([^"\n]{1,4096})"')


def strangers(root: Path, plans: Collection[Path]) -> list[Path]:
    """What is no part of a run, sorted; among the nodes the store looks itself.

    Args:
        root: the run directory.
        plans: files of plans that are not in force.
    """
    found = [
        path
        for path in root.iterdir()
        if not _HALF.fullmatch(path.name) and path not in plans and not _is_known(path)
    ]
    for path in _inside(root / "base"):
        if path.is_dir() or not _BASE.fullmatch(path.name) or _is_kept_elsewhere(path, root):
            found.append(path)
    found += [p for p in _inside(root / FOLDER) if not (p.is_dir() and p.name.startswith(PREFIX))]
    for folder in _WRITTEN:
        found += [path for path in (root / folder).rglob("*") if _is_kept_elsewhere(path, root)]
    return sorted(found)


def _inside(folder: Path) -> list[Path]:
    names = folder.iterdir() if folder.is_dir() else ()
    return [path for path in names if not _HALF.fullmatch(path.name)]


def _is_known(path: Path) -> bool:
    return path.name in (_FOLDERS if path.is_dir() else _FILES)


def _is_kept_elsewhere(path: Path, root: Path) -> bool:
    """Whether it is a copy of what has a place of its own in a run, a node or a ledger, or a link
    that leads out of the run."""
    if path.is_symlink():
        return not path.resolve().is_relative_to(root.resolve())
    if not _is_file(path):
        return False
    with suppress(FileNotFoundError), path.open("rb") as file:

        def first(count: int) -> bytes:
            file.seek(0)
            return file.read(count)

        if is_sealed(first(len(_DATABASE))) or first(len(_DATABASE)) == _DATABASE:
            return True
        with suppress(*MALFORMED):
            entry_of(head_of(first))
            return True
    return False


def _is_file(path: Path) -> bool:
    """Whether it is one, no link, and still there: a training's signs of life come and go."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def half_written(root: Path, seconds: float = _YOUNG) -> list[Path]:
    """What killed writers have left, sorted, but for nodes and scratch folders.

    Args:
        root: the run directory, whose training lock keeps others from writing in it and in its
            base.
        seconds: elsewhere files that are younger are left out: a service may be at them.
    """
    limit = time.time() - seconds
    found = []
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        for name in [*folders, *files]:
            if _HALF.fullmatch(name) and (here == root or _older(here / name, limit)):
                found.append(here / name)
        skipped = {"nodes", "trunk", FOLDER} if here == root else set()
        folders[:] = [one for one in folders if one not in skipped and not _HALF.fullmatch(one)]
    return sorted(found)


def _older(path: Path, limit: float) -> bool:
    try:
        return path.lstat().st_mtime <= limit
    except OSError:  # finished meanwhile
        return False


def written_files(root: Path) -> list[Path]:
    """Files that were written for people or other processes, and may name what they are about."""
    folders = [root / name for name in _WRITTEN]
    found = (path for folder in folders for path in folder.rglob("*"))
    return sorted(filter(_is_file, found))


def written(text: str) -> set[str]:
    """Whatever in a text may be the name of a sample or person: words, quoted strings, lines and
    their cells; short ones and numbers are left out, which cannot be told from other words."""
    lines = text.splitlines()
    cells = (cell for line in lines for cell in line.split(","))
    names = {*_WORD.findall(text), *_QUOTED.findall(text), *lines, *cells}
    return {name for name in names if len(name) >= LEAST and not name.isdigit()}
