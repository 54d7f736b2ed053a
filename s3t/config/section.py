"""What all sections of a config share.

Invariant: what a section alone can refuse is refused there, with the value and what to do instead.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Above", "Fraction", "Natural", "Positive", "Section"]

Positive = Annotated[int, Field(ge=1, strict=True)]  # strict: true is not 1
Natural = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Above = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """What all sections share: frozen, unknown keys refused, no NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )
