"""The metric along deletions: a column of panels for each way to weigh, a row for each test set."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.utility.found import Found
from benchmarks.utility.sides import LORA

__all__ = ["draw"]


def draw(figure: Any, result: Mapping[str, Any]) -> None:
    """Bands are 95 % intervals over the seeds."""
    found = Found(result)
    shape = (len(found.tests), len(found.weights))
    panels = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False)
    each = (trained for weights in found.weights for trained in found.served_with(weights).values())
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(each))}
    for row, test in zip(panels, found.tests, strict=True):
        for axes, weights in zip(row, found.weights, strict=True):
            _panel(axes, found, test, weights, colours)
            axes.set_xlabel("deletions, nothing retrained")
        row[0].set_ylabel(("accuracy, %" if found.accuracy else "perplexity") + f", {test} rows")
        row[0].legend(fontsize=7)
    for axes, weights in zip(panels[0], found.weights, strict=True):
        axes.set_title(f"{result['task']}, {weights} weights")


def _panel(axes: Any, found: Found, test: str, weights: str, colours: Mapping[str, str]) -> None:
    scale = 100 if found.accuracy else 1
    for values, style, label in (
        (found.at(LORA, 0, test), ":", "one LoRA, nothing deleted"),
        (found.base(test), "--", "base alone"),
    ):
        axes.axhline(scale * fmean(values), color="grey", ls=style, label=label)
    for name, trained_as in found.served_with(weights).items():
        if name == LORA:
            continue
        colour, lines = colours[trained_as], [found.at(name, at, test) for at in found.points]
        means = [scale * fmean(values) for values in lines]
        axes.plot(found.points, means, "o-", ms=3, lw=1.2, color=colour, label=trained_as)
        low, high = zip(*(found.bounds(values) for values in lines), strict=True)
        bands = ([scale * value for value in edge] for edge in (low, high))
        axes.fill_between(found.points, *bands, color=colour, alpha=0.12, lw=0)
    if not found.accuracy:
        axes.set_yscale("log")
