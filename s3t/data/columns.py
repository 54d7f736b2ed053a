"""Checks the columns of a table, and collects every problem of a source by row number.

Row 1 is the first row of the source's split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from s3t.config import Config, SourceConfig
from s3t.data.conversations import Conversation, conversation_of, is_text
from s3t.data.files import numbered, one_line, resolve
from s3t.data.risk import risk_value, tier_of
from s3t.data.rows import Images, Pair, content_digest
from s3t.data.sources import Table, read_table
from s3t.errors import DataError, named
from s3t.types import Digest

__all__ = ["Columns", "read_columns"]

_TEXTS = tuple(f"data.columns.{name}" for name in ("text", "text_pair", "prompt", "completion"))
"""Keys of columns that are read as text, in the order in which two of them are joined."""

_EXACT = 2.0**53
"""Floats up to this are exact integers."""
_MANY = 20
"""In so many rows the labels of some are equal, or they are no classes."""
_LONG = 4096
"""Maximum number of characters of an id or subject, as in the service."""


@dataclass
class Columns:
    """The checked columns of a source. If ``problems`` is not empty, the rest may be partial.

    Attributes:
        where: the section of the config, such as ``data.private``.
        inputs: texts, pairs, conversations, or images that are decoded at each access.
        labels: label name of each row; None for causal-lm.
        classes: class names that the type of the label column declares.
        ids: id of each row; None if ids are derived from content.
        subjects: subject of each row, None for a row without one.
        risks: values of the risk column; empty if it is not read.
        origins: for each row the files that hold this row alone, such as an image; may be empty.
        problems: a sentence for each.
        complete: whether every label could be read.
    """

    where: str
    inputs: Sequence[Any] = ()
    labels: Sequence[str | None] | None = None
    classes: tuple[str, ...] = ()
    ids: Sequence[str | None] | None = None
    subjects: Sequence[str | None] = ()
    risks: Sequence[float | None] = ()
    origins: Sequence[tuple[str, ...]] = ()
    problems: list[str] = field(default_factory=list)
    complete: bool = False

    def digests(self) -> list[Digest]:
        """Content digest of each row; images are decoded one at a time.

        A row that cannot be read is left out, and a problem is noted.
        """
        found: list[Digest] = []
        bad: dict[str, list[int]] = {}
        labels = self.labels if self.labels is not None else [None] * len(self.inputs)
        # Where a column is missing one of the two is empty, and its problem is already noted.
        count = min(len(self.inputs), len(labels))
        for number, label in enumerate(labels[:count], 1):
            try:
                row = self.inputs[number - 1]
            except Exception as error:  # PIL raises errors of many kinds on damaged files
                bad.setdefault(one_line(error), []).append(number)
                continue
            if row is not None:
                found.append(content_digest(row, label))
        for reason, rows in bad.items():
            files = [self.origins[row - 1][0] for row in rows if any(self.origins[row - 1 : row])]
            shown = f" ({named(files)})" if files else ""
            self.problems.append(f"images in {_rows(rows)}{shown} cannot be read ({reason})")
        return found

    def check_labels(self, names: Sequence[str]) -> None:
        """Note a problem if a label is not among ``names``."""
        labels = [label for label in self.labels or () if label]
        unknown = sorted({*labels} - set(names))
        if unknown and len({*labels}) == len(labels) >= _MANY:
            self.problems.append(
                f"the label column has another value in each of {len(labels):,} rows, so these are "
                "no classes: name the column of the class with data.columns.label"
            )
        elif unknown:
            self.problems.append(
                f"labels {named(unknown)} are not among {named(names)}: labels come from "
                "data.labels or, without it, from the public data, never from private samples"
            )

    def tiers(self, thresholds: Sequence[float], contents: Sequence[Digest]) -> list[int]:
        """Risk tier of each row that has a value; empty if the risk column is not read.

        A problem is noted if rows that must lie in one slot have several tiers: rows of one
        subject, or exact copies without a subject.

        Args:
            thresholds: ascending.
            contents: content digests, from ``digests``.
        """
        found = []
        subjects: dict[str, set[int]] = {}
        copies: dict[Digest, list[tuple[int, int]]] = {}
        for row, value in enumerate(self.risks):
            if value is None:
                continue
            found.append(tier := tier_of(value, thresholds))
            subject = self.subjects[row]
            if subject is not None:
                subjects.setdefault(subject, set()).add(tier)
            elif len(contents) == len(self.risks):
                copies.setdefault(contents[row], []).append((row, tier))
        torn = sorted(subject for subject, several in subjects.items() if len(several) > 1)
        if torn:
            self.problems.append(
                "partition.risk puts rows of one person into several tiers (subjects "
                f"{named(torn)}): give a column that is the same for all rows of a person"
            )
        apart = sorted(
            row
            for rows in copies.values()
            if len({tier for _, tier in rows}) > 1
            for row, _ in rows
        )
        if apart:
            self.problems.append(
                f"partition.risk puts exact copies into several tiers ({self._which(apart)}): "
                "give copies the same value, or keep one of them"
            )
        return found

    def _which(self, rows: Sequence[int]) -> str:
        if self.ids is None:
            return _rows([row + 1 for row in rows])
        return f"ids {named([self.ids[row] or '' for row in rows])}"


def read_columns(config: Config, source: SourceConfig, where: str) -> Columns:
    """Read a source and check it; problems are noted, not raised.

    Whether labels are allowed is checked later (``Columns.check_labels``).
    """
    found = Columns(where)
    try:
        table = read_table(source, config.data.columns)
    except DataError as error:
        found.problems.extend(error.problems)
        return found
    if not table.size:
        files = f" ({named(resolve(source.files))})" if source.files else ""
        found.problems.append(f"has no rows{files}: give it data, or another split")
        return found
    wanted = _wanted(config, source, found, table.names)
    missing = [f"{name!r} ({key})" for key, name in wanted.items() if name not in table.names]
    if missing:
        found.problems.append(
            f"no column {', '.join(missing)}: the columns are {named(sorted(table.names))}"
        )
    risk = config.partition.risk
    present = {key: name for key, name in wanted.items() if name in table.names}
    _read(found, table, present, risk.as_of if risk else None)
    return found


def _wanted(
    config: Config, source: SourceConfig, found: Columns, names: Sequence[str]
) -> Mapping[str, str]:
    """Names of the columns to read, by the config key that gives each."""
    columns = config.data.columns
    wanted = config.input_columns
    if not config.generates:
        wanted["data.columns.label"] = columns.label
    extra, risk, private = {}, config.partition.risk, found.where == "data.private"
    if private:
        extra = {"data.columns.id": columns.id, "partition.subject": config.partition.subject}
    elif found.where == "data.public" and config.partition.subject in names:
        extra = {"partition.subject": config.partition.subject}  # rows are cut by person
    adapts = found.where in ("data.public", "data.public.adapt")
    if risk and (private or (risk.quantiles and adapts)):
        extra["partition.risk.column"] = risk.column
    set_ = {key: name for key, name in extra.items() if name}
    if source.format != "digits":
        return wanted | set_
    for key, name in set_.items():
        found.problems.append(f"{key} is {name!r}, but digits have no such column: leave it out")
    return wanted


def _read(found: Columns, table: Table, present: Mapping[str, str], as_of: date | None) -> None:
    values = {key: table.column(name) for key, name in present.items()}
    texts = {key: _texts(values[key], present[key], key, found) for key in _TEXTS if key in values}
    if len(texts) == 2:
        join = Pair if "data.columns.text_pair" in texts else Conversation.of
        pairs = zip(*texts.values(), strict=True)
        found.inputs = [join(one, two) if one and two else None for one, two in pairs]
    elif "data.columns.text" in texts:
        found.inputs = texts["data.columns.text"]
    if "data.columns.messages" in values:
        name = present["data.columns.messages"]
        found.inputs = _conversations(values["data.columns.messages"], name, found)
    if "data.columns.image" in values:
        images = values["data.columns.image"]
        found.inputs = Images(images)
        found.origins = table.origins or [(one,) if isinstance(one, str) else () for one in images]
    for key in ("data.columns.label", "data.columns.id", "partition.subject"):
        if key not in values:
            continue
        name = present[key]
        names = _names(values[key], name, found)
        if key != "data.columns.label":
            _nameable(values[key], names, name, found)
            _unguessed(values[key], name, table.guesses, found)
        blank = [number for number, value in enumerate(names, 1) if value is None]
        if key == "partition.subject":
            found.subjects = names
        elif key == "data.columns.id":
            found.ids = names
        else:
            found.labels, found.classes = names, table.classes.get(name, ())
            found.complete = not blank
        if blank and key != "partition.subject":
            found.problems.append(f"column {name!r} ({key}) is empty in {_rows(blank)}")
    if "partition.risk.column" in values:
        name = present["partition.risk.column"]
        found.risks = _risks(values["partition.risk.column"], name, as_of, found)
    if table.ids is not None:
        found.ids = table.ids
    found.subjects = found.subjects or [None] * table.size


def _texts(values: Sequence[Any], column: str, key: str, found: Columns) -> Sequence[str | None]:
    blank = [n for n, value in enumerate(values, 1) if value is None or not str(value).strip()]
    odd = [n for n, value in enumerate(values, 1) if value is not None and not is_text(value)]
    if blank:
        found.problems.append(f"column {column!r} ({key}) is empty in {_rows(blank)}")
    if odd:
        found.problems.append(f"column {column!r} is not valid text in {_rows(odd)}")
    return [value if is_text(value) and value.strip() else None for value in values]


def _conversations(
    values: Sequence[Any], column: str, found: Columns
) -> Sequence[Conversation | None]:
    """The conversation of each row; None where a problem is noted."""
    read: list[Conversation | None] = []
    bad: dict[str, list[int]] = {}
    for number, value in enumerate(values, 1):
        one = None
        if value is None or (isinstance(value, str) and not value.strip()):
            bad.setdefault("are empty", []).append(number)
        else:
            try:
                one = conversation_of(value)
            except ValueError as error:
                bad.setdefault(str(error), []).append(number)
        read.append(one)
    for reason, rows in bad.items():
        found.problems.append(
            f"column {column!r} (data.columns.messages): messages {reason} in {_rows(rows)}"
        )
    return read


def _names(values: Sequence[Any], column: str, found: Columns) -> list[str | None]:
    """Ids, subjects or labels as text; None for an empty cell.

    A float with an integer value becomes that integer, because pandas writes a column of integers
    with gaps as floats.
    """
    names: list[str | None] = []
    odd: list[int] = []
    for number, value in enumerate(values, 1):
        if isinstance(value, float):
            name = None if value != value else str(int(value) if value.is_integer() else value)
        else:
            name = None if value is None else str(value)
        if isinstance(value, (list, dict, bytes)) or (name is not None and not is_text(name)):
            odd.append(number)
        names.append(name if name is not None and name.strip() else None)
    if odd:
        found.problems.append(f"column {column!r} is not text or a number in {_rows(odd)}")
    return names


def _nameable(
    values: Sequence[Any], names: Sequence[str | None], column: str, found: Columns
) -> None:
    """Note ids and subjects that a deletion could not name, or that are not exact."""
    inexact = [
        number
        for number, value in enumerate(values, 1)
        if isinstance(value, bool)
        or (isinstance(value, float) and (abs(value) > _EXACT or value % 1 > 0))  # not NaN: a gap
    ]
    if inexact:
        found.problems.append(
            f"column {column!r} holds true, false, or a number that is not exact, in "
            f"{_rows(inexact)}: give ids and subjects as text or integers"
        )
    unsaid = [n for n, name in enumerate(names, 1) if name and ("\0" in name or len(name) > _LONG)]
    if unsaid:
        found.problems.append(
            f"column {column!r} holds NUL, or more than {_LONG:,} characters, in {_rows(unsaid)}: "
            "no request could name it"
        )


def _unguessed(values: Sequence[Any], column: str, guesses: str, found: Columns) -> None:
    """Note ids and subjects that the package datasets has read as numbers or dates."""
    made = [
        number
        for number, value in enumerate(values, 1)
        if (guesses == "json" and isinstance(value, date))
        or (guesses == "csv" and value is not None and not isinstance(value, str))
    ]
    if made:
        found.problems.append(
            f"column {column!r} is text that datasets reads as numbers or dates, in {_rows(made)}, "
            f"so 007 would be 7: name the files with format {guesses!r}, which reads what they say"
        )


def _risks(
    values: Sequence[Any], column: str, as_of: date | None, found: Columns
) -> list[float | None]:
    """The risk value of each row; None where a problem is noted."""
    risks: list[float | None] = []
    blank: list[int] = []
    odd: list[int] = []
    for number, value in enumerate(values, 1):
        risk = None
        if value is None or value != value or not str(value).strip():
            blank.append(number)
        else:
            try:
                risk = risk_value(value, as_of)
            except (ValueError, OverflowError):
                odd.append(number)
        risks.append(risk)
    where = f"column {column!r} (partition.risk.column) is"
    if blank:
        found.problems.append(f"{where} empty in {_rows(blank)}")
    if odd and as_of is None:
        found.problems.append(
            f"{where} not a finite number in {_rows(odd)}: for dates give partition.risk.as_of"
        )
    elif odd:
        found.problems.append(f"{where} not an ISO date in {_rows(odd)}: write it as YYYY-MM-DD")
    return risks


def _rows(numbers: Sequence[int]) -> str:
    return f"row{'s' if len(numbers) > 1 else ''} {numbered(numbers)}"
