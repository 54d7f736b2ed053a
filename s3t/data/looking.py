"""Finds out which column of a table holds what: text, label, id, person.

    Table ─► Look of each column ─► Guess of each role: the column, or the candidates, and why

A name counts first (``message`` is a text, ``customer`` a person), and the content has to fit it:
a label repeats, an id does not. Where no name tells, the content may, if one column alone fits.

Invariant: a guess names one column only if there is one candidate. Two candidates are returned as
such, for the caller to ask or to refuse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from s3t.data.conversations import conversation_of
from s3t.data.sources import Table

__all__ = ["Guess", "Look", "guess", "look_at"]

Kind = Literal["text", "word", "number", "image", "messages", "other"]

Role = Literal["text", "label", "subject", "id", "prompt", "completion", "messages", "image"]

NAMES: Mapping[Role, tuple[str, str]] = {
    "text": (
        "text message body content review comment sentence utterance",
        "document description note post tweet feedback complaint story abstract title",
    ),
    "label": (
        "label labels class category topic intent target sentiment",
        "tag type rating stars department status outcome genre",
    ),
    "subject": (
        "person subject customer user patient client member author speaker student employee",
        "email owner account sender writer username reviewer subscriber phone name",
    ),
    "id": ("id uuid guid", "key row row_id sample_id message_id ticket_id review_id"),
    "prompt": ("prompt instruction question", "input query"),
    "completion": ("completion response answer", "output reply"),
    "messages": ("messages", "conversation conversations chat dialog dialogue"),
    "image": ("image", "img picture photo"),
}
"""Names of columns that tell a role, in lower case: plain ones, and such as count without those."""

_ENDINGS = {
    "subject": re.compile(r"_(id|name|no|nr|number|key|email)$"),
    "label": re.compile(r"_(id|name)$"),
    "text": re.compile(r"_text$"),
}
"""What a name of a role may end in: ``customer_id`` is a customer."""

CLASSES = 100
"""A column with more values than this is no label by its content; by its name it may be."""

_WORDY = 3.0
"""Texts have more words than this on average."""


@dataclass(frozen=True)
class Look:
    """What a column holds.

    Attributes:
        name: of the column.
        kind: text: strings of several words; word: short strings; number; image: encoded bytes;
            messages: conversations of ``{role, content}``; other.
        rows: number of rows.
        filled: number of cells that are not empty.
        values: how often each value occurs, most often first; empty if it is none of text, word
            and number.
        words: mean number of words of a filled cell; 0 if it holds no strings.
    """

    name: str
    kind: Kind
    rows: int
    filled: int
    values: Mapping[str, int]
    words: float

    @property
    def unique(self) -> bool:
        """Whether each row has a value of its own."""
        return bool(self.rows) and len(self.values) == self.rows

    @property
    def repeats(self) -> bool:
        """Whether values come back: at most half as many as filled cells."""
        return 0 < 2 * len(self.values) <= self.filled


@dataclass(frozen=True)
class Guess:
    """The column of a role.

    Attributes:
        candidates: names of the columns that may have it; the first is offered as the default.
        why: the reason, as the rest of a sentence.
    """

    candidates: tuple[str, ...]
    why: str

    @property
    def column(self) -> str | None:
        """The column, if there is one candidate."""
        return self.candidates[0] if len(self.candidates) == 1 else None


def look_at(table: Table) -> dict[str, Look]:
    """What each column of a table holds, by name."""
    files = [one[0] for one in table.origins or () if one]
    looks = {}
    for name in table.names:
        column = table.column(name)
        if files and list(column) == files:  # the images of a folder
            looks[name] = Look(name, "image", table.size, table.size, {}, 0.0)
        else:
            looks[name] = _look(name, column)
    return looks


def guess(role: Role, looks: Iterable[Look]) -> Guess:
    """The column of a role among columns that no other role has.

    Returns:
        one candidate, several, or none.
    """
    fitting = [one for one in looks if _fits(role, one)]
    for rank in (0, 1):
        called = tuple(one.name for one in fitting if _rank(role, one.name) == rank)
        if called:
            return Guess(called, "by its name")
    if role == "text" and fitting:
        most = max(one.words for one in fitting)
        longest = [one for one in fitting if 2 * one.words >= most]
        return Guess(tuple(one.name for one in longest), "by its content: the longest texts")
    if role == "label":
        fitting = [
            one
            for one in fitting
            if one.kind == "word" and len(one.values) <= CLASSES and not _named_else(one.name)
        ]
        return Guess(tuple(one.name for one in fitting), "by its content: few values, often")
    if role in ("messages", "image"):
        return Guess(tuple(one.name for one in fitting), "by its content")
    return Guess((), "no column is named like one")


def _fits(role: Role, one: Look) -> bool:
    """Whether the content of a column can have the role."""
    match role:
        case "messages" | "image":
            return one.kind == role
        case "text" | "prompt" | "completion":
            return one.kind == "text" or (one.kind == "word" and _rank(role, one.name) is not None)
        case "label":
            return one.kind in ("word", "number", "text") and len(one.values) >= 2 and one.repeats
        case "id":
            return one.kind in ("word", "number", "text") and one.unique
        case "subject":
            return one.kind in ("word", "number", "text") and one.filled > 0


def _rank(role: Role, name: str) -> int | None:
    """0 or 1 if the name of a column tells the role, plainly or less so; ``Customer ID`` does."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    ending = _ENDINGS.get(role)
    bare = ending.sub("", plain) if ending else plain
    for rank, names in enumerate(NAMES[role]):
        if {plain, bare} & set(names.split()):
            return rank
    return None


def _named_else(name: str) -> bool:
    """Whether a name tells a role that is not a label."""
    return any(_rank(role, name) is not None for role in NAMES if role != "label")


def _look(name: str, column: Sequence[Any]) -> Look:
    cells = [value for value in column if not _empty(value)]
    kind, rows = _kind(cells), len(column)
    if kind not in ("text", "word", "number"):
        return Look(name, kind, rows, len(cells), {}, 0.0)
    values = dict(Counter(map(str, cells)).most_common())
    strings = kind != "number"
    words = sum(len(value.split()) * count for value, count in values.items()) if strings else 0
    return Look(name, kind, rows, len(cells), values, words / max(len(cells), 1))


def _empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _kind(cells: Sequence[Any]) -> Kind:
    first = cells[0] if cells else None
    if first is None:
        return "other"
    if isinstance(first, str) and not first.lstrip().startswith("["):
        if not all(isinstance(one, str) for one in cells):
            return "other"
        if all(map(_numeric, cells)):
            return "number"
        return "text" if sum(len(one.split()) for one in cells) > _WORDY * len(cells) else "word"
    if isinstance(first, int | float):
        return "number" if all(isinstance(one, int | float) for one in cells) else "other"
    if isinstance(first, bytes) or (isinstance(first, Mapping) and "bytes" in first):
        return "image"
    try:
        conversation_of(first)
    except ValueError:
        return "text" if all(isinstance(one, str) for one in cells) else "other"
    return "messages"


def _numeric(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
