"""The paths in docs/design.md, held against the code.

A path is a section "## The … path" with nested bullets, each ``- `file: function` — what it does``,
the file below ``s3t/``. Every function exists, the function above one names it, and functions below
the same one stand in the order in which it names them.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "design.md").read_text()
_SECTION = re.compile(r"^## (The \w+ path)$\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
_BULLET = re.compile(r"^( *)- (.*)$", re.MULTILINE)
_STEP = re.compile(r"`([\w/]+\.py): ([\w.]+)` — .+")

PATHS = dict(_SECTION.findall(TEXT))


class Step(NamedTuple):
    """One function of a path, and the one that it stands below."""

    file: str
    function: str
    above: Step | None


def steps(section: str) -> list[Step]:
    found, open_ = list[Step](), list[Step]()
    for indent, text in _BULLET.findall(section):
        step = _STEP.fullmatch(text)
        assert step, f"not of the form `file: function` — what it does: {text}"
        depth = len(indent) // 2
        assert depth <= len(open_), f"stands too deep: {text}"
        del open_[depth:]
        open_.append(Step(step[1], step[2], open_[-1] if open_ else None))
        found.append(open_[-1])
    return found


def definition(step: Step) -> ast.AST:
    """The function's part of the syntax tree."""
    path = ROOT / "s3t" / step.file
    assert path.is_file(), f"s3t/{step.file} is not there"
    node: ast.AST = ast.parse(path.read_text())
    for name in step.function.split("."):
        inside = [
            one
            for one in ast.iter_child_nodes(node)
            if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and one.name == name
        ]
        assert inside, f"s3t/{step.file} has no {step.function}"
        (node,) = inside
    return node


def named_at(caller: ast.AST, name: str) -> tuple[int, int] | None:
    """Line and column at which a function first names another one."""
    found = [
        (one.end_lineno or 0, one.end_col_offset or 0)
        for one in ast.walk(caller)
        if (isinstance(one, ast.Name) and one.id == name)
        or (isinstance(one, ast.Attribute) and one.attr == name)
    ]
    return min(found, default=None)


def test_the_paths_are_there() -> None:
    assert "The deletion path" in PATHS
    assert all(len(steps(section)) > 2 for section in PATHS.values())


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_that_of_the_code(path: str) -> None:
    last: dict[Step, tuple[int, int]] = {}
    for step in steps(PATHS[path]):
        definition(step)
        if step.above is None:
            continue
        place = named_at(definition(step.above), step.function.split(".")[-1])
        above = f"s3t/{step.above.file}: {step.above.function}"
        assert place is not None, f"{above} does not name {step.function}"
        assert place >= last.get(step.above, place), f"{above} names {step.function} earlier"
        last[step.above] = place
