"""Names that look alike: the same but for case, blanks, and how letters are written in Unicode.

    register, add ─► names that normalising changes ─► lookalikes
    a request     ─► its names, normalised ─► other names of the same form ─► how many live

Invariant: ids and subjects are compared byte for byte, and none is deleted for looking like
another; so a request is told how many samples it may have meant too. A purge removes the names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

import sqlalchemy as sa

from s3t.ledger.database.schema import lookalikes, samples
from s3t.ledger.samples.counters import chunks, select_in

__all__ = ["forget", "living", "note", "plain"]

Kind = Literal["sample_id", "subject"]

_some: sa.BindParameter[Any] = sa.bindparam("some", expanding=True)
_kind: sa.BindParameter[str] = sa.bindparam("of")
_LIVE = samples.c.deleted_view.is_(None)
_NAMES = sa.select(lookalikes.c.name).where(
    lookalikes.c.kind == _kind, lookalikes.c.plain.in_(_some)
)
_LIVING: Mapping[Kind, sa.Select[Any]] = {
    "sample_id": sa.select(samples.c.sample_id).where(samples.c.sample_id.in_(_some), _LIVE),
    "subject": sa.select(samples.c.sample_id).where(samples.c.subject.in_(_some), _LIVE),
}
_HELD = sa.select(samples.c.subject).where(samples.c.subject.in_(_some)).distinct()
_NOTE = sa.text(
    "INSERT INTO lookalikes (kind, plain, name) VALUES (:kind, :plain, :name) "
    "ON CONFLICT DO NOTHING"
)


def plain(name: str) -> str:
    """A name without what cannot be seen, in small letters: equal for names that look alike."""
    if name.isascii():
        return "".join(name.lower().split())
    form = "".join(one for one in name.casefold() if not _is_unseen(one))
    form = unicodedata.normalize("NFKC", form)
    return form if form == name else plain(form)  # until nothing changes any more


def _is_unseen(letter: str) -> bool:
    return letter.isspace() or unicodedata.category(letter) == "Cf"


def note(connection: sa.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Keep the names of samples that are not their own plain form."""
    kinds: tuple[Kind, Kind] = ("sample_id", "subject")
    odd = {
        (kind, form, name)
        for row in rows
        for kind in kinds
        if (name := row[kind]) is not None and (form := plain(name)) != name
    }
    if odd:
        values = [{"kind": kind, "plain": form, "name": name} for kind, form, name in sorted(odd)]
        connection.execute(_NOTE, values)


def forget(connection: sa.Connection, rows: Collection[sa.Row[Any]]) -> None:
    """Remove the names of samples whose rows have just left, and of persons who have none left."""
    people = {row.subject for row in rows if row.subject is not None}
    held = {row.subject for row in select_in(connection, _HELD, sorted(people))}
    gone: dict[Kind, Collection[str]] = {
        "sample_id": {row.sample_id for row in rows},
        "subject": people - held,
    }
    for kind, names in gone.items():
        for chunk in chunks(sorted(name for name in names if plain(name) != name)):
            connection.execute(
                sa.delete(lookalikes).where(
                    lookalikes.c.kind == kind,
                    lookalikes.c.plain.in_({plain(name) for name in chunk}),
                    lookalikes.c.name.in_(chunk),
                )
            )


def living(connection: sa.Connection, ids: Collection[str], subjects: Collection[str]) -> set[str]:
    """Ids of samples left that look like one of the ids, or whose person looks like one of the
    subjects, and are not those."""
    found: set[str] = set()
    asked: dict[Kind, Collection[str]] = {"sample_id": ids, "subject": subjects}
    for kind, names in asked.items():
        forms = {plain(name) for name in names}
        alike = {row.name for row in select_in(connection, _NAMES.params(of=kind), sorted(forms))}
        others = sorted((alike | forms) - {*names})
        found.update(row.sample_id for row in select_in(connection, _LIVING[kind], others))
    return found
