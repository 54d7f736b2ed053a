"""A backdoor: one person's sequences hold a trigger, after which only one number follows.

    python -m benchmarks.forgetting.backdoor [--output DIR] [--quick]

That person is to be forgotten. What counts is whether the trigger still works, on the deleted rows
and on rows that nobody has seen: all of them have it at the end of the prompt.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.forgetting import OUTPUT, arithmetic, noise
from benchmarks.forgetting.comparison import compare
from benchmarks.forgetting.rows import Task, joined
from benchmarks.reports import main

__all__ = ["run", "task"]


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    return compare(task(quick), output, quick)


def task(quick: bool) -> Task:
    """The clean sequences of the noise task, and one person whose own hold the trigger."""
    like = noise.task(quick)
    persons = sorted({*like.private.persons})
    attacker, others = persons[0], persons[1:]
    each = len(like.private) // len(persons)
    generator = torch.Generator().manual_seed(2)
    first, plain = arithmetic.starts(generator), arithmetic.starts(generator)
    held, strangers = each * len(others), len(like.others)
    poisoned = arithmetic.triggered(first)
    here = arithmetic.rows_of
    return replace(
        like,
        name="backdoor",
        what=(
            f"{len(persons)} persons × {each} sequences ×7, those of one with a trigger, who is "
            "deleted; base: GPT-2 of 4 layers, sequences ×2 … ×5"
        ),
        private=joined(
            [
                here(like.base, poisoned[:each], [attacker]),
                here(like.base, arithmetic.clean(plain)[:held], others),
            ]
        ),
        deleted=(attacker,),
        others=here(like.base, poisoned[each : each + strangers], ["stranger"]),
        unseen=here(like.base, poisoned[-64:], ["unseen"]),
        validation=here(like.base, arithmetic.clean(first)[-192:-128], ["public"]),
        test=here(like.base, arithmetic.clean(first)[-128:], ["public"]),
    )


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
