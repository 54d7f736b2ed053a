"""The data sets of ../shared/data, read, and as the configs read them: written once to runs/data.

    python -m benchmarks.prepared_data

    banking77        test.csv.gz, 40 rows an intent ─► adapt 15 │ validation 5 │ test 20
    tinyshakespeare  input.txt.gz ─► {speaker, text} ─► keyed hash of the speaker ─► private │
                                                                 adapt │ validation │ test
    tofu             full.jsonl.gz ─► {id, author, question, answer}: private; holdout10.jsonl.gz
                     ─► its first 100 rows: validation │ test

Invariant: no public speaker is private, and the split follows from the input alone.
"""

from __future__ import annotations

import csv
import gzip
import hmac
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "json_rows", "prepare", "shared_data", "thinned", "write_rows"]

ROOT = Path(__file__).resolve().parent.parent
INTENT_PARTS = {"adapt": 15, "validation": 5, "test": 20}
PUBLIC_SHARES = {"validation": 3, "test": 10, "adapt": 5}
"""Speakers in a hundred."""

HELD_OUT = 100
"""Rows of TOFU's holdout that validate; the others test."""

Row = Mapping[str, str]


def shared_data() -> Path | None:
    """The folder of the data sets (S3T_SHARED_DATA, or beside the repository), if it is there."""
    folder = Path(os.environ.get("S3T_SHARED_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def prepare(shared: Path, target: Path) -> None:
    """Write the files that the configs name, unless they are there, below ``target``."""
    if not (target / "banking77" / "test.csv").exists():
        for name, rows in _intents(shared / "banking77" / "test.csv.gz").items():
            _write_csv(target / "banking77" / f"{name}.csv", rows)
    if not (target / "tinyshakespeare" / "adapt.jsonl").exists():
        for name, rows in _speeches(shared / "tinyshakespeare" / "input.txt.gz").items():
            write_rows(target / "tinyshakespeare" / f"{name}.jsonl", rows)
    if not (target / "tofu" / "test.jsonl").exists():
        for name, rows in _questions(shared / "tofu").items():
            write_rows(target / "tofu" / f"{name}.jsonl", rows)


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a packed file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Rows as a user's file of JSON lines; returns the config's words for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return {"format": "json", "files": str(path)}


def thinned(path: Path, every: int, folder: Path) -> Path:
    """A csv file below ``folder`` with every k-th row of another, packed or not.

    banking77's rows are sorted by intent, so all intents stay.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[::every]
    found = folder / f"{path.name.partition('.')[0]}-{every}.csv"
    _write_csv(found, rows)
    return found


def _intents(source: Path) -> dict[str, list[Row]]:
    seen: dict[str, int] = defaultdict(int)
    names = [name for name, count in INTENT_PARTS.items() for _ in range(count)]
    parts: dict[str, list[Row]] = {name: [] for name in INTENT_PARTS}
    with gzip.open(source, "rt", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            parts[names[seen[row["category"]]]].append(row)
            seen[row["category"]] += 1
    return parts


def _speeches(source: Path) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {name: [] for name in ("private", *PUBLIC_SHARES)}
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        blocks = stream.read().split("\n\n")
    for block in blocks:
        speaker, _, text = block.partition(":\n")
        if text.strip():
            name = speaker.strip()
            parts[_part(name)].append({"speaker": name, "text": text.strip()})
    return parts


def _questions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    private = [
        {
            "id": f"row {number}",
            "author": f"author {row['author_id']}",
            "question": row["question"],
            "answer": row["answer"],
        }
        for number, row in enumerate(json_rows(folder / "full.jsonl.gz"))
    ]
    held = json_rows(folder / "holdout10.jsonl.gz")
    return {"private": private, "validation": held[:HELD_OUT], "test": held[HELD_OUT:]}


def _part(speaker: str) -> str:
    """Which part a speaker belongs to."""
    drawn = int.from_bytes(hmac.digest(b"public", speaker.encode(), "sha256")[:8], "big") % 100
    for name, share in PUBLIC_SHARES.items():
        if drawn < share:
            return name
        drawn -= share
    return "private"


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "category"])
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Write what the shipped configs read below runs/data; returns the exit code."""
    shared = shared_data()
    if shared is None:
        print("prepared_data: there is no ../shared/data (set S3T_SHARED_DATA to its place)")
        return 1
    prepare(shared, ROOT / "runs" / "data")
    print(f"prepared what the configs read below {ROOT / 'runs' / 'data'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
