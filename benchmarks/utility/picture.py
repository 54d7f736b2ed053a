"""The metric along deletions: uniform weights on the left, weights from public rows beside them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.utility.found import Found
from benchmarks.utility.sides import LORA, PUBLIC

__all__ = ["draw"]


def draw(figure: Any, result: Mapping[str, Any]) -> None:
    """A row of two panels for each set of test rows; bands are 95 % intervals over the seeds."""
    found = Found(result)
    panels = figure.subplots(len(found.tests), 2, sharex=True, sharey="row", squeeze=False)
    colours = {
        name: f"C{number}"
        for number, name in enumerate(n for n in found.there if n != LORA and PUBLIC not in n)
    }
    for row, test in zip(panels, found.tests, strict=True):
        for axes, public in zip(row, (False, True), strict=True):
            _panel(axes, found, test, public, colours)
        unit = "accuracy, %" if found.accuracy else "perplexity"
        row[0].set_ylabel(f"{unit}, {test} rows")
        row[0].legend(fontsize=7)
    for axes, title in zip(panels[0], ("uniform weights", "weights from public rows"), strict=True):
        axes.set_title(f"{result['task']}: {title}")
    for axes in panels[-1]:
        axes.set_xlabel("deletions, nothing retrained")


def _panel(axes: Any, found: Found, test: str, public: bool, colours: Mapping[str, str]) -> None:
    scale = 100 if found.accuracy else 1
    for values, style, label in (
        (found.at(LORA, 0, test), ":", "one LoRA, nothing deleted"),
        (found.base(test), "--", "base alone"),
    ):
        axes.axhline(scale * fmean(values), color="grey", ls=style, label=label)
    for side, colour in colours.items():
        name = side + PUBLIC if public else side
        if name not in found.there:
            continue
        lines = [found.at(name, point, test) for point in found.points]
        means = [scale * fmean(values) for values in lines]
        axes.plot(found.points, means, "o-", ms=3, lw=1.2, color=colour, label=side)
        low, high = zip(*(found.bounds(values) for values in lines), strict=True)
        bands = ([scale * value for value in edge] for edge in (low, high))
        axes.fill_between(found.points, *bands, color=colour, alpha=0.12, lw=0)
    if not found.accuracy:
        axes.set_yscale("log")
