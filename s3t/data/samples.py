"""Reads private samples, with ids and digests, and public rows.

Invariant E5: label names come from the config or from public data. A private row with another label
is a problem, not a new class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from s3t.config import Config, SourceConfig
from s3t.data.columns import Columns, read_columns
from s3t.data.conversations import Conversation
from s3t.data.risk import quantile_thresholds
from s3t.data.rows import LabelledRows, pick
from s3t.errors import DataError, named
from s3t.types import Digest, Sample, SampleId, Subject, digest

__all__ = [
    "Data",
    "PrivateData",
    "label_names",
    "load_all",
    "load_private",
    "load_public",
    "private_origins",
]


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
    """

    labels: tuple[str, ...]
    private: PrivateData
    adapt: LabelledRows | None
    validation: LabelledRows
    test: LabelledRows
    overlap: int
    thresholds: tuple[float, ...]


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
    public = [read_columns(config, source, where) for where, source in _public(config).items()]
    _report(public)
    return _public_labels(public)


def load_private(config: Config, labels: Sequence[str]) -> PrivateData:
    """Read the private samples.

    Args:
        config: the run's config.
        labels: label names, from ``label_names``.

    Raises:
        DataError: lists every problem of the source.
    """
    found = read_columns(config, config.data.private, "data.private")
    risk, source, public = config.partition.risk, config.data.public.adapt, {}
    if risk and risk.quantiles and source:
        public["data.public.adapt"] = read_columns(config, source, "data.public.adapt")
    contents = _contents(found, labels)
    tiers = found.tiers(_thresholds(config, public), contents)
    _check_ids(found)
    _report([found, *public.values()])
    return _private(found, contents, labels, tiers)


def private_origins(config: Config) -> list[tuple[SampleId, tuple[str, ...]]]:
    """For each private row, copies too: the sample's id, and the files that hold this row alone.

    Raises:
        DataError: lists every problem of the source.
    """
    found = read_columns(config, config.data.private, "data.private")
    contents = found.digests() if found.ids is None else [Digest("")] * len(found.ids)
    _report([found])
    origins = found.origins or [()] * len(contents)
    return [
        (_id_of(found, row, content), origin)
        for row, (content, origin) in enumerate(zip(contents, origins, strict=True))
    ]


def load_public(
    config: Config, which: Literal["adapt", "validation", "test"], labels: Sequence[str]
) -> LabelledRows:
    """Read public rows.

    Raises:
        DataError: every problem of the source, or that the config does not name it.
    """
    where = f"data.public.{which}"
    source = _public(config).get(where)
    if source is None:
        raise DataError([f"{where} is not in the config: name a source of public rows"])
    found = read_columns(config, source, where)
    _contents(found, labels)
    _report([found])
    return _rows(found, range(len(found.inputs)), labels)


def load_all(config: Config) -> Data:
    """Read every source once.

    Raises:
        DataError: lists the problems of all sources, each with its section of the config.
    """
    private = read_columns(config, config.data.private, "data.private")
    public = {where: read_columns(config, s, where) for where, s in _public(config).items()}
    labels: Sequence[str] | None = config.data.labels
    if config.generates:
        labels = ()
    elif labels is None and all(found.complete for found in public.values()):
        labels = _public_labels(public.values())
    # Without a label set every label would be reported as unknown, which is not the problem.
    contents = _contents(private, labels)
    thresholds = _thresholds(config, public)
    tiers = private.tiers(thresholds, contents)
    _check_ids(private)
    shared = {content for found in public.values() for content in _contents(found, labels)}
    _report([private, *public.values()])
    labels = labels or ()
    samples = _private(private, contents, labels, tiers)
    rows = {where: _rows(f, range(len(f.inputs)), labels) for where, f in public.items()}
    return Data(
        labels=tuple(labels),
        private=samples,
        adapt=rows.get("data.public.adapt"),
        validation=rows["data.public.validation"],
        test=rows["data.public.test"],
        overlap=sum(sample.content in shared for sample in samples.samples),
        thresholds=thresholds,
    )


def _public(config: Config) -> Mapping[str, SourceConfig]:
    public = config.data.public
    sources = {"adapt": public.adapt, "validation": public.validation, "test": public.test}
    return {f"data.public.{name}": source for name, source in sources.items() if source}


def _public_labels(public: Iterable[Columns]) -> tuple[str, ...]:
    public = list(public)
    classes = dict.fromkeys(name for found in public for name in found.classes)
    values = {label for found in public for label in found.labels or () if label}
    return (*classes, *sorted(values - set(classes)))


def _thresholds(config: Config, public: Mapping[str, Columns]) -> tuple[float, ...]:
    """Thresholds between the risk tiers; none without risk, or where a problem is noted."""
    risk = config.partition.risk
    if risk is None or not risk.quantiles:
        return (risk.thresholds if risk else None) or ()
    adapt = public.get("data.public.adapt")
    if adapt is None:
        raise DataError(["partition.risk.quantiles needs data.public.adapt: name that source"])
    values = [value for value in adapt.risks if value is not None]
    if not values or len(values) < len(adapt.risks):
        return ()
    try:
        return quantile_thresholds(risk.quantiles, values)
    except ValueError as error:
        adapt.problems.append(f"column {risk.column!r} (partition.risk): {error}")
        return ()


def _contents(found: Columns, labels: Sequence[str] | None) -> list[Digest]:
    """Content digests, after noting the labels that are not allowed."""
    if labels is not None and found.labels is not None:
        found.check_labels(labels)
    return found.digests()


def _check_ids(found: Columns) -> None:
    counts = Counter(found.ids or ())
    twice = [name for name, count in counts.items() if name is not None and count > 1]
    if twice:
        found.problems.append(f"ids occur twice: {named(twice)}; give every row its own id")


def _report(sources: Sequence[Columns]) -> None:
    """Raise what was found: of one source under its name, of several under ``data``."""
    failed = [found for found in sources if found.problems]
    if len(failed) == 1:
        raise DataError(failed[0].problems, failed[0].where)
    if failed:
        raise DataError([f"{f.where}: {problem}" for f in failed for problem in f.problems], "data")


def _private(
    found: Columns, contents: Sequence[Digest], labels: Sequence[str], tiers: Sequence[int]
) -> PrivateData:
    first: dict[SampleId, tuple[Sample, int]] = {}
    for row, content in enumerate(contents):
        subject = found.subjects[row]
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
        folded=len(contents) - len(first),
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
