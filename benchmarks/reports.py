"""What packages of benchmarks share: a command line, an interval, one JSON and a picture.

Invariant: a result is written with the environment that it was measured in, whole or not at all.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t

from benchmarks.environment import environment, median, write_json

__all__ = ["Report", "interval", "main", "main_of_all", "shown", "spread"]


class Report:
    """One benchmark's JSON and the picture beside it."""

    def __init__(self, name: str, output: Path) -> None:
        self._environment = environment()  # of the start, with the load at that moment
        self._json = output / f"{name}.json"

    def finish(
        self,
        result: dict[str, Any],
        draw: Callable[[Any], None] | None = None,
        size: tuple[float, float] = (13, 4),
    ) -> dict[str, Any]:
        """Write the result, draw the picture, say where they are; returns the result."""
        write_json(self._json, {"environment": self._environment, **result})
        written = f"figures {self._json}"
        if draw is not None:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot as plt

            figure = plt.figure(figsize=size, layout="constrained")
            draw(figure)
            figure.savefig(self._json.with_suffix(".png"), dpi=120)
            plt.close(figure)
            written += f", picture {self._json.with_suffix('.png')}"
        print(written, flush=True)
        return result


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean (Student's t)."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    half = float(t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
    return mean - half, mean + half


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def shown(found: Mapping[str, float], form: str = ".1f", scale: float = 1.0) -> str:
    """A spread in words: the median and, where they differ, the extremes."""
    low, middle, high = (scale * found[key] for key in ("min", "median", "max"))
    return f"{middle:{form}}" + (f" ({low:{form}}–{high:{form}})" if low < high else "")


def main(
    run: Callable[[Path, bool], dict[str, Any]], description: str | None, output: Path
) -> None:
    """The command line of one benchmark; results go below ``output`` unless told otherwise."""
    options = _parser(description, output).parse_args()
    run(options.output, options.quick)


def main_of_all(package: str, names: Sequence[str], description: str | None, output: Path) -> int:
    """The command line of a package: its benchmarks one after another; returns the exit code."""
    parser = _parser(description, output)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    for name in options.only:
        started = time.monotonic()
        print(f"\n── {name} ──", flush=True)
        importlib.import_module(f"{package}.{name}").run(options.output, options.quick)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _parser(description: str | None, output: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--quick", action="store_true", help="smaller, for a first look")
    return parser
