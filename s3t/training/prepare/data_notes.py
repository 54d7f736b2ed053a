"""What ``s3t plan`` says of the private data before anything is trained.

    samples ─► persons: how many, rows without one, names that look alike or end in .0
            ─► copies, and content that is public too

A wrong column is found by these numbers: names are compared byte for byte, and what is one person
for a reader may be two for a deletion.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from s3t.config import Config
from s3t.data import Data
from s3t.errors import named
from s3t.ledger.samples.look_alikes import plain

__all__ = ["data_notes"]

FEW = 20
"""In fewer rows than this a column may well have another value in each."""
_SHOWN = 3
_GAPS = {"null", "nan", "none", "n/a", "na", "-", "unknown"}
"""What programs write into a cell that should be empty."""


def data_notes(config: Config, data: Data) -> Iterator[str]:
    """Sentences on the private samples, the most important first."""
    column, samples = config.partition.subject, data.private.samples
    if column is not None:
        persons = {one.subject for one in samples if one.subject is not None}
        bare = sum(one.subject is None for one in samples)
        yield f"{len(persons):,} persons in {len(samples):,} samples, by the column {column!r}"
        if bare:
            yield f"{bare:,} samples name no person in {column!r}: only an id deletes them"
        if len(persons) == len(samples) - bare >= FEW:
            yield (
                f"the column {column!r} (partition.subject) has another value in each of "
                f"{len(persons):,} samples: see that it names persons, not rows or messages"
            )
        yield from _names(persons)
    if data.private.folded:
        yield f"{data.private.folded} exact copies of the same subject count once"
    if data.overlap:
        yield (
            f"{data.overlap} private samples are in the public data too: deleting them does not "
            "remove what the public data taught"
        )


def _names(persons: Collection[str]) -> Iterator[str]:
    """Names that a request may miss, since names are compared byte for byte."""
    forms: dict[str, list[str]] = {}
    for person in sorted(persons):
        forms.setdefault(plain(person), []).append(person)
    gaps = [name for name in sorted(persons) if plain(name) in _GAPS]
    if gaps:
        yield (
            f"a person is named {named(gaps)}: if that stands for none, leave those cells empty, "
            "or all those rows are one person's"
        )
    alike = [names for names in forms.values() if len(names) > 1]
    if alike:
        shown = "; ".join(named(names, _SHOWN) for names in alike[:_SHOWN])
        yield (
            f"{sum(map(len, alike)):,} persons have names that look alike ({shown}): they count as "
            "different persons, and deleting one leaves the others"
        )
    ended = [name for name in sorted(persons) if name[:-2].isdecimal() and name.endswith(".0")]
    if ended:
        yield (
            f"{len(ended):,} persons end in .0 ({named(ended, _SHOWN)}), as spreadsheets write "
            f"numbers: a request for {ended[0][:-2]!r} does not find them"
        )
