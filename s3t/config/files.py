"""Configs as files: YAML with dotted overrides in, resolved YAML out.

Invariant: all problems of a file come in one error, in sentences that name the key, the value and
what to do.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from s3t.config.config import Config
from s3t.config.paths import located
from s3t.config.section import Written
from s3t.errors import ConfigError, named

try:
    from yaml import CSafeLoader as SafeLoader  # a tenth of the time: a run reads its config often
except ImportError:  # PyYAML without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

__all__ = ["dump_config", "load_config"]

_UNKNOWN = "extra_forbidden"
_PLAIN = {
    "model_type": "expected keys and values",
    "tuple_type": "expected a list",
    "string_type": "expected text, in quotes where YAML reads it as true or false, null or a date",
}
"""pydantic's words for kinds of errors, where they speak of Python."""
_STRUCTURE = ("[", "{", '"', "'", "!", "&", "|", ">")
"""How a value of YAML begins that is not plain text."""
_ALTERNATIVE = re.compile(r"\W|^str$|^constrained-")
"""Parts of an error's place that name an alternative of a type, as ``tuple[str, ...]``: no key."""


def load_config(
    path: str | Path | Mapping[str, Any], overrides: str | Sequence[str] = ()
) -> Config:
    """Read a YAML file, apply ``a.b=value`` overrides, and validate the whole.

    Relative paths in it are completed, see ``located``.

    Args:
        path: the YAML file; or its keys and values as a mapping, whose name is ``run`` by default.
        overrides: ``dotted.key=value``, one or several; the value is read as YAML.

    Raises:
        ConfigError: with every problem found.
    """
    if isinstance(path, Mapping):
        tree = copy.deepcopy({**path})
        tree.setdefault("name", "run")
        return _checked(tree, overrides, Path(), "the config")
    path = Path(path)
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        coded = " in UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        problem = f"cannot read it ({error}): give the path of a YAML file{coded}"
        raise ConfigError([problem], str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"is not YAML: {_told(error, text)}"], str(path)) from None
    if tree is None:
        raise ConfigError(
            ["is empty, expected keys and values: s3t init DATA writes a first config"], str(path)
        )
    if not isinstance(tree, dict):
        raise ConfigError([f"holds a {type(tree).__name__}, expected keys and values"], str(path))
    tree.setdefault("name", path.stem)
    return _checked(tree, overrides, path.parent, str(path))


def _checked(
    tree: dict[str, Any], overrides: str | Sequence[str], folder: Path, name: str
) -> Config:
    """The config of keys and values that lie in ``folder``, with the overrides applied."""
    problems: list[str] = []
    for override in [overrides] if isinstance(overrides, str) else overrides:
        _apply(tree, override, problems)
    config = _validated(tree, problems)
    if config is not None:
        config = located(config, folder, problems)
    if problems or config is None:
        raise ConfigError(problems, name)
    return config


def dump_config(config: Config) -> str:
    """The resolved config as YAML, with every default written out."""
    # in ASCII, since PyYAML reads back some of the other characters as line breaks
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


class _Whole(Written, int):
    """An integer of YAML, whatever its text: 7, but also 007, 0x10 or 1:30."""


class _Broken(Written, float):
    """A fraction of YAML, whatever its text, such as 1.10."""


class _Loader(SafeLoader):
    """YAML where a key that occurs twice is an error; PyYAML drops the first without a word.

    A number is still one where a number is asked for, and where text is, the text that is written:
    a salt of 007 is not 7.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"keys occur twice: {named(twice)}", node.start_mark
            )
        return super().construct_mapping(node, deep)

    def whole(self, node: yaml.ScalarNode) -> int:
        """The integer, which as text is what is written."""
        found = _Whole(self.construct_yaml_int(node))
        found.written = node.value
        return found

    def broken(self, node: yaml.ScalarNode) -> float:
        """The fraction, which as text is what is written."""
        found = _Broken(self.construct_yaml_float(node))
        found.written = node.value
        return found


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.broken)


def _apply(tree: dict[str, Any], override: str, problems: list[str]) -> None:
    key, sep, text = override.partition("=")
    if not sep or not all(key.split(".")):
        problems.append(f"override {override!r} is not of the form key=value")
        return
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        if "\n" in text or text[:1] in _STRUCTURE:
            what = " ".join(str(error).split()).partition(" in ")[0]
            how = "; put quotes around text in it that begins with *" if "*" in text else ""
            problems.append(f"override {override!r}: the value is not YAML: {what}{how}")
            return
        value = text  # such as *.csv, which YAML takes for an alias
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if not isinstance(child, dict | None):
            problems.append(f"override {override!r}: {parent!r} is not a section")
            return
        tree[parent] = tree = {**(child or {})}  # a copy: an alias may stand for it elsewhere
    tree[last] = value


def _told(error: yaml.YAMLError, text: str) -> str:
    """What is wrong with a YAML file, by line, and what to do about the usual mistakes."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    problem, context = getattr(error, "problem", ""), getattr(error, "context", None)
    what = f"{context}, {problem}" if context else str(problem)
    hint, line = "", ([*text.split("\n"), ""])[mark.line]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        hint = ": YAML is indented with blanks, not with tabs"
    elif "alias" in what:
        hint = ': put quotes around text that begins with *, such as "*.csv"'
    return f"{what} (line {mark.line + 1}, column {mark.column + 1}){hint}"


def _validated(tree: dict[str, Any], problems: list[str]) -> Config | None:
    """The config, after noting every problem: of single keys, and across the sections that have
    no wrong value."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        entries = error.errors()
        problems.extend(dict.fromkeys(_sentences(entries)))
        wrong = {str(e["loc"][0]) for e in entries if e["loc"] and e["type"] != _UNKNOWN}
        try:
            rest = Config.model_validate(_without(tree, (entry["loc"] for entry in entries)))
        except ValidationError:
            return None
        problems.extend(rest.problems(wrong))
        return None
    problems.extend(config.problems())
    return config


def _without(tree: dict[str, Any], locs: Iterable[tuple[int | str, ...]]) -> dict[str, Any]:
    """A copy without the keys that are wrong."""
    tree = copy.deepcopy(tree)
    for loc in locs:
        section: dict[Any, Any] = tree
        key = loc[0] if loc else ""
        for part in loc[1:]:
            if not isinstance(section.get(key), dict):
                break
            section, key = section[key], part
        section.pop(key, None)
    return tree


def _sentences(entries: Iterable[ErrorDetails]) -> Iterator[str]:
    """One sentence per key; what each alternative of its type says is joined by "or"."""
    whole: dict[str, tuple[list[str], Any]] = {}
    for entry in entries:
        loc, kind, value = entry["loc"], entry["type"], entry["input"]
        key = ".".join(str(part) for part in loc if not _ALTERNATIVE.search(str(part))) or "config"
        if kind == _UNKNOWN:
            whole[f"unknown key {'.'.join(map(str, loc))!r}{_hint(loc)}"] = ([], {})
        elif kind == "missing":
            whole[f"{key} is missing: add it"] = ([], {})
        else:
            message = entry["msg"].removeprefix("Value error, ")
            whole.setdefault(key, ([], value))[0].append(_PLAIN.get(kind, message))
    for key, (messages, value) in whole.items():
        shown = "" if isinstance(value, dict) else f" (got {value!r})"
        yield f"{key}: {', or '.join(messages)}{shown}" if messages else key


def _hint(loc: tuple[int | str, ...]) -> str:
    name = str(loc[-1])
    close = difflib.get_close_matches(name, _keys(loc[:-1]), n=1)
    if close:
        return f": did you mean {'.'.join([*map(str, loc[:-1]), close[0]])!r}?"
    elsewhere = [
        f"{section}.{name}" for section in Config.model_fields if name in _keys((section,))
    ]
    if elsewhere:
        return f": did you mean {', or '.join(map(repr, elsewhere))}?"
    return ": remove it"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at ``loc``."""
    section: Any = Config
    for part in loc:
        field = section.model_fields.get(str(part)) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if hasattr(o, "model_fields")), None)
    return list(section.model_fields) if section is not None else []
