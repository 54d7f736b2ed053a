"""The methods of approximate unlearning, one file each, with its source.

    method(request, **setting) ─► changes the adapter in place, and yields where it could stop

All of them work on the adapter alone: the base is public, so nothing in it needs to be forgotten.

Invariant: a method sees the deleted rows, the rest, and the model that was trained on both; what
it draws comes from the request's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.forgetting.methods.ascent import ascent, difference
from benchmarks.forgetting.methods.dampening import dampening
from benchmarks.forgetting.methods.preference import preference
from benchmarks.forgetting.methods.rest import rest
from benchmarks.forgetting.methods.subnet import subnet

__all__ = ["METHODS", "Method"]

Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """An approximate method.

    Attributes:
        label: in tables.
        source: where it was published.
        run: the generator that changes the adapter.
        grid: the settings to choose from.
        quick: fewer of them, for a first look.
    """

    label: str
    source: str
    run: Callable[..., Iterator[None]]
    grid: Sequence[Setting]
    quick: Sequence[Setting]


def _settings(name: str, values: Sequence[float], **fixed: Any) -> tuple[Setting, ...]:
    return tuple({name: value, **fixed} for value in values)


METHODS = (
    Method(
        "fine-tuning on the rest",
        "the usual baseline, for instance in arXiv 2302.09880 and 2401.06121",
        rest,
        _settings("rate", (5e-3, 1e-2), epochs=10),
        _settings("rate", (5e-3,), epochs=3),
    ),
    Method(
        "gradient ascent",
        "arXiv 2210.01504",
        ascent,
        _settings("rate", (3e-4, 1e-3), epochs=8),
        _settings("rate", (3e-4,), epochs=5),
    ),
    Method(
        "gradient difference",
        "arXiv 2203.12817; as in arXiv 2401.06121",
        difference,
        _settings("rate", (3e-4, 1e-3), epochs=8),
        _settings("rate", (3e-4,), epochs=5),
    ),
    Method(
        "NPO",
        "arXiv 2404.05868",
        preference,
        (
            *_settings("rate", (1e-3, 3e-3), beta=0.1, retain=1.0, epochs=8),
            *_settings("rate", (1e-3,), beta=0.1, retain=0.0, epochs=8),
        ),
        _settings("rate", (1e-3,), beta=0.1, retain=1.0, epochs=5),
    ),
    Method(
        "synaptic dampening",
        "arXiv 2308.07707",
        dampening,
        tuple(
            {"select": select, "dampen": dampen}
            for select in (1.0, 3.0, 10.0)
            for dampen in (0.1, 1.0)
        ),
        _settings("select", (1.0, 3.0), dampen=1.0),
    ),
    Method(
        "BalancedSubnet",
        "arXiv 2410.02159",
        subnet,
        _settings("ratio", (0.05, 0.25, 0.5), epochs=10, rate=0.1),
        _settings("ratio", (0.05,), epochs=3, rate=0.1),
    ),
)
