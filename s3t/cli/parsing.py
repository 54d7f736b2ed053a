"""What was typed: names, rows of files, curves, and options meant for accelerate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3t.data.files import csv_rows, json_rows, once
from s3t.errors import InputError, UnknownSampleError

if TYPE_CHECKING:
    from s3t.ledger.samples.registry import SampleEntry

__all__ = [
    "asked_rows",
    "json_row",
    "key_as_option",
    "names",
    "near_names",
    "numbered",
    "points",
    "split_launch",
]

_HINTS = 5
"""Unknown names for which near ones are looked up."""

_COMPARED = 20_000
"""Names that one is compared with, which takes a second; among more, only such that look alike."""


def names(given: list[str] | None, path: Path | None) -> list[str]:
    """Ids or subjects, byte for byte: those of an option, and those of a file's lines.

    A line that begins with a quote is a JSON string, so that a name may hold any character. Any
    other line is the name as it stands, blanks included. Empty lines name nothing.

    Raises:
        InputError: the file cannot be read, or a line begins with a quote and is no JSON string.
    """
    lines = [] if path is None else _lines(path)
    return [*(given or []), *(_name(line, number, path) for number, line in lines if line)]


def _name(line: str, number: int, path: Path | None) -> str:
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except ValueError as error:
        raise InputError(
            f"{path}, line {number} begins with a quote and is no JSON string ({error}): a name "
            'that holds quotes is written as one, such as "\\"so called\\""'
        ) from None


def near_names(error: UnknownSampleError, held: Iterable[SampleEntry]) -> Iterator[str]:
    """Sentences on what may have been meant by names that a run does not hold.

    Args:
        error: with those names.
        held: the run's samples.
    """
    from s3t.ledger.samples.look_alikes import plain

    entries = list(held)
    ids: set[str] = {entry.sample_id for entry in entries}
    persons: set[str] = {entry.subject for entry in entries if entry.subject is not None}
    asked: list[tuple[str, set[str], set[str], str, str]] = [
        *((one, ids, persons, "a person", "--subjects") for one in error.sample_ids),
        *((one, persons, ids, "a sample id", "--ids") for one in error.subjects),
    ]
    for name, right, other, what, option in asked[:_HINTS]:
        form = plain(name)
        few = sorted(right) if len(right) <= _COMPARED else []
        close = get_close_matches(name, few, n=3, cutoff=0.75)
        alike = [one for one in right if plain(one) == form]
        if name in other:
            yield f"{name!r} is {what}: name it by {option}"
        elif near := list(dict.fromkeys([*alike, *close]))[:3]:
            yield f"{name!r} is unknown: did you mean {' or '.join(map(repr, near))}?"


def numbered(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1.

    Raises:
        InputError: the file cannot be read.
    """
    return [(number, line) for number, line in _lines(path) if line.strip()]


def _lines(path: Path) -> list[tuple[int, str]]:
    """All lines without their ends (\\n or \\r\\n) and without a byte-order mark."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): expected text in UTF-8") from None
    # not splitlines, which also cuts at characters that a name or a JSON string may hold
    return [(n, line.removesuffix("\r")) for n, line in enumerate(text.split("\n"), 1)]


def points(path: str) -> str:
    """The text of a file of points, as ``--curve`` names it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--curve {path} is neither linear nor power:TOP,GAP,EXPONENT, and cannot be read as a "
            f"file of points ({error})"
        ) from None


def asked_rows(path: Path) -> list[Any]:
    """The rows of a file to be answered: mappings, or texts of a .txt file.

    Args:
        path: its suffix tells the form, see ``s3t predict --help``; ``-`` is standard input.

    Raises:
        InputError: it cannot be read, or a line is not of that form.
    """
    if str(path) == "-":
        lines = [
            (n, line) for n, line in enumerate(sys.stdin.read().splitlines(), 1) if line.strip()
        ]
        return [
            json_row(line, number, path) if line.lstrip().startswith("{") else line
            for number, line in lines
        ]
    suffixes = [one.lower() for one in path.suffixes if one.lower() not in (".gz", ".bz2", ".xz")]
    kind = suffixes[-1] if suffixes else ""
    if kind in (".csv", ".tsv", ".tab"):
        return csv_rows([str(path)])
    if kind == ".txt":
        return [line for _, line in numbered(path)]
    if len(path.suffixes) > len(suffixes) or kind == ".json":
        return json_rows([str(path)])
    return [json_row(line, number, path) for number, line in numbered(path)]


def json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    """One line of a file of JSON lines.

    Raises:
        InputError: it is no JSON object, or holds a key twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number} is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number} holds a {type(row).__name__}, expected an object")
    return row


def split_launch(words: list[str]) -> tuple[list[str], list[str]]:
    """Divide words into overrides (``key=value``) and launch options (``--num_processes 2``).

    Raises:
        InputError: an option is a key of the config.
    """
    overrides: list[str] = []
    launch: list[str] = []
    expecting = False
    for number, word in enumerate(words):
        if word.startswith("-"):
            _refuse_key(word, words[number + 1] if number + 1 < len(words) else "VALUE")
            launch.append(word)
            expecting = "=" not in word
        elif expecting and not _is_override(word):
            launch.append(word)
            expecting = False
        else:
            overrides.append(word)
            expecting = False
    return overrides, launch


def _refuse_key(word: str, following: str) -> None:
    told = key_as_option(word, following)
    if told:
        raise InputError(told)


def key_as_option(word: str, following: str) -> str | None:
    """What to write for an option that is a key of the config, ``--stage.epochs 3``; else None."""
    from s3t.config import Config

    key, sep, value = word.lstrip("-").partition("=")
    section, dot, _ = key.partition(".")
    if dot and section in Config.model_fields:
        return f"{word} is no option: write {key}={value if sep else following}"
    return None


def _is_override(word: str) -> bool:
    """Whether a word after a launch option sets a config key and is not the option's value."""
    from s3t.config import Config

    key, sep, _ = word.partition("=")
    return bool(sep) and key.partition(".")[0] in Config.model_fields
