"""What one kind of damage is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.harness.damage.victim import Victim

__all__ = ["Kind", "kinds_of"]

Inflict = Callable[[Victim], str]
"""Damages a victim, and returns a word by which the audit has to name what was damaged."""


@dataclass(frozen=True)
class Kind:
    """One kind of damage.

    Attributes:
        name: what is done.
        claims: those that must not hold afterwards, all of them.
        status: of the first of them.
        inflict: does it.
        asks: options of the audit without which it cannot be found.
    """

    name: str
    claims: tuple[str, ...]
    status: str
    inflict: Inflict
    asks: Callable[[Victim], Mapping[str, Any]]


def kinds_of(
    listed: list[Kind],
) -> Callable[..., Callable[[Inflict], Inflict]]:
    """A decorator that adds what it decorates to a list of kinds."""

    def kind(
        name: str,
        *claims: str,
        status: str = "broken",
        asks: Callable[[Victim], Mapping[str, Any]] = lambda victim: {},
    ) -> Callable[[Inflict], Inflict]:
        def add(inflict: Inflict) -> Inflict:
            listed.append(Kind(name, claims, status, inflict, asks))
            return inflict

        return add

    return kind
