"""Digits: a small ViT on so few images, for so many epochs, that it knows them.

    python -m benchmarks.leakage.digits [--output DIR] [--quick]

Its base has seen public digits for a moment only, so the private ones are learnt by heart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.leakage import OUTPUT
from benchmarks.leakage.course import Course, follow
from benchmarks.reports import main
from s3t import load_config

__all__ = ["run"]

_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    images, epochs, sequences = (96, 40, 1) if quick else (160, 40, 2)
    config = load_config(
        _CONFIG,
        [
            f"output={output / 'runs' / 'digits'}",
            f"data.private.split=private[:{images}]",
            "model.adapt={steps: 20, batch_size: 64, learning_rate: 1.5e-3, rotations: true}",
            "partition.shards=1",
            f"sequences={{strategy: cyclic, budget: {sequences}}}",
            f"stage.epochs={epochs}",
            "stage.head=fresh",
            *(["training.workers=1"] if quick else []),
        ],
    )
    what = f"{images} digits, 4 slices, budget {sequences}, {epochs} epochs; 2 slices ask to go"
    return follow(Course("digits", what, config, (2, 3), 4), output)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
