"""What all sections of a config share.

Invariant: what a section alone can refuse is refused there, with the value and what to do instead.
No value becomes another in silence: true is not 1, 010 is not 8, and 0 is no date.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
)

__all__ = ["Above", "Fraction", "Natural", "Positive", "Section", "Written"]

Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true is not 1
Natural = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Above = Annotated[float, Field(gt=0)]


class Written:
    """A number that still says how a file wrote it: as text it is what is written."""

    written: str

    def __str__(self) -> str:
        return self.written


class Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, no NaN, nothing taken for another."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_written(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        found = handler(value)
        _refuse_another(value, found)
        return found


_OTHER = re.compile(r"[-+]?0[0-9_]+|.*:.*")
"""Numbers that YAML reads in another base than they seem to be in: 010 is 8, and 1:30 is 90."""


def _refuse_another(value: Any, read: Any) -> None:
    """Refuse a value, or one in a list, of which something else was made."""
    if isinstance(read, tuple) and isinstance(value, list | tuple):
        for one, its in zip(value, read, strict=True):
            _refuse_another(one, its)
    if isinstance(read, int | float) and not isinstance(read, bool):
        if isinstance(value, bool):
            raise ValueError(f"{str(value).lower()} is no number")
        if isinstance(value, Written) and _OTHER.fullmatch(value.written):
            raise ValueError(f"YAML reads {value.written} as {read}: write that, or what is meant")
    if isinstance(read, date) and isinstance(value, int | float):
        raise ValueError(f"{value} is no date: write it as YYYY-MM-DD")
