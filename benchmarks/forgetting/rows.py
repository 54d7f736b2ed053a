"""Rows of persons as tokens, and what a method is compared on.

Invariant: the tokens are those that ``s3t train`` would make of the same texts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer

from s3t.data.partition import slot_of
from s3t.model.inputs.encoders import TextEncoder
from s3t.types import Digest, Sample, SampleId, Subject

__all__ = [
    "Recipe",
    "Rows",
    "Shape",
    "Task",
    "encoded",
    "evenly_dealt",
    "joined",
    "place_of",
    "write_jsonl",
]

Text = tuple[str, str]
"""A person, and what one of their rows says."""


@dataclass(frozen=True, eq=False)
class Rows:
    """n texts.

    Attributes:
        texts, persons: as they stand in the data.
        tokens: [n, T] int64, padded on the right.
        real: [n, T] bool, False where it is padding.
    """

    texts: tuple[str, ...]
    persons: tuple[str, ...]
    tokens: Tensor
    real: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, index: Tensor) -> Rows:
        """The rows at ``index``, padding that none of them needs cut off."""
        chosen = [int(row) for row in index]
        real = self.real[index]
        longest = int(real.sum(dim=1).max())
        return Rows(
            tuple(self.texts[row] for row in chosen),
            tuple(self.persons[row] for row in chosen),
            self.tokens[index][:, :longest],
            real[:, :longest],
        )

    def of(self, persons: Collection[str], but: bool = False) -> Rows:
        """The rows of some persons; with ``but`` those of all others."""
        chosen = [row for row, person in enumerate(self.persons) if (person in persons) != but]
        index = torch.tensor(chosen)
        return Rows(
            tuple(self.texts[row] for row in chosen),
            tuple(self.persons[row] for row in chosen),
            self.tokens[index],
            self.real[index],
        )

    def as_lists(self, least: int) -> list[list[int]]:
        """Token ids of the rows that have at least so many."""
        found = [row[mask].tolist() for row, mask in zip(self.tokens, self.real, strict=True)]
        return [tokens for tokens in found if len(tokens) >= least]


@dataclass(frozen=True)
class Recipe:
    """How an adapter is fine-tuned: AdamW on LoRA of all linear maps, cosine to 0.

    Attributes:
        rank: of LoRA; alpha is twice that.
        targets: last parts of the names of the linear maps.
        epochs, batch, rate: of one fine-tune of all rows.
        stage_epochs, stage_batch, stage_rate: of one stage of S3T, which trains on few rows.
    """

    rank: int
    targets: tuple[str, ...]
    epochs: int
    batch: int
    rate: float
    stage_epochs: int
    stage_batch: int
    stage_rate: float


@dataclass(frozen=True)
class Shape:
    """How SISA and S3T cut the data: shards, slices, and the salt that deals persons to them."""

    shards: int
    slices: int
    salt: str = "forgetting"


@dataclass(frozen=True, eq=False)
class Task:
    """What the methods are compared on.

    Attributes:
        name: of the task.
        what: what is trained on what, in a sentence.
        base: folder of the base, in transformers' format, with its tokenizer.
        length: tokens of the longest row.
        private: rows to train on.
        deleted: persons who ask to be forgotten, all in one request, in this order.
        others: rows like those of the deleted that no model has seen: the attacks' other side.
        unseen: more such rows, for the choice of settings.
        validation: public rows of the task, for the choice of settings and among prefixes.
        test: public rows of the task, for the accuracy told.
        prompt, answer: tokens given, and tokens that must follow, to count as memorised.
        by_person: whether rows of a person are alike, so that the attacks count persons.
        recipe, shape: how all of it is trained.
    """

    name: str
    what: str
    base: Path
    length: int
    private: Rows
    deleted: tuple[str, ...]
    others: Rows
    unseen: Rows
    validation: Rows
    test: Rows
    prompt: int
    answer: int
    by_person: bool
    recipe: Recipe
    shape: Shape

    @property
    def forget(self) -> Rows:
        """All rows of the deleted persons."""
        return self.private.of(self.deleted)

    @property
    def rest(self) -> Rows:
        """The rows of all others."""
        return self.private.of(self.deleted, but=True)


def encoded(base: Path, length: int, rows: Iterable[Text]) -> Rows:
    """Texts as the tokens of a base, cut to ``length``."""
    persons, texts = zip(*rows, strict=True)
    found = TextEncoder(AutoTokenizer.from_pretrained(base), length).encode(texts)
    assert found.mask is not None
    return Rows(texts, persons, found.values, found.mask.bool())


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of one width, one part after another."""
    return Rows(
        tuple(text for part in parts for text in part.texts),
        tuple(person for part in parts for person in part.persons),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.real for part in parts]),
    )


def evenly_dealt(names: Iterable[str], each: int, shape: Shape) -> list[str]:
    """The first names of whom ``each`` lie in every slice of every shard.

    A hash deals few persons unevenly, and might leave slices empty.
    """
    held: Counter[tuple[int, int]] = Counter()
    chosen: list[str] = []
    for name in names:
        found = place_of(name, shape)
        if held[found] < each:
            held[found] += 1
            chosen.append(name)
        if len(chosen) == each * shape.shards * shape.slices:
            return chosen
    raise ValueError(f"too few names to put {each} into each slice of {shape}")


def place_of(person: str, shape: Shape) -> tuple[int, int]:
    """Shard and slice of a person's rows, as S3T deals them."""
    sample = Sample(SampleId(person), Subject(person), Digest(""))
    return slot_of(sample, shape.shards, shape.slices, shape.salt)


def write_jsonl(path: Path, rows: Rows) -> None:
    """The rows as a user's file: id, person, text. An id does not hang on other persons' rows."""
    lines, seen = [], Counter[str]()
    for person, text in zip(rows.persons, rows.texts, strict=True):
        lines.append(json.dumps({"id": f"{person}-{seen[person]}", "person": person, "text": text}))
        seen[person] += 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
