"""Rows that a caller gives as Python objects: a DataFrame, a data set, lists, one text, one row.

Invariant: a table's rows are its rows, never the names of its columns; one text is one row, never
its letters. Neither pandas nor polars is needed: a table is known by what it can do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

from s3t.errors import InputError

__all__ = ["is_table", "records", "rows_of", "value_of"]


def is_table(given: Any) -> bool:
    """Whether it is a table with named columns: of pandas, polars, pyarrow or datasets."""
    named = hasattr(given, "columns") or hasattr(given, "column_names")
    return named and any(
        hasattr(given, name) for name in ("to_dicts", "to_pylist", "iloc", "features")
    )


def rows_of(given: Any) -> list[Any]:
    """What a caller gives to be answered, as a list of rows.

    Args:
        given: a table, a list or an array of rows; or one text, path, image or mapping.

    Raises:
        InputError: it is nothing of that.
    """
    if is_table(given):
        return records(given)
    if isinstance(given, str | bytes | PathLike | Mapping) or _is_image(given):
        return [given]
    if not isinstance(given, Iterable):
        raise InputError(
            f"rows are expected as a list, a table, or one text, got a {type(given).__name__}"
        )
    return list(given)


def value_of(row: Any, number: int, column: str) -> Any:
    """A row's value in a column; the row itself where it is no mapping.

    Raises:
        InputError: a mapping without the column; names the row by its number.
    """
    if not isinstance(row, Mapping):
        return row
    if column not in row:
        raise InputError(f"row {number} has no {column!r}: it has {sorted(map(str, row))}")
    return row[column]


def records(given: Any) -> list[dict[str, Any]]:
    """The rows of a table, or a list of mappings, as dicts of plain values.

    A missing value (None, NaN, NaT) is None. Numbers of numpy become Python's.

    Raises:
        InputError: it is neither; or a column has a name that is no text.
    """
    if not is_table(given):
        listed = [given] if isinstance(given, Mapping) else given
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            raise InputError(
                f"rows are expected as a table or a list of dicts, got a {type(given).__name__}"
            )
        rows = list(listed)
        odd = [number for number, row in enumerate(rows, 1) if not isinstance(row, Mapping)]
        if odd:
            kind = type(rows[odd[0] - 1]).__name__
            raise InputError(f"row {odd[0]} is a {kind}, expected a dict of columns")
    elif hasattr(given, "iloc"):
        rows = given.to_dict("records")
    elif hasattr(given, "features"):
        rows = [given[at] for at in range(len(given))]
    else:
        rows = given.to_dicts() if hasattr(given, "to_dicts") else given.to_pylist()
    strange = [name for row in rows[:1] for name in row if not isinstance(name, str)]
    if strange:
        raise InputError(f"column {strange[0]!r} has a name that is no text: rename it")
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # of numpy
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is not None and type(value).__name__ in ("NAType", "NaTType"):
        return None  # of pandas
    return value


def _is_image(given: Any) -> bool:
    """Whether it is a picture of Pillow."""
    return hasattr(given, "mode") and hasattr(given, "getdata")
