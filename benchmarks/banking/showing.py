"""The benchmark's tables and picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.environment import table

__all__ = ["draw", "show"]


def show(result: Mapping[str, Any]) -> None:
    """Print accuracy along the deletions, then cost and latency."""
    steps, sizes, methods = result["steps"], result["sizes"], result["methods"]
    rows = []
    for method, found in methods.items():
        for way, figures in found["ways"].items():
            means = _means(figures["accuracy"])
            cells = [f"{100 * value:.1f}" for value in means]
            cells += ["–"] * (len(steps) - len(cells))
            times = [f"{1e3 * seconds:.1f}" for seconds in figures["latency"]]
            rows.append([method, way, *cells, *times])
    base = next(iter(methods.values()))["base"]
    rows.append(["base alone", "–", f"{100 * base:.1f}", *["–"] * (len(steps) - 1 + len(sizes))])
    head = [f"after {step}" if step else "before" for step in steps]
    print(table(["accuracy, %", "served", *head, *(f"{size} q., ms" for size in sizes)], rows))
    print()
    costs = [
        [
            method,
            found["nodes"],
            f"{found['training_seconds']:.0f}" if found["trained"] == found["nodes"] else "?",
            f"{found['sample_passes']:,}",
            f"{found['bytes'] / 2**20:.1f}",
            " ".join(map(str, found["sizes"])),
            " ".join(f"{mean:.1f}" for mean in _means(found["living"])),
        ]
        for method, found in methods.items()
    ]
    header = ["training", "nodes", "s", "sample passes", "MiB", "shards", "shards that serve"]
    print(table(header, costs))
    wrong = [method for method, found in methods.items() if not found["served_as_reckoned"]]
    print(
        f"\nmeans of {result['streams']} streams of random deletions, nothing retrained; questions "
        "at once, median time. "
        + (f"SERVED OTHERWISE THAN RECKONED: {', '.join(wrong)}. " if wrong else "")
        + "All in the same run."
    )


def draw(figure: Any, result: Mapping[str, Any]) -> None:
    """Accuracy along the deletions, and against the time of an answer."""
    left, right = figure.subplots(1, 2)
    steps, sizes = result["steps"], result["sizes"]
    colours = ("tab:grey", "tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:olive")
    lines = {"ensemble": "-", "merged": ":", "router": "--"}
    marks = {"ensemble": "o", "merged": "s", "router": "^"}
    for colour, (method, found) in zip(colours, result["methods"].items(), strict=True):
        for way, figures in found["ways"].items():
            means = [100 * value for value in _means(figures["accuracy"])]
            name = f"{method}, {way}" if len(found["ways"]) > 1 else method
            if len(means) > 1:
                left.plot(steps, means, lines[way], color=colour, marker=marks[way], label=name)
            else:
                left.axhline(means[0], color=colour, linestyle="--", label=name)
            right.plot(1e3 * figures["latency"][0], means[0], marks[way], color=colour)
    left.set(xlabel="deletions", ylabel="accuracy, %", title="nothing is retrained")
    right.set(xlabel=f"ms for {sizes[0]} question", title="before any deletion")
    left.legend(fontsize=7)
    for axis in (left, right):
        axis.grid(alpha=0.3)


def _means(streams: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*streams, strict=True)]
