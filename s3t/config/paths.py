"""What the paths of a config mean.

    config file ─► load_config ─► located:  ~ and $VARS, beside the file or in the current directory
    a run       ─► RUN/config.yaml ◄─ anchored:  absolute, so the run finds them from anywhere

Invariant: a relative path means one thing. If it names one file beside the config and another in
the current directory, that is an error, never a choice.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from s3t.config.config import Config

__all__ = ["anchored", "located"]

_SOURCES = ("private", "public.adapt", "public.validation", "public.test", "public.rows")
_PLACES = ("output", "store.url", "store.cache", "store.keys", "receipts.signing_key")
"""Keys of paths that may be made, or hold secrets: they are never looked for beside a config."""
_KEYS = (
    *(f"data.{source}.{name}" for source in _SOURCES for name in ("files", "name")),
    *("data.cut_files", "model.base", "data.chat_template"),
    *_PLACES,
)
"""Keys of local paths, by their dotted names."""

Change = Callable[[str, str], str]
"""Takes the key of a path and the path; gives the path to put there."""


def located(config: Config, folder: Path, problems: list[str]) -> Config:
    """The config with ``~`` and ``$VARS`` filled in, and its data found.

    Relative paths of data, of the base and of the chat template are those beside the config, if
    there are any, else those of the current directory. Where a run, a store or keys lie is relative
    to the current directory.

    Args:
        config: as it was read.
        folder: where its file lies.
        problems: a sentence is added for each path that names two files, or an unset variable.
    """

    here = _same(str(folder), ".")

    def change(key: str, path: str) -> str:
        if "://" in path:
            return path
        full = _filled(key, path, problems)
        if here or os.path.isabs(full) or key in _PLACES:
            return full
        beside = str(folder / full)
        found = [one for one in (beside, full) if _exists(one)]
        if len(found) == 2 and not _same(beside, full):
            problems.append(
                f"{key} {path!r} is one file beside the config ({os.path.abspath(beside)}) and "
                f"another in the current directory ({os.path.abspath(full)}): give the whole path"
            )
        return beside if beside in found and full not in found else full

    return _with_paths(config, change)


def anchored(config: Config) -> Config:
    """The same config with local paths made absolute, so that it means the same from anywhere."""

    def change(key: str, path: str) -> str:
        if key == "output" or "://" in path or (_is_hub_name(key) and not os.path.exists(path)):
            return path
        return os.path.abspath(os.path.expanduser(path) if key == "store.keys" else path)

    return _with_paths(config, change)


def _is_hub_name(key: str) -> bool:
    """Whether what is no path is a name on the hub."""
    return key == "model.base" or key.endswith(".name")


def _filled(key: str, path: str, problems: list[str]) -> str:
    """A path with ``~`` and ``$VARS`` filled in, unless a file is named just so."""
    if os.path.exists(path):
        return path
    full = os.path.expandvars(os.path.expanduser(path))
    if unset := re.findall(r"\$\{?[A-Za-z_]\w*\}?", full):
        problems.append(f"{key} {path!r}: the variable {unset[0]} is not set")
    return full


def _exists(path: str) -> bool:
    return os.path.exists(path) or (glob.has_magic(path) and bool(glob.glob(path, recursive=True)))


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _with_paths(config: Config, change: Change) -> Config:
    """The config with each local path changed; the same object where that changes none."""
    for key in _KEYS:
        config = _changed(config, key.split("."), partial(change, key))
    return config


def _changed(section: Any, names: Sequence[str], change: Callable[[str], str]) -> Any:
    """A section with one value in it changed, which may be a path, several or none."""
    name, *rest = names
    before = getattr(section, name)
    if not before:
        return section
    if rest:
        after = _changed(before, rest, change)
    elif isinstance(before, str):
        after = change(before) if _is_path(name, before) else before
    else:
        after = tuple(change(one) for one in before)
    return section if after == before else section.model_copy(update={name: after})


def _is_path(name: str, value: str) -> bool:
    if name == "chat_template":
        return value != "base" and "{" not in value
    return not value.startswith("python:" if name == "keys" else "make:")
