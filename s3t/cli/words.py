"""What a command line says, read: ids, rows, curves, and which words are accelerate's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s3t.errors import InputError

__all__ = ["json_row", "numbered", "points", "split_launch", "words"]


def words(values: list[str] | None) -> list[str]:
    return [word for value in values or [] for word in value.split(",") if word]


def numbered(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    # not splitlines, which also cuts at characters that JSON allows inside a string
    lines = enumerate(text.split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def points(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--curve {path} is neither linear nor power:TOP,GAP,EXPONENT, and cannot be read as a "
            f"file of points ({error})"
        ) from None


def json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} holds a {type(row).__name__}, expected an object")
    return row


def split_launch(words: list[str]) -> tuple[list[str], list[str]]:
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
