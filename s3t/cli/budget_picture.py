"""The picture of a budget: its front, and the grid of shards and slices. The door to matplotlib."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from s3t.errors import InputError
from s3t.plan.budget.advice import Budget, stairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "draw_budget", "picture_of"]

FORMATS = ("png", "svg", "pdf")


def picture_of(budget: Budget, form: str) -> bytes:
    """The picture as the content of a file.

    Raises:
        InputError: another form, or matplotlib is not installed.
    """
    if form not in FORMATS:
        raise InputError(f"a picture as {form!r} cannot be made: use one of {', '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install 's3t[plot]'") from None
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    draw_budget(figure, budget)
    content = BytesIO()
    figure.savefig(content, format=form, dpi=120)
    return content.getvalue()


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
