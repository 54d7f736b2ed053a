"""The models and data that the training benchmarks share: 4 shards, 4 slices, rank 8, fp32.

    vit          made ViT, hidden 96, 8 layers, 17 tokens, on digits
    bert         made BERT, hidden 256, 8 layers, 64 tokens, on sentences made here
    stories260k  a real Llama, 5 layers, on tinyshakespeare    ┐ from ../shared/data,
    minilm       a real BERT, hidden 384, on banking77         ┘ skipped where it is not
    demo         configs/digits.yaml as it is: ViT, hidden 64, 4 layers

The plan is the paper's cyclic one with B = 4 (64 nodes); the adapters are on query and value, but
for the demo's, which are on all linear maps. There is no dropout.

Texts belong to made-up persons who are chosen such that every slice holds as many rows: a hash
deals few rows unevenly, and the last batch of an epoch would be filled up with padding more often
than it is in data of a real size. The digits lie where their content puts them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import OUTPUT
from benchmarks.prepared_data import ROOT, shared_data
from s3t.config import Config, load_config
from s3t.data.partition import slot_of
from s3t.types import Digest, Sample, SampleId, Subject

__all__ = ["NAMES", "Unavailable", "each_task", "options", "task_config"]

SHARDS = SLICES = 4
SALT = "engine"
SUBJECTS = 4
ADAPT = 256
"""Public rows on which a made base is trained; others leave them."""

WORDS = 24
"""Of each subject that the made sentences speak of, and of none of them."""

INTENTS = (
    "card_arrival",
    "exchange_rate",
    "lost_or_stolen_card",
    "pin_blocked",
    "request_refund",
    "top_up_failed",
    "transfer_timing",
    "verify_my_identity",
)


class Unavailable(Exception):
    """A task's model or data are not on this machine; the message says which."""


def task_config(name: str, folder: Path, quick: bool = False) -> Config:
    """The config of a task, its data written below ``folder`` where they are made.

    Args:
        name: one of ``NAMES``.
        folder: the run goes to ``folder/run``, data to ``folder/data``.
        quick: fewer rows, fewer epochs.

    Raises:
        Unavailable: its model or data are not here.
    """
    return _TASKS[name](folder, quick)


def each_task(
    names: Sequence[str], quick: bool, measure: Callable[[str, Config, Path], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Measure some tasks, each in a folder that is removed afterwards.

    Returns:
        by name what ``measure`` gives; ``{"skipped": why}`` where a task is not available.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"s3t-{name}-") as folder:
            try:
                config = task_config(name, Path(folder), quick)
            except Unavailable as missing:
                found[name] = {"skipped": str(missing)}
                print(f"{name}: skipped, it {missing}", flush=True)
                continue
            found[name] = measure(name, config, Path(folder))
    return found


def options(description: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """The options of a benchmark over tasks, by default those named."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=names)
    parser.add_argument("--repeats", type=int, help="default 3, with --quick 1")
    return parser


def _vit(folder: Path, quick: bool) -> Config:
    return _digits(
        folder,
        "model.make={hidden: 96, layers: 8, heads: 4, patch: 2, channels: 1, init_scale: 5}",
        f"model.adapt={{steps: {30 if quick else 150}, learning_rate: 1e-3, rotations: true}}",
        "data.public.validation.split=public[:32]",
        "lora.targets=auto",
        f"stage.epochs={1 if quick else 5}",
    )


def _demo(folder: Path, quick: bool) -> Config:
    return _digits(folder, f"stage.epochs={2 if quick else 10}")


def _digits(folder: Path, *overrides: str) -> Config:
    path = ROOT / "configs" / "digits.yaml"
    return load_config(path, [*overrides, f"output={folder / 'run'}"])


def _bert(folder: Path, quick: bool) -> Config:
    drawn = random.Random(0)
    rows = (_sentence(drawn) for _ in range(100_000))
    files = _write(folder / "data", rows, per_slice=8 if quick else 16, public=32)
    make = {"hidden": 256, "layers": 8, "heads": 4, "init_scale": 2}
    # a base that knows something: on one of random weights so few steps teach nothing
    adapt = {"steps": 40 if quick else 80, "batch_size": 16, "learning_rate": 5e-4}
    model = {"base": "make:bert", "make": make, "adapt": adapt}
    return _text(folder, files, "text-classification", model, length=64, epochs=1 if quick else 5)


def _minilm(folder: Path, quick: bool) -> Config:
    shared = _shared("minilm", "banking77")
    with gzip.open(shared / "banking77" / "train.csv.gz", "rt", encoding="utf-8") as stream:
        found = [(row["text"], row["category"]) for row in csv.DictReader(stream)]
    rows = [row for row in found if row[1] in INTENTS]
    random.Random(0).shuffle(rows)
    files = _write(folder / "data", iter(rows), per_slice=8 if quick else 16, public=32)
    model = {"base": str(shared / "minilm"), "pooling": "mean"}
    return _text(folder, files, "text-classification", model, length=32, epochs=1 if quick else 2)


def _stories(folder: Path, quick: bool) -> Config:
    shared = _shared("stories260k", "tinyshakespeare")
    source = shared / "tinyshakespeare" / "input.txt.gz"
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        speeches = [block.partition(":\n")[2].strip() for block in stream.read().split("\n\n")]
    rows = [(text, "") for text in sorted({text for text in speeches if len(text) > 100})]
    random.Random(0).shuffle(rows)
    files = _write(folder / "data", iter(rows), per_slice=16 if quick else 48, public=32)
    model = {"base": str(shared / "stories260k")}
    return _text(folder, files, "causal-lm", model, length=64, epochs=1 if quick else 2)


def _text(
    folder: Path,
    files: Mapping[str, Path],
    task: str,
    model: Mapping[str, Any],
    *,
    length: int,
    epochs: int,
) -> Config:
    source = {name: {"format": "json", "files": str(path)} for name, path in files.items()}
    public = {"validation": source["public"], "test": source["public"], "adapt": source["adapt"]}
    return Config.model_validate(
        {
            "task": task,
            "output": str(folder / "run"),
            "data": {"private": source["private"], "public": public, "max_length": length},
            "model": model,
            "partition": {
                "shards": SHARDS,
                "slices": SLICES,
                "salt": SALT,
                "subject": "person",
            },
            "sequences": {"strategy": "cyclic", "budget": 4},
            "lora": {"rank": 8, "alpha": 16},
            "stage": {
                "epochs": epochs,
                "batch_size": 8,
                "learning_rate": 3e-3,
                "schedule": "cosine",
            },
        }
    )


def _shared(*names: str) -> Path:
    folder = shared_data()
    missing = [name for name in names if folder is None or not (folder / name).is_dir()]
    if folder is None or missing:
        raise Unavailable(f"needs {' and '.join(missing)} of ../shared/data (S3T_SHARED_DATA)")
    return folder


def _sentence(drawn: random.Random) -> tuple[str, str]:
    """Some 60 letters, a third of the words about one of ``SUBJECTS`` subjects; and which one."""
    subject = drawn.randrange(SUBJECTS)
    words: list[str] = []
    while sum(len(word) + 1 for word in words) < 58:
        about = subject + 1 if drawn.random() < 1 / 3 else 0
        words.append(_VOCABULARY[about][drawn.randrange(WORDS)])
    return " ".join(words), f"subject {subject}"


def _vocabulary() -> list[list[str]]:
    """Words of no subject, then of each, whose consonants are its own; drawn once and for all."""
    drawn = random.Random("vocabulary")
    sounds = ["bdfgklmnprst", *("bdf", "gkl", "mnp", "rst")]
    syllables = [[consonant + vowel for consonant in of for vowel in "aeiou"] for of in sounds]
    return [
        ["".join(drawn.choices(of, k=drawn.randint(2, 4))) for _ in range(WORDS)]
        for of in syllables
    ]


_VOCABULARY = _vocabulary()


def _write(
    folder: Path, rows: Iterator[tuple[str, str]], per_slice: int, public: int
) -> dict[str, Path]:
    """Write private rows, ``per_slice`` in each slice, and public ones, as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "adapt": [{"person": f"adapt {number}"} for number in range(ADAPT)],
        "private": [{"person": person} for person in _persons(per_slice)],
        "public": [{"person": f"public {number}"} for number in range(public)],
    }
    for part in ("public", "private", "adapt"):
        lines = []
        for row in parts[part]:
            text, label = next(rows)
            lines.append({**row, "text": text, **({"label": label} if label else {})})
        (folder / f"{part}.jsonl").write_text(_json_lines(lines), encoding="utf-8")
    return {part: folder / f"{part}.jsonl" for part in parts}


def _persons(per_slice: int) -> list[str]:
    """Names whose hashes put as many of them into every slice."""
    names: list[str] = []
    held: Counter[tuple[int, int]] = Counter()
    number = 0
    while len(names) < per_slice * SHARDS * SLICES:
        name = f"person {number}"
        found = slot_of(Sample(SampleId(name), Subject(name), Digest("")), SHARDS, SLICES, SALT)
        if held[found] < per_slice:
            held[found] += 1
            names.append(name)
        number += 1
    return names


def _json_lines(rows: Sequence[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_TASKS: Mapping[str, Callable[[Path, bool], Config]] = {
    "vit": _vit,
    "bert": _bert,
    "stories260k": _stories,
    "minilm": _minilm,
    "demo": _demo,
}
NAMES = tuple(_TASKS)
