"""A tiny Llama's run on texts of persons: 2 shards × 3 slices, trained once for all tests."""

from __future__ import annotations

from pathlib import Path

from s3t.config import Config
from tests.support.small_runs import person_rows, write_csv


def language_config(folder: Path, base: str = "make:llama", **model: object) -> Config:
    """A run of ``base`` in ``folder``, its data beside it."""
    write_csv(folder / "private.csv", person_rows(32, 2))
    write_csv(folder / "public.csv", person_rows(4))
    public = {"format": "csv", "files": str(folder / "public.csv")}
    return Config.model_validate(
        {
            "output": str(folder / "run"),
            "task": "causal-lm",
            "data": {
                "private": {"format": "csv", "files": str(folder / "private.csv")},
                "public": {"validation": public, "test": public},
                "columns": {"id": "id"},
                "max_length": 32,
            },
            "model": {
                "base": base,
                "make": {"hidden": 16, "layers": 3, "heads": 2, "init_scale": 5},
                **model,
            },
            "partition": {"shards": 2, "slices": 3, "salt": "walk", "subject": "who"},
            "sequences": {"strategy": "cyclic"},
            "lora": {"rank": 2},
            "stage": {"epochs": 1, "learning_rate": 1e-2},
            "aggregation": {"weights": "uniform"},
            "training": {"workers": 1},
        }
    )
