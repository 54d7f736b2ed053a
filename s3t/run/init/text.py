"""A config as YAML with comments, as ``s3t init`` writes it.

Invariant: read back, the text is the sections that were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import yaml

__all__ = ["config_text"]

_COMMENTS = {
    "data": "What is learnt. Private rows can be forgotten.",
    "model": "The frozen base. One that is made here learns the public rows first (adapt).",
    "partition": "A keyed hash of its person (or content) puts a row into a slice. To forget it is "
    "to switch off what has seen the slice.",
    "sequences": "In which orders slices are learnt, so that much is left after deletions "
    "(s3t budget).",
    "lora": "What is trained beside the base.",
    "stage": "How each stage is trained.",
}
"""What stands above a section."""

_KEYS = {
    "cut_from": "These parts of the private rows are cut aside by a keyed hash, persons whole. "
    "They adapt the base, choose among prefixes and test. They are public from then on, and "
    "cannot be forgotten. s3t init --public FILE takes other rows for that.",
    "public": "Rows of this file cannot be forgotten: validation and test are cut from them by a "
    "keyed hash, and the rest adapts the base.",
    "labels": "The classes, read once; they stay if all rows of one are forgotten.",
    "max_length": "Tokens of a text; longer ones are cut.",
}
"""What stands above a key."""


def config_text(tree: Mapping[str, Any], head: Sequence[str]) -> str:
    """The YAML of a config.

    Args:
        tree: its sections and keys; a section that is no longer than a line stands on one.
        head: sentences for the comment at the top.
    """
    lines = [f"# {line}".rstrip() for line in head]
    for name, value in tree.items():
        if name in _COMMENTS:
            lines += ["", *_comment(_COMMENTS[name], "")]
        lines += _key(name, value, "")
    return "\n".join(lines) + "\n"


def _key(name: str, value: Any, indent: str) -> Iterator[str]:
    line = f"{indent}{name}: {_flow(value)}"
    told = isinstance(value, Mapping) and not _KEYS.keys().isdisjoint(value)
    if isinstance(value, Mapping) and (told or len(line) > 100):
        yield f"{indent}{name}:"
        for key, inner in value.items():
            if key in _KEYS:
                yield from _comment(_KEYS[key], f"{indent}  ")
            yield from _key(key, inner, f"{indent}  ")
    else:
        yield line


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in wrap(text, 96 - len(indent))]


def _flow(value: Any) -> str:
    """A value on one line; in ASCII if it would not be read back as it is (line separators)."""
    for plain in (True, False):
        written: str = yaml.safe_dump(
            value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=plain
        )
        written = written.removesuffix("\n").removesuffix("\n...")
        if "\n" not in written and yaml.safe_load(written) == value:
            break
    return written
