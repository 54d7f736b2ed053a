"""Small private and public sources, of every format, and the problems that they have."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from s3t.config import Config
from s3t.errors import DataError

Row = dict[str, Any]
PUBLIC = [{"text": "fine", "label": "good"}, {"text": "awful", "label": "bad"}]


def write(path: str, rows: list[Row]) -> str:
    """Write rows as csv, JSON lines or parquet, by the suffix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    opener: Any = gzip.open if path.endswith(".gz") else open
    if path.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        if ".csv" in path:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def text_config(private: Any, **more: Any) -> Config:
    """A text config over one private file, whose format is told by its suffix."""
    first = private if isinstance(private, str) else private[0]
    kinds = {".csv": "csv", ".json": "json", ".parquet": "parquet"}
    kind = next(value for key, value in kinds.items() if key in first)
    public = {"format": "json", "files": "public.jsonl"}
    data = {
        "private": {"format": kind, "files": private, "split": more.pop("split", "train")},
        "public": {"validation": public, "test": public, **more.pop("public", {})},
        "columns": more.pop("columns", {}),
        "labels": more.pop("labels", None),
    }
    base = {"task": "text-classification", "model": {"base": "make:bert"}}
    return Config.model_validate({**base, "data": data, **more})


def problems(call: Any, *args: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        call(*args)
    return tuple(caught.value.problems)


LABELS = ("bad", "good")
ROWS = [
    {"text": 'one, "two"\nthree', "label": "good", "id": "007", "who": "0042"},
    {"text": "NA", "label": "bad", "id": "7", "who": ""},
    {"text": "nan", "label": "bad", "id": "1e3", "who": "2024-01-01"},
]
