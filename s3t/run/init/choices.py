"""Chooses the task, and the column of each role: as given, as asked, or as guessed.

Invariant: a choice has a reason that is told, and a guess is taken only if there is one candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from s3t.data.looking import Guess, Look, Role, guess
from s3t.errors import InputError, named

__all__ = ["NONE", "TASKS", "Ask", "Choices", "Given", "choose"]

NONE = "none"
"""What is said for a column that is not there: ``--subject none``."""

Task = Literal["text-classification", "image-classification", "causal-lm"]

TASKS: tuple[Task, ...] = ("text-classification", "image-classification", "causal-lm")

Ask = Callable[[str, str, Sequence[str], str | None], str]
"""Asks a person: what is wanted, the flag that answers it, the possible answers, the default."""


@dataclass(frozen=True)
class Given:
    """What the caller says by flags; None for what is to be found out.

    Attributes:
        task: one of ``TASKS``.
        columns: name of the column of a role, or ``NONE``.
    """

    task: str | None = None
    columns: Mapping[Role, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choices:
    """The task and its columns.

    Attributes:
        task: one of ``TASKS``.
        columns: name of the column of each role that has one.
        reasons: one line for each choice, and for each role that has no column.
    """

    task: Task
    columns: Mapping[Role, str]
    reasons: tuple[str, ...]


def choose(looks: Mapping[str, Look], given: Given, ask: Ask | None) -> Choices:
    """Choose the task and the columns.

    Args:
        looks: what each column holds, by name.
        given: what the caller says.
        ask: asks for what is not given; None takes guesses where they are clear.

    Raises:
        InputError: names everything that is not clear, with the flags that say it.
    """
    chooser = _Chooser(looks, given, ask)
    task = chooser.task()
    if task is not None:
        for role, needed in _roles(task, chooser).items():
            chooser.role(role, needed)
    if chooser.problems or task is None:
        raise InputError("\n  - ".join(["not clear from the data:", *chooser.problems]))
    return Choices(task, chooser.columns, tuple(chooser.reasons))


_WHAT: Mapping[Role, str] = {
    "text": "text",
    "label": "label",
    "subject": "person (all rows of one are forgotten together)",
    "id": "id of a row",
    "prompt": "prompt",
    "completion": "completion",
    "messages": "messages",
    "image": "image",
}


class _Chooser:
    """Chooses one role after another; a column has one role."""

    def __init__(self, looks: Mapping[str, Look], given: Given, ask: Ask | None) -> None:
        self.looks, self.given, self.ask = looks, given, ask
        self.columns: dict[Role, str] = {}
        self.reasons: list[str] = []
        self.problems: list[str] = []
        missing = {flag: one for flag, one in given.columns.items() if one not in looks}
        for role, name in missing.items():
            if name != NONE:
                self.problems.append(
                    f"--{role} {name!r} is no column: the columns are {named(list(looks))}"
                )

    def task(self) -> Task | None:
        """The task; None after noting why it is not clear."""
        given = self.given.task
        if given is not None:
            return self._told(given, "--task")
        possible, why = self._possible()
        if self.ask is not None and len(possible) != 1:
            answer = self.ask("task", "--task", TASKS, possible[0] if possible else None)
            return self._told(answer, "your answer")
        if len(possible) == 1:
            return self._told(possible[0], why)
        self.problems.append(f"task: {why}")
        return None

    def _told(self, task: str, why: str) -> Task | None:
        for one in TASKS:
            if one == task:
                self.reasons.append(f"task {one}: {why}")
                return one
        self.problems.append(f"--task {task!r} is none of {named(TASKS)}")
        return None

    def _possible(self) -> tuple[list[Task], str]:
        """Tasks that the flags and columns fit, and why."""
        said = {role for role, name in self.given.columns.items() if name != NONE}
        if said & {"prompt", "completion", "messages"}:
            return ["causal-lm"], "it is what the columns given are for"
        if self.guess("image").candidates:
            return ["image-classification"], "the data holds images"
        if "label" in said:
            return ["text-classification"], "a label is given"
        talks = bool(self.guess("messages").candidates)
        pairs = all(self.guess(role).candidates for role in ("prompt", "completion"))
        labels = self.guess("label").candidates
        if (talks or pairs) and not labels:
            return ["causal-lm"], "rows are " + ("conversations" if talks else "prompt and answer")
        if labels and not (talks or pairs):
            return ["text-classification"], "rows have a text and a label"
        if labels:
            both: list[Task] = ["causal-lm", "text-classification"]
            return both, (
                f"rows have answers to learn and labels ({named(labels)}): give --label, or "
                "--task causal-lm"
            )
        return [], (
            "no column looks like a label (few values that come back): name it with --label, or "
            "say --task causal-lm to learn the texts themselves"
        )

    def guess(self, role: Role) -> Guess:
        """The guess for a role among the columns that are free."""
        taken = {*self.columns.values(), *self.given.columns.values()}
        return guess(role, [one for one in self.looks.values() if one.name not in taken])

    def role(self, role: Role, needed: bool) -> None:
        """Choose the column of a role, or none, or note that it is not clear."""
        given = self.given.columns.get(role)
        if given is not None:
            self._take(role, None if given == NONE else given, f"--{role}")
            if given == NONE and needed:
                self.problems.append(f"--{role} {NONE}: the task needs it")
            return
        found = self.guess(role)
        if self.ask is not None:
            self._asked(role, needed, found)
        elif found.column is not None:
            self._take(role, found.column, found.why)
        elif found.candidates:
            spare = "" if needed else f" (or {NONE})"
            self.problems.append(
                f"{_WHAT[role]}: columns {named(found.candidates)} may be it; say which with "
                f"--{role}{spare}"
            )
        elif needed:
            self.problems.append(
                f"{_WHAT[role]}: no column of {named(list(self.looks))} looks like it; name it "
                f"with --{role}"
            )
        else:
            self._take(role, None, found.why)

    def _asked(self, role: Role, needed: bool, found: Guess) -> None:
        assert self.ask is not None
        free = [name for name in self.looks if name not in self.columns.values()]
        options = free if needed else [*free, NONE]
        default = found.candidates[0] if found.candidates else None if needed else NONE
        answer = self.ask(_WHAT[role], f"--{role}", options, default)
        guessed = answer in found.candidates
        self._take(role, None if answer == NONE else answer, found.why if guessed else "as said")

    def _take(self, role: Role, name: str | None, why: str) -> None:
        if name is None:
            self.reasons.append(f"{role}: none, {why}{_WITHOUT.get(role, '')}")
            return
        if name in self.columns.values():
            self.problems.append(f"--{role} {name!r} has another role already: name one column")
        if name not in self.looks:
            return  # noted already
        self.columns[role] = name
        self.reasons.append(f"{role} {name!r}: {why}{_facts(role, self.looks[name])}")


_WITHOUT: Mapping[Role, str] = {
    "subject": ": deletions name ids of rows, not persons",
    "id": ": the id of a row is a digest of its content",
}


def _roles(task: Task, chooser: _Chooser) -> Mapping[Role, bool]:
    """The roles of a task in the order in which they are chosen, and whether each is needed."""
    more: dict[Role, bool] = {"id": False, "subject": False}
    if task == "text-classification":
        return {"label": True, "text": True, **more}
    if task == "image-classification":
        return {"image": True, "label": True, **more}
    given = chooser.given.columns
    if "messages" in given or chooser.guess("messages").candidates:
        return {"messages": True, **more}
    pair: tuple[Role, Role] = ("prompt", "completion")
    if any(one in given for one in pair):
        return {"prompt": True, "completion": True, **more}
    if "text" not in given and all(chooser.guess(one).candidates for one in pair):
        return {"prompt": True, "completion": True, **more}
    return {"text": True, **more}


def _facts(role: Role, one: Look) -> str:
    """What a column holds, where that says whether the choice is right."""
    values = len(one.values)
    if role == "label":
        often = [f"{value} {count:,}" for value, count in list(one.values.items())[:4]]
        return f", {values} classes ({', '.join(often)}{', …' if values > 4 else ''})"
    if role == "subject":
        bare = one.rows - one.filled
        return f", {values:,} persons in {one.rows:,} rows" + (
            f", {bare:,} without one" if bare else ""
        )
    if role in ("text", "prompt", "completion"):
        return f", {one.words:.0f} words on average"
    return ""
