"""docs/changing.md leads to places that exist: each file, folder and name in it is found."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/changing.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| change |")
]
PLACE = re.compile(r"`([\w./-]+(?:/|\.\w+))(?::([\w.]+))?`")


@cache
def names(path: Path) -> frozenset[str]:
    """What a module defines: functions, classes and values at its top level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Assign():
                found |= {one.id for one in node.targets if isinstance(one, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_change_leads_to_places_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    begin, rest = (PLACE.findall(cell) for cell in row[1:])
    assert begin, "a row says where to begin"
    for place, name in [*begin, *rest]:
        path = next((one for one in (ROOT / "s3t" / place, ROOT / place) if one.exists()), None)
        assert path is not None, f"{place} does not exist"
        assert not name or name in names(path), f"{place} defines no {name}"


def test_there_are_rows_enough_to_find_a_change() -> None:
    assert len(ROWS) >= 20
