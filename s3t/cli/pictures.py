"""Pictures of answers: a budget, a plan along deletions, a forecast, accuracy along deletions.

The door to matplotlib: nothing else imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s3t.cli.output import write
from s3t.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from s3t.plan.budget.advice import Budget

__all__ = [
    "FORMATS",
    "draw_along",
    "draw_budget",
    "draw_evaluations",
    "draw_forecast",
    "write_picture",
]

FORMATS = ("png", "svg", "pdf")
_BESIDE: Mapping[str, Any] = {"color": "tab:gray", "linestyle": "--"}


def write_picture(path: Path, draw: Callable[[Figure], None], width: float = 7) -> None:
    """Write a picture to a file, whole or not at all.

    Args:
        path: its suffix says which form: png, svg or pdf.
        draw: draws on a figure.
        width: inches.

    Raises:
        InputError: another form, matplotlib is not installed, or the file cannot be written.
    """
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise InputError(f"a picture as {form!r} cannot be made: use one of {', '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install 's3t[plot]'") from None
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    draw(figure)
    content = BytesIO()
    figure.savefig(content, format=form, dpi=120)
    write(path, content.getvalue(), "--picture")


def draw_along(figure: Figure, summary: Mapping[str, Any]) -> None:
    """What a plan serves along the deletions, and the paper's cyclic plan beside it.

    Args:
        figure: to draw on.
        summary: what ``s3t plan --horizon --json`` prints.
    """
    found = summary["horizon"]
    moments = found["moments"]
    requests = [one["requests"] for one in moments]
    serves, exhausted = figure.subplots(1, 2)
    for name, each, style in (
        ("this plan", moments, {"color": "tab:blue"}),
        ("the paper's cyclic plan", [one["cyclic"] for one in moments], _BESIDE),
    ):
        serves.plot(requests, [100 * one["data_served"] for one in each], label=name, **style)
        exhausted.plot(requests, [one["exhausted"] for one in each], label=name, **style)
    exact = "exact" if found["trials"] is None else f"mean of {found['trials']:,} streams"
    serves.set(xlabel="deletion requests", ylabel=f"data in service, %, {exact}", ylim=(0, 102))
    exhausted.set(xlabel="deletion requests", ylabel="probability that no shard serves")
    exhausted.set_ylim(-0.02, 1.02)
    for axes in (serves, exhausted):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{summary['shards']} shards × {summary['slices']} slices", fontsize=10)


def draw_forecast(figure: Figure, found: Mapping[str, Any]) -> None:
    """Requests that are left until the first shard dies and until exhaustion, with 90 % ranges.

    Args:
        figure: to draw on.
        found: what ``s3t forecast --json`` prints.
    """
    axes = figure.subplots()
    events = [("exhaustion", "no shard serves"), ("first_death", "the first shard dies")]
    for height, (event, _) in enumerate(events):
        requests = (found.get(event) or {}).get("requests")
        if requests is None:
            continue
        middle = requests["p50"]
        high = middle if requests["p95"] is None else requests["p95"]
        error = [[middle - requests["p5"]], [high - middle]]
        axes.errorbar([middle], [height], xerr=error, fmt="o", capsize=4, color="tab:blue")
        axes.annotate(f"{middle:g}", (middle, height), (0, 8), textcoords="offset points")
    axes.set_yticks(range(len(events)), [name for _, name in events])
    axes.set(xlabel="requests from now: median, and 90 % range", ylim=(-0.6, 1.6))
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"view {found['view']}: {found['persons_left']:,} persons left", fontsize=10)


def draw_evaluations(figure: Figure, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """How answers did on the public test rows along the deletions, and the base alone.

    Args:
        figure: to draw on.
        evaluations: ``evaluations`` of ``S3T.picture``; the latest last.
    """
    axes, last = figure.subplots(), evaluations[-1]
    deleted = [one["deleted"] for one in evaluations]
    values = np.array([one["value"] for one in evaluations])
    if last["metric"] == "accuracy":  # of counting so many rows
        error = 1.96 * np.sqrt(values * (1 - values) / last["samples"])
        axes.fill_between(deleted, values - error, values + error, alpha=0.2, label="95 %")
    axes.plot(deleted, values, "o-", markersize=4, label="what serves")
    if last["base"] is not None:
        axes.axhline(last["base"], label="the base alone", **_BESIDE)
    axes.set(xlabel="samples deleted", ylabel=f"{last['metric']} on {last['samples']:,} test rows")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title("since the last purge", fontsize=10)


def draw_budget(figure: Figure, budget: Budget) -> None:
    """Left what more training buys, right the best that each number of shards and slices gives."""
    front, grid = figure.subplots(1, 2)
    _front(front, budget)
    _grid(figure, grid, budget)
    question = budget.question
    figure.suptitle(
        f"{question.samples:,} samples, {question.layers} layers, {question.deletions:,} "
        f"deletions; curve {question.curve}",
        fontsize=10,
    )


def _front(axes: Axes, budget: Budget) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    from s3t.plan.budget.advice import stairs

    for within, colour, label in (
        (False, "lightgrey", "on the front, over a limit"),
        (True, "tab:blue", "on the front, within all limits"),
    ):
        shown = [one for one in budget.front if budget.within(one) == within]
        if shown:
            passes, utility = zip(*((one.passes, one.utility) for one in shown), strict=True)
            axes.scatter(passes, utility, s=8, color=colour, label=label)
    steps = stairs(budget, limit=len(budget.front) + 3)
    if budget.lasts:
        passes, utility = zip(*((one.passes, one.utility) for one in steps), strict=True)
        axes.step(passes, utility, where="post", color="tab:blue", linewidth=0.8)
    cyclic, chosen = budget.cyclic, budget.recommended
    axes.scatter([cyclic.passes], [cyclic.utility], marker="x", s=60, color="tab:orange",
                 label=f"cyclic, {cyclic.shards} × {cyclic.slices}")  # fmt: skip
    name = "recommended" if budget.lasts else "least risky (no plan lasts)"
    axes.scatter([chosen.passes], [chosen.utility], marker="*", s=160, color="tab:red", zorder=3,
                 label=f"{name}, {chosen.shards} × {chosen.slices}")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("training cost, sample passes")
    axes.set_ylabel("expected utility, mean along the deletions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _grid(figure: Figure, axes: Axes, budget: Budget) -> None:
    shards = sorted({cell.shards for cell in budget.cells})
    slices = sorted({cell.slices for cell in budget.cells})
    values = np.full((len(slices), len(shards)), np.nan)
    for cell in budget.cells:
        if cell.utility is not None:
            values[slices.index(cell.slices), shards.index(cell.shards)] = cell.utility
    image = axes.imshow(np.ma.masked_invalid(values), origin="lower", aspect="auto", cmap="viridis")
    chosen = budget.recommended
    at = shards.index(chosen.shards), slices.index(chosen.slices)
    axes.scatter(*at, marker="*", s=160, color="tab:red")
    axes.set_xticks(range(len(shards)), [str(m) for m in shards])
    axes.set_yticks(range(len(slices)), [str(count) for count in slices])
    axes.set_xlabel("shards m")
    axes.set_ylabel("slices L")
    axes.set_title("best utility within the limits; blank: none", fontsize=9)
    figure.colorbar(image, ax=axes)
