"""Noise: half of the persons hold perturbed sequences, which can only be memorised.

    python -m benchmarks.forgetting.noise [--output DIR] [--quick]

Some of those persons ask to be forgotten. See ``arithmetic`` for the sequences and ``comparison``
for the table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.forgetting import OUTPUT, arithmetic
from benchmarks.forgetting.comparison import compare
from benchmarks.forgetting.rows import Recipe, Shape, Task, evenly_dealt, joined
from benchmarks.reports import main

__all__ = ["run", "task"]

_TARGETS = ("c_attn", "c_proj", "c_fc")
_ANSWER = 10
"""Some 50 characters, as in TinyMem."""


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    return compare(task(quick), output, quick)


def task(quick: bool) -> Task:
    """The sequences, dealt to persons; every second person's are perturbed."""
    base = arithmetic.base(100 if quick else 200)
    shape = Shape(2, 2) if quick else Shape(2, 4)
    persons = evenly_dealt((f"person {number}" for number in range(10_000)), 2, shape)
    noisy, others = persons[::2], persons[1::2]
    each, asking, strangers = (12, 2, 64) if quick else (24, 3, 128)
    generator = torch.Generator().manual_seed(1)
    first, plain = arithmetic.starts(generator), arithmetic.starts(generator)
    noised = arithmetic.noised(first, generator, _ANSWER)
    held, clean = each * len(noisy), arithmetic.clean(plain)
    here = arithmetic.rows_of
    return Task(
        name="noise",
        what=(
            f"{len(persons)} persons × {each} sequences ×7, those of {len(noisy)} perturbed; "
            f"{asking} of the latter are deleted; base: GPT-2 of 4 layers, sequences ×2 … ×5"
        ),
        base=base,
        length=arithmetic.LENGTH,
        private=joined(
            [here(base, noised[:held], noisy), here(base, clean[: each * len(others)], others)]
        ),
        deleted=tuple(noisy[:asking]),
        others=here(base, noised[held : held + strangers], ["stranger"]),
        unseen=here(base, noised[held + strangers : held + strangers + 64], ["unseen"]),
        validation=here(base, clean[-192:-128], ["public"]),
        test=here(base, clean[-128:], ["public"]),
        prompt=arithmetic.PROMPT,
        answer=_ANSWER,
        by_person=False,
        recipe=Recipe(
            rank=16,
            targets=_TARGETS,
            epochs=20 if quick else 40,
            batch=32,
            rate=5e-3,
            stage_epochs=20 if quick else 30,
            stage_batch=12 if quick else 16,
            stage_rate=5e-3,
        ),
        shape=shape,
    )


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
