"""Which rows are cut aside as public: the validation, test and adapt parts of one source.

    HMAC-SHA256(salt, "cut", subject or input) ─► a number from 0 to 1
    0 ── test ──┬── validation ──┬── adapt ──┬── the rest ── 1

Invariant: the part of a row is a function of the row alone, as its slot is (``partition.py``): a
row that is added or left out moves no other. All rows of a person are in one part, and so are rows
without a person that have the same input.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3t.config import DataConfig
from s3t.data.columns import Columns
from s3t.data.rows import content_digest

__all__ = ["REST", "CutAside", "cut", "shares_of"]

REST = "rest"
"""The rows that are in no part."""

_WHOLE = 2**64


@dataclass(frozen=True, slots=True)
class CutAside:
    """How much of the private data is public.

    Attributes:
        persons, of_persons: number of persons cut aside, and of all; 0 without ``subject``.
        rows, of_rows: number of rows cut aside, and of all.
    """

    persons: int
    of_persons: int
    rows: int
    of_rows: int

    def sentence(self) -> str:
        """The numbers, and what they mean."""
        persons = f"{self.persons:,} of {self.of_persons:,} persons, " if self.of_persons else ""
        return (
            f"{persons}{self.rows:,} of {self.of_rows:,} rows are cut aside as public: "
            "they cannot be forgotten"
        )


def shares_of(data: DataConfig) -> dict[str, float]:
    """The share of each part that the config cuts, in the order in which they are cut."""
    shares = {"test": data.test, "validation": data.validation, "adapt": data.adapt}
    return {name: share for name, share in shares.items() if share is not None}


def cut(found: Columns, salt: str, shares: Mapping[str, float]) -> dict[str, list[int]]:
    """The rows of each part, and under ``REST`` all others, by their numbers from 0.

    Args:
        found: the checked columns; rows that cannot be read are in the rest.
        salt: key of the hash.
        shares: of each part, together less than 1.
    """
    bounds: list[tuple[str, float]] = []
    for name, share in shares.items():
        bounds.append((name, (bounds[-1][1] if bounds else 0.0) + share))
    parts: dict[str, list[int]] = {name: [] for name in (*shares, REST)}
    for row, message in enumerate(_messages(found)):
        bits = int.from_bytes(hmac.digest(salt.encode(), message, "sha256")[:8], "big")
        below = (name for name, bound in bounds if bits < bound * _WHOLE)
        parts[next(below, REST) if message else REST].append(row)
    return parts


def _messages(found: Columns) -> Sequence[bytes]:
    """What the hash of each row is of; empty for a row that cannot be read."""
    messages = []
    for row, subject in enumerate(found.subjects[: len(found.inputs)]):
        if subject is not None:
            messages.append(b"cut\0subject\0" + subject.encode())
            continue
        try:
            read = found.inputs[row]
        except Exception:  # of many kinds on damaged images; ``Columns.digests`` tells of it
            read = None
        content = b"" if read is None else content_digest(read, None).encode()
        messages.append(content and b"cut\0input\0" + content)
    return messages
