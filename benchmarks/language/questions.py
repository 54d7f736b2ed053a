"""TOFU's questions: of invented authors with false answers beside the true, of the world's own.

    full ─► 20 questions an author ─┬─ forget10_perturbed, retain_perturbed: the true answer in
                                    │  other words, and five false ones
    holdout10 ─► authors of nobody's │
    real_authors, world_facts ─► four options, one of them true

Source: Maini et al. 2024, arXiv 2401.06121.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prepared_data import json_rows

__all__ = ["Choice", "Question", "authors", "choices", "holdout"]


@dataclass(frozen=True, slots=True)
class Question:
    """One row.

    Attributes:
        question, answer: as they stand.
        author: of the answer; empty in the holdout.
        reworded: the answer in other words; empty in the holdout.
        false: answers in those words that are not true.
    """

    question: str
    answer: str
    author: str = ""
    reworded: str = ""
    false: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with options, the first of which is true."""

    question: str
    options: tuple[str, ...]


def authors(folder: Path, each: int) -> Mapping[str, list[Question]]:
    """The first ``each`` questions of every author all of whose questions have false answers."""
    beside: dict[str, dict[str, Any]] = {}
    for name in ("forget10_perturbed", "retain_perturbed"):
        beside |= {row["question"]: row for row in json_rows(folder / f"{name}.jsonl.gz")}
    found: dict[str, list[Question]] = {}
    bare: set[str] = set()
    for row in json_rows(folder / "full.jsonl.gz"):
        author, more = f"author {row['author_id']}", beside.get(row["question"])
        if more is None:
            bare.add(author)
            continue
        one = Question(
            row["question"],
            row["answer"],
            author,
            more["paraphrased_answer"],
            tuple(more["perturbed_answer"]),
        )
        found.setdefault(author, []).append(one)
    return {author: rows[:each] for author, rows in found.items() if author not in bare}


def holdout(folder: Path) -> list[Question]:
    """Questions of authors of whom no model is told."""
    rows = json_rows(folder / "holdout10.jsonl.gz")
    return [Question(row["question"], row["answer"]) for row in rows]


def choices(folder: Path, name: str) -> list[Choice]:
    """``real_authors`` or ``world_facts``."""
    found = []
    for row in json_rows(folder / f"{name}.jsonl.gz"):
        options = [row[f"option{number}"] for number in range(1, 5)]
        others = [option for option in options if option != row["answer"]]
        found.append(Choice(row["question"], (row["answer"], *others)))
    return found
