"""Reads private samples, with ids and digests, and public rows.

Invariant E5: label names come from the config or from public data. A private row with another label
is a problem, not a new class. A row of the private data that is cut aside as public (``cut.py``) is
never a sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from s3t.config import Config, DataConfig, PublicPart, SourceConfig
from s3t.data.columns import Columns, read_columns
from s3t.data.conversations import Conversation
from s3t.data.cut import REST, CutAside, cut, shares_of
from s3t.data.risk import quantile_thresholds
from s3t.data.rows import LabelledRows, pick
from s3t.errors import DataError, named
from s3t.types import Digest, Sample, SampleId, Subject, digest

__all__ = [
    "Data",
    "PrivateData",
    "cut_names",
    "label_names",
    "load_all",
    "load_private",
    "load_public",
    "private_origins",
]

PUBLIC: tuple[PublicPart, ...] = ("adapt", "validation", "test")

_Name = Literal["private"] | PublicPart
_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class PrivateData:
    """The deletable samples.

    Attributes:
        samples: sorted by id.
        rows: ``rows.inputs[i]`` and ``rows.labels[i]`` belong to ``samples[i]``.
        folded: number of rows that became one sample with another: exact copies of one subject, or
            of none, have the same derived id.
    """

    samples: tuple[Sample, ...]
    rows: LabelledRows
    folded: int

    @cached_property
    def index(self) -> dict[SampleId, int]:
        """Number of each sample in ``samples``, by id."""
        return {sample.id: number for number, sample in enumerate(self.samples)}

    def without(self, gone: Container[str]) -> PrivateData:
        """The data without the samples whose ids are in ``gone``."""
        kept = [at for at, sample in enumerate(self.samples) if sample.id not in gone]
        if len(kept) == len(self.samples):
            return self
        samples = tuple(self.samples[at] for at in kept)
        return PrivateData(samples, self.rows.at(kept), self.folded)


@dataclass(frozen=True, eq=False)
class Data:
    """All of a run's data.

    Attributes:
        labels: label names in order; empty for causal-lm.
        private: the deletable samples.
        adapt: public rows for adapting the base, if configured.
        validation: public rows for choosing among prefixes.
        test: public rows for the final numbers.
        overlap: number of private samples whose exact content is public too; deleting one does not
            remove its content from the run.
        thresholds: thresholds between the risk tiers; empty without ``partition.risk``.
        cut: how much of the private data is public, if ``data.cut_from`` is ``private``.
    """

    labels: tuple[str, ...]
    private: PrivateData
    adapt: LabelledRows | None
    validation: LabelledRows
    test: LabelledRows
    overlap: int
    thresholds: tuple[float, ...]
    cut: CutAside | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a source, by their numbers from 0, and the content digests of all its rows."""

    found: Columns
    rows: Sequence[int]
    contents: Sequence[Digest]

    def values(self, column: Sequence[_Value]) -> list[_Value]:
        """What a column has in these rows; nothing if it is not read."""
        return [column[row] for row in self.rows] if column else []

    def labelled(self, labels: Sequence[str]) -> LabelledRows:
        """The rows, with the numbers of their labels."""
        return _rows(self.found, self.rows, labels)


def label_names(config: Config) -> tuple[str, ...]:
    """Label names in order: ``data.labels``, or those of the public data; empty for causal-lm.

    Class names that a public source declares come first, in its order; other labels of public rows
    follow, sorted.

    Raises:
        DataError: problems of the public data, if the names come from it.
    """
    if config.generates:
        return ()
    if config.data.labels is not None:
        return config.data.labels
    public = _read(config, PUBLIC, contents=False)
    _report(public.values())
    return _public_labels(public.values())


def load_private(config: Config, labels: Sequence[str]) -> PrivateData:
    """Read the private samples.

    Args:
        config: the run's config.
        labels: label names, from ``label_names``.

    Raises:
        DataError: lists every problem of the source.
    """
    risk = config.partition.risk
    names: tuple[_Name, ...] = ("private", "adapt") if risk and risk.quantiles else ("private",)
    parts = _read(config, names)
    private = parts.pop("private")
    _check_labels([private], labels)
    tiers = private.found.tiers(_thresholds(config, parts), private.contents)
    _check_ids(private.found)
    _report([private, *parts.values()])
    return _private(private, labels, tiers)


def private_origins(config: Config) -> list[tuple[SampleId, tuple[str, ...]]]:
    """For each private row, copies too: the sample's id, and the files that hold this row alone.

    Raises:
        DataError: lists every problem of the source.
    """
    found = read_columns(config, config.data.private, "data.private")
    contents = found.digests() if found.ids is None else [Digest("")] * len(found.ids)
    _report_columns([found])
    origins = found.origins or [()] * len(contents)
    return [
        (_id_of(found, row, content), origin)
        for row, (content, origin) in enumerate(zip(contents, origins, strict=True))
    ]


def cut_names(config: Config) -> tuple[set[SampleId], set[Subject]]:
    """Ids and subjects of the rows of the private data that are cut aside as public.

    Raises:
        DataError: lists every problem of the source.
    """
    if config.data.cut_from != "private":
        return set(), set()
    (private,) = _read(config, ("private",)).values()
    _report([private])
    found, rest = private.found, {*private.rows}
    aside = [row for row in range(len(found.inputs)) if row not in rest]
    subjects = {Subject(one) for row in aside if (one := found.subjects[row]) is not None}
    return {_id_of(found, row, private.contents[row]) for row in aside}, subjects


def load_public(config: Config, which: PublicPart, labels: Sequence[str]) -> LabelledRows:
    """Read public rows.

    Raises:
        DataError: every problem of the source, or that the config does not name it.
    """
    if config.data.public_source(which) is None:
        raise DataError([f"data.public.{which} is not in the config: name a source of public rows"])
    (part,) = _read(config, (which,)).values()
    _check_labels([part], labels)
    _report([part])
    return part.labelled(labels)


def load_all(config: Config) -> Data:
    """Read every source once.

    Raises:
        DataError: lists the problems of all sources, each with its section of the config.
    """
    parts = _read(config, ("private", *PUBLIC))
    private = parts.pop("private")
    labels: Sequence[str] | None = config.data.labels
    if config.generates:
        labels = ()
    elif labels is None and all(part.found.complete for part in parts.values()):
        labels = _public_labels(parts.values())
    # Without a label set every label would be reported as unknown, which is not the problem.
    _check_labels([private, *parts.values()], labels)
    thresholds = _thresholds(config, parts)
    tiers = private.found.tiers(thresholds, private.contents)
    _check_ids(private.found)
    _report([private, *parts.values()])
    shared = {content for part in parts.values() for content in part.values(part.contents)}
    labels = labels or ()
    samples = _private(private, labels, tiers)
    rows = {name: part.labelled(labels) for name, part in parts.items()}
    return Data(
        labels=tuple(labels),
        private=samples,
        adapt=rows.get("adapt"),
        validation=rows["validation"],
        test=rows["test"],
        overlap=sum(sample.content in shared for sample in samples.samples),
        thresholds=thresholds,
        cut=_cut_aside(private) if config.data.cut_from == "private" else None,
    )


def _read(config: Config, names: Sequence[_Name], contents: bool = True) -> dict[str, _Part]:
    """The rows of these parts of the data, without those that the config does not name.

    A source of which several are cut is read once.
    """
    data, salt = config.data, config.partition.salt
    sources: dict[object, tuple[Columns, list[Digest], dict[str, list[int]]]] = {}
    parts: dict[str, _Part] = {}
    for name in names:
        place = _place(data, name)
        if place is None:
            continue
        where, source = place
        shares = shares_of(data) if where == _cut_source(data) else {}
        key = where, source.files
        if key not in sources:
            found = read_columns(config, source, where)
            digests = found.digests() if contents else []
            sources[key] = found, digests, cut(found, salt, shares) if shares else {}
        found, digests, rows = sources[key]
        whole = range(len(found.inputs))
        own: Sequence[int] = rows.get(name, rows[REST]) if shares else whole
        if contents and where == "data.private" and name != "private" and not found.problems:
            own = _first_copies(found, own, digests)
        if shares and not own and not found.problems:
            found.problems.append(
                f"no row of {len(whole)} falls into the part {name!r}: give more rows, other "
                "shares, or another partition.salt"
            )
        parts[name] = _Part(found, own, digests)
    return parts


def _first_copies(found: Columns, rows: Sequence[int], contents: Sequence[Digest]) -> Sequence[int]:
    """Rows without those that are one sample with an earlier one, as private rows are folded."""
    return list({_id_of(found, row, contents[row]): row for row in reversed(rows)}.values())[::-1]


def _place(data: DataConfig, name: _Name) -> tuple[str, SourceConfig] | None:
    return ("data.private", data.private) if name == "private" else data.public_source(name)


def _cut_source(data: DataConfig) -> str | None:
    """The section of the source from which public rows are cut."""
    return f"data.{data.cut_from}" if data.cuts else None


def _cut_aside(private: _Part) -> CutAside:
    everyone = {subject for subject in private.found.subjects if subject is not None}
    kept = {subject for subject in private.values(private.found.subjects) if subject is not None}
    rows = len(private.found.inputs)
    return CutAside(len(everyone - kept), len(everyone), rows - len(private.rows), rows)


def _public_labels(public: Iterable[_Part]) -> tuple[str, ...]:
    public = list(public)
    values = {label for part in public for label in part.values(part.found.labels or ()) if label}
    # classes that a private source declares may be of private rows alone
    shown = values if any(part.found.where == "data.private" for part in public) else None
    declared = (name for part in public for name in part.found.classes)
    classes = dict.fromkeys(name for name in declared if shown is None or name in shown)
    return (*classes, *sorted(values - set(classes)))


def _thresholds(config: Config, public: Mapping[str, _Part]) -> tuple[float, ...]:
    """Thresholds between the risk tiers; none without risk, or where a problem is noted."""
    risk = config.partition.risk
    if risk is None or not risk.quantiles:
        return (risk.thresholds if risk else None) or ()
    adapt = public.get("adapt")
    if adapt is None:
        raise DataError(["partition.risk.quantiles needs data.public.adapt: name that source"])
    risks = adapt.values(adapt.found.risks)
    values = [value for value in risks if value is not None]
    if not values or len(values) < len(risks):
        return ()
    try:
        return quantile_thresholds(risk.quantiles, values)
    except ValueError as error:
        adapt.found.problems.append(f"column {risk.column!r} (partition.risk): {error}")
        return ()


def _check_labels(parts: Iterable[_Part], labels: Sequence[str] | None) -> None:
    for found in _sources(parts):
        if labels is not None and found.labels is not None:
            found.check_labels(labels)


def _check_ids(found: Columns) -> None:
    counts = Counter(found.ids or ())
    twice = [name for name, count in counts.items() if name is not None and count > 1]
    if twice:
        found.problems.append(f"ids occur twice: {named(twice)}; give every row its own id")


def _report(parts: Iterable[_Part]) -> None:
    """Raise what was found, each source once."""
    _report_columns(_sources(parts))


def _sources(parts: Iterable[_Part]) -> list[Columns]:
    """The sources that parts are of, each once."""
    return list({id(part.found): part.found for part in parts}.values())


def _report_columns(sources: Sequence[Columns]) -> None:
    """Raise what was found: of one source under its name, of several under ``data``."""
    failed = [found for found in sources if found.problems]
    if len(failed) == 1:
        raise DataError(failed[0].problems, failed[0].where)
    if failed:
        raise DataError([f"{f.where}: {problem}" for f in failed for problem in f.problems], "data")


def _private(part: _Part, labels: Sequence[str], tiers: Sequence[int]) -> PrivateData:
    found = part.found
    first: dict[SampleId, tuple[Sample, int]] = {}
    for row in part.rows:
        subject, content = found.subjects[row], part.contents[row]
        sample = Sample(
            id=_id_of(found, row, content),
            subject=Subject(subject) if subject is not None else None,
            content=content,
            tier=tiers[row] if tiers else 0,
        )
        first.setdefault(sample.id, (sample, row))
    pairs = sorted(first.values(), key=lambda pair: pair[0].id)
    return PrivateData(
        samples=tuple(sample for sample, _ in pairs),
        rows=_rows(found, [row for _, row in pairs], labels),
        folded=len(part.rows) - len(first),
    )


def _id_of(found: Columns, row: int, content: Digest) -> SampleId:
    given = found.ids[row] if found.ids is not None else None
    return SampleId(given if given is not None else digest([found.subjects[row], content]))


def _rows(found: Columns, order: Sequence[int], labels: Sequence[str]) -> LabelledRows:
    inputs = pick(found.inputs, order)
    if found.labels is None:
        instructs = bool(inputs) and isinstance(inputs[0], Conversation)
        return LabelledRows(inputs, None, tuple(row + 1 for row in order) if instructs else ())
    number = {name: index for index, name in enumerate(labels)}
    return LabelledRows(inputs, tuple(number[found.labels[row] or ""] for row in order))
