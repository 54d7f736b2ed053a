"""The tasks: their data, plans, deletions and points.

A task is one of the shipped configs with overrides. ``prepare`` writes what a seed needs, and says
what is deleted and on which rows the run is judged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.forgetting.rows import Shape, evenly_dealt
from benchmarks.language.questions import Question, authors, holdout
from benchmarks.prepared_data import ROOT, prepare, shared_data, thinned, write_rows
from s3t.run import RunDir

__all__ = ["TASKS", "Prepared", "Task"]

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_VIT = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
_BERT = ("query", "key", "value", "dense")


@dataclass(frozen=True)
class Prepared:
    """One seed's data.

    Attributes:
        words: overrides of the config that name it.
        deleted: who asks to be deleted, in this order; None to draw from the run's samples.
        tests: files of test rows by name; none for the config's own.
    """

    words: tuple[str, ...] = ()
    deleted: tuple[str, ...] | None = None
    tests: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is trained, deleted and measured.

    Attributes:
        name: on the command line; the results are named so too.
        config: name of the shipped config.
        words: overrides that all sides share.
        all_maps: all linear maps of a layer.
        query_value: the two that the paper adapts.
        tree: sequences of the plan; ``cyclic`` those of the paper's.
        first_block: layers of block 1 of "wide": two more than by default.
        points: numbers of deletions at which is measured; ``few`` those of a quick look.
        metric: ``accuracy`` or ``perplexity``.
        needs: folders of the shared data.
        prepare: from the shared data, a folder, the seed and whether it is a quick look.
        by_subject: whether persons are deleted, the one with the most samples first.
        repairs: whether the run is repaired after the last deletion.
        finer: overrides for more and smaller slices, which last longer and cost more; or none.
    """

    name: str
    config: str
    words: tuple[str, ...]
    all_maps: tuple[str, ...]
    query_value: tuple[str, ...]
    tree: str
    cyclic: str
    first_block: int
    points: tuple[int, ...]
    few: tuple[int, ...]
    metric: str
    needs: tuple[str, ...] = ()
    prepare: Callable[[Path, Path, int, bool], Prepared] = lambda *_: Prepared()
    by_subject: bool = False
    repairs: bool = False
    finer: tuple[str, ...] = ()

    def missing(self) -> str:
        """Why the task cannot run here; empty if it can."""
        shared = shared_data()
        if all(shared is not None and (shared / name).is_dir() for name in self.needs):
            return ""
        return f"it needs {' and '.join(self.needs)} of ../shared/data (S3T_SHARED_DATA)"

    def prepared(self, folder: Path, seed: int, quick: bool) -> Prepared:
        """Write the data of a seed below ``folder``."""
        return self.prepare(shared_data() or ROOT, folder, seed, quick)

    def drawn(self, run: RunDir, seed: int, count: int) -> tuple[str, ...]:
        """Who asks to be deleted: random samples, or the persons with the most samples."""
        with run.ledger() as ledger:
            entries = list(ledger.samples())
        if not self.by_subject:
            names = sorted(entry.sample_id for entry in entries)
            return tuple(random.Random(f"{self.name} {seed}").sample(names, count))
        held = Counter(str(entry.subject) for entry in entries)
        return tuple(sorted(held, key=lambda name: (-held[name], name))[:count])


def _shakespeare(shared: Path, folder: Path, seed: int, quick: bool) -> Prepared:
    """Half of the speeches; a fifth for a quick look, or slices would be empty."""
    prepare(shared, folder)
    data, step = folder / "tinyshakespeare", 5 if quick else 2
    some = "+".join(f"train[{at}%:{at + 1}%]" for at in range(0, 100, step))
    return Prepared(
        (
            f"data.private.files={data / 'private.jsonl'}",
            f"data.private.split={some}",
            f"data.public.adapt.files={data / 'adapt.jsonl'}",
            f"data.public.validation.files={data / 'validation.jsonl'}",
            f"data.public.test.files={data / 'test.jsonl'}",
            f"model.base={shared / 'stories260k'}",
        )
    )


def _banking(shared: Path, folder: Path, seed: int, quick: bool) -> Prepared:
    """Every fifth private question, every second test question; less for a quick look."""
    prepare(shared, folder)
    data = folder / "banking77"
    private = thinned(shared / "banking77" / "train.csv.gz", 20 if quick else 5, data)
    test = thinned(data / "test.csv", 8 if quick else 2, data)
    validation = thinned(data / "validation.csv", 8 if quick else 1, data)
    return Prepared(
        (
            f"data.private.files={private}",
            f"data.public.adapt.files={data / 'adapt.csv'}",
            f"data.public.validation.files={validation}",
            f"data.public.test.files={test}",
            f"model.base={shared / 'minilm'}",
        )
    )


_TOFU = Shape(2, 4)
_PUBLIC = 60
"""Rows of TOFU's holdout that validate, and as many that test."""


def _tofu(shared: Path, folder: Path, seed: int, quick: bool) -> Prepared:
    """24 authors of 8 questions, three in each slice; 8 authors of 4 for a quick look.

    The first ten are deleted (of a quick look four); the run is judged on the questions of those
    that stay, and on authors of whom no model is told.
    """
    shape = replace(_TOFU, salt=f"tofu-{seed}")
    told = authors(shared / "tofu", 4 if quick else 8)
    names = sorted(told)
    random.Random(seed).shuffle(names)
    chosen = evenly_dealt(names, 1 if quick else 3, shape)
    deleted = chosen[: 4 if quick else 10]
    held = holdout(shared / "tofu")[: 2 * _PUBLIC]
    retained = [row for name in chosen if name not in deleted for row in told[name]]
    data = folder / "tofu" / f"{'quick-' if quick else ''}{seed}"
    files = {
        "private": [row for name in chosen for row in told[name]],
        "retain": retained,
        "validation": held[:_PUBLIC],
        "holdout": held[_PUBLIC:],
    }
    for name, rows in files.items():
        write_rows(data / f"{name}.jsonl", _written(rows))
    return Prepared(
        (
            f"data.private.files={data / 'private.jsonl'}",
            f"data.public.validation.files={data / 'validation.jsonl'}",
            f"data.public.test.files={data / 'retain.jsonl'}",
            f"model.base={shared / 'stories260k'}",
        ),
        tuple(deleted),
        {name: data / f"{name}.jsonl" for name in ("retain", "holdout")},
    )


def _written(rows: Sequence[Question]) -> list[dict[str, str]]:
    return [
        {
            "id": f"{row.author} {at}",
            "author": row.author,
            "question": row.question,
            "answer": row.answer,
        }
        for at, row in enumerate(rows)
    ]


_DIGITS = Task(
    name="digits",
    config="digits",
    words=(
        "model.adapt.rotations=true",
        "stage.head=fresh",
        # validation apart from the rows that the base is adapted on
        "data.public.adapt.split=public[200:]",
        "data.public.validation.split=public[:200]",
    ),
    all_maps=_VIT,
    query_value=("q_proj", "v_proj"),
    tree="{strategy: tree, budget: 4}",
    cyclic="{strategy: cyclic, budget: 4}",
    first_block=3,
    points=(1, 2, 4, 8, 16, 24),
    few=(4, 12, 24),
    metric="accuracy",
    finer=("partition.slices=8", "sequences={strategy: tree, budget: 8}"),
)
_BANKING = Task(
    name="banking77",
    config="banking77",
    words=("stage.head=fresh",),
    all_maps=_BERT,
    query_value=("query", "value"),
    tree="{strategy: explicit, explicit: [[0, 1, 2], [1, 2], [2, 0]]}",
    cyclic="{strategy: cyclic, budget: 3}",
    first_block=4,
    points=(1, 2, 4, 8, 16, 24),
    few=(4, 24),
    metric="accuracy",
    needs=("banking77", "minilm"),
    prepare=_banking,
)
_SHAKESPEARE = Task(
    name="shakespeare",
    config="tinyshakespeare",
    words=("stage.group_by_length=true", "model.adapt=null"),
    all_maps=_LLAMA,
    query_value=("q_proj", "v_proj"),
    tree="{strategy: tree, budget: 5}",
    cyclic="{strategy: cyclic, budget: 5}",
    first_block=3,
    points=(1, 2, 4, 6, 8, 10),
    few=(4, 10),
    metric="perplexity",
    needs=("stories260k", "tinyshakespeare"),
    prepare=_shakespeare,
    by_subject=True,
)
_TOFU_TASK = Task(
    name="tofu",
    config="tofu",
    words=(
        f"partition.shards={_TOFU.shards}",
        f"partition.slices={_TOFU.slices}",
        "stage.epochs=10",
        "stage.gradient_accumulation=1",
    ),
    all_maps=_LLAMA,
    query_value=("q_proj", "v_proj"),
    tree="{strategy: tree, budget: 4}",
    cyclic="{strategy: cyclic, budget: 4}",
    first_block=4,
    points=(1, 2, 4, 6, 8, 10),
    few=(2, 4),
    metric="perplexity",
    needs=("stories260k", "tofu"),
    prepare=_tofu,
    by_subject=True,
    repairs=True,
)
TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        _DIGITS,
        _SHAKESPEARE,
        replace(
            _SHAKESPEARE,
            name="shakespeare-public-start",
            words=("stage.group_by_length=true",),
        ),
        _TOFU_TASK,
        _BANKING,
        replace(_BANKING, name="banking77-public-head", words=("stage.head=public",)),
    )
}
"""By name. Digits need no data; the others are skipped where theirs is missing."""
