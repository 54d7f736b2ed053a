"""Small csv files for commands, and what a refusal looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import Said


def good(count: int = 24) -> list[str]:
    return [f"{n},line {n},{'ab'[n % 2]}" for n in range(count)]


TABLES: dict[str, Sequence[str]] = {
    "private.csv": ["key,text,label", *good()],
    "public.csv": ["key,text,label", "p0,one,a", "p1,two,b"],
    "twice.csv": ["key,text,label", *good(), "3,again,a"],
    "unknown_label.csv": ["key,text,label", *good(), "99,what,c"],
    "no_label.csv": ["key,text", "1,x"],
    "few.csv": ["key,text,label", "0,line 0,a"],
    "ragged.csv": ["key,text,label", "1,x"],
    "header_only.csv": ["key,text,label"],
    "blank_text.csv": ["key,text,label", *good(), "98,,a"],
    "not_json.jsonl": ["{"],
}


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest and every folder below, to see whether anything changed."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def table(private: str = "private.csv", public: str = "public.csv") -> dict[str, Any]:
    source = {"format": "csv", "files": public}
    return {
        "task": "text-classification",
        "data": {
            "private": {"format": "csv", "files": private},
            "public": {"validation": source, "test": source},
            "columns": {"id": "key"},
            "max_length": 16,
        },
        "model": {"base": "make:bert", "make": {"hidden": 16, "layers": 2, "heads": 2}},
        "partition": {"shards": 1, "slices": 2},
    }


def refused(said: Said, *parts: str, code: int = 2) -> None:
    """One message on standard error, no traceback, nothing on standard output."""
    assert said.code == code, said
    assert said.out == ""
    assert "Traceback" not in said.err and "unexpected" not in said.err, said.err
    assert said.err.count("s3t: ") == 1 or "Usage: " in said.err, said.err
    assert [part for part in parts if part not in said.err] == [], said.err
