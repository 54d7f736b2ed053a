"""From traces to figures: means, paired differences, their intervals, a table and a picture.

Streams over one partition share its trained models, so they are not independent; partitions are.
A mean over streams is taken within each partition, and the interval is Student's t over partitions:
it covers what other partitions (with their trained models) and streams would give, on this base and
this test data. All methods see the same partitions and streams, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.deletion_budget.along import Trace
from benchmarks.environment import table
from benchmarks.reports import interval

__all__ = ["contrasts", "draw", "figures", "show"]

Traces = Mapping[str, Mapping[str, Sequence[Trace]]]
"""By method and salt, one trace per stream."""


def figures(
    traces: Traces,
    costs: Mapping[str, Sequence[Mapping[str, Any]]],
    steps: Sequence[int],
    reference: str,
) -> dict[str, Any]:
    """Everything that is reported of each method, as JSON values.

    Args:
        traces: what was measured.
        costs: by method, the plan's summary per salt.
        steps: numbers of deletions to show.
        reference: the method that the others are compared to.
    """
    values = {method: _array(found, lambda one: one.values) for method, found in traces.items()}
    slices = {method: _array(found, lambda one: one.slices) for method, found in traces.items()}
    whole = _mean_cost(costs[reference])
    found = {}
    for method, of in traces.items():
        gap = values[method] - values[reference]
        blind = _array(of, lambda one: one.blind)
        living = _array(of, lambda one: one.living)
        cost = _mean_cost(costs[method])
        found[method] = {
            "cost": cost,
            "share": {name: cost[name] / whole[name] for name in whole},
            "at": [
                {
                    "deletions": step,
                    "value": _interval(values[method][:, :, step]),
                    "difference": _interval(gap[:, :, step]),
                    "slices": float(slices[method][:, :, step].mean()),
                    "living": float(living[:, :, step].mean()),
                }
                for step in steps
            ],
            "area": {
                "value": _interval(values[method].mean(axis=2)),
                "difference": _interval(gap.mean(axis=2)),
                "slices": float(slices[method].mean()),
                "score_choice": _interval((values[method] - blind).mean(axis=2)),
            },
            "same_length": _same_length(values, slices, method, reference),
            "by_salt": values[method].mean(axis=1).round(6).tolist(),
        }
    return found


def contrasts(traces: Traces, pairs: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """By name, the mean difference of two methods along the stream, paired."""
    values = {method: _array(found, lambda one: one.values) for method, found in traces.items()}
    return {
        name: _interval((values[one] - values[other]).mean(axis=2))
        for name, (one, other) in pairs.items()
    }


def _array(found: Mapping[str, Sequence[Trace]], of: Callable[[Trace], Sequence[float]]) -> Any:
    """[salts, streams, deletions + 1]."""
    return np.array([[of(one) for one in streams] for streams in found.values()], dtype=float)


def _mean_cost(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Partitions differ a little in what they cost where a plan meets slices unequally often."""
    names = ("nodes", "sample_passes", "bytes")
    return {name: sum(one[name] for one in summaries) / len(summaries) for name in names}


def _interval(values: Any) -> dict[str, float | None]:
    """Mean and half of the 95 % interval of [salts, streams]; no interval from one salt."""
    per_salt = [float(mean) for mean in values.mean(axis=1)]
    if len(per_salt) < 2:
        return {"mean": per_salt[0], "half": None}
    low, high = interval(per_salt)
    return {"mean": (low + high) / 2, "half": (high - low) / 2}


def _same_length(
    values: Mapping[str, Any], slices: Mapping[str, Any], method: str, reference: str
) -> dict[str, float]:
    """Where the difference arises: in states that serve as many slices as the reference's, or not.

    ``difference_equal`` and ``difference_other`` add up to the mean difference.
    """
    gap = values[method] - values[reference]
    equal = slices[method] == slices[reference]
    return {
        "states_equal": float(equal.mean()),
        "difference_equal": float((gap * equal).mean()),
        "difference_other": float((gap * ~equal).mean()),
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the tables: the metric, the paired differences, and what is served."""
    scale = 100 if result["metric"] == "accuracy" else 1
    unit = "accuracy, %" if scale == 100 else "perplexity"
    print(
        f"{unit} on public test data; base alone {scale * result['base']:.2f}, "
        f"LoRA on all private data {scale * result['full_lora']:.2f}; "
        f"{len(result['salts'])} partitions × {result['streams']} streams, mean ± 95 %"
    )
    steps = [str(step) for step in result["steps"]]
    header = [*steps, f"mean 0–{steps[-1]}"]
    tables: dict[str, list[list[str]]] = {"metric": [], "difference": [], "served": []}
    for method, found in result["methods"].items():
        at, area = found["at"], found["area"]
        cost, share = found["cost"], found["share"]
        tables["metric"].append(
            [
                method,
                f"{cost['nodes']:.0f}",
                f"{100 * share['sample_passes']:.0f} %",
                f"{cost['bytes'] / 1e6:.1f} MB",
                *(_shown(point["value"], scale) for point in [*at, area]),
            ]
        )
        if method != result["reference"]:
            gaps = [_shown(point["difference"], scale, True) for point in [*at, area]]
            tables["difference"].append([method, *gaps])
        served = [f"{point['slices']:.1f} ({point['living']:.1f})" for point in at]
        chosen = _shown(area["score_choice"], scale, True)
        tables["served"].append([method, *served, f"{area['slices']:.2f}", chosen])
    print(table(["method", "nodes", "sample passes", "weights", *header], tables["metric"]))
    print(f"\npaired difference to {result['reference']}")
    print(table(["method", *header], tables["difference"]))
    print("\nslices served (shards that serve), and what choosing by validation score brings")
    print(table(["method", *header, "by score"], tables["served"]))
    print(f"\nwhat each choice brings, mean of 0–{steps[-1]} deletions")
    rows = [(name, _shown(found, scale, True)) for name, found in result["contrasts"].items()]
    print(table(["difference", unit], rows))
    service = result["service"]
    print(
        f"\nthrough the public service, one stream per method: {service['streams']} streams, "
        f"{len(service['different'])} differences"
    )
    for line in service["different"]:
        print(f"  {line}")


def _shown(found: Mapping[str, float | None], scale: float, signed: bool = False) -> str:
    mean, half = found["mean"], found["half"]
    assert mean is not None
    text = f"{scale * mean:+.2f}" if signed else f"{scale * mean:.2f}"
    return text if half is None else f"{text} ± {scale * half:.2f}"


def draw(figure: Any, result: Mapping[str, Any]) -> None:
    """Two panels: the metric along the deletions, and the paired difference to the reference."""
    left, right = figure.subplots(1, 2)
    scale = 100 if result["metric"] == "accuracy" else 1
    left.axhline(
        scale * result["full_lora"], color="grey", ls=":", label="LoRA on all, no deletion"
    )
    left.axhline(scale * result["base"], color="grey", ls="--", label="base alone")
    steps, methods = result["steps"], result["methods"]
    for number, (method, found) in enumerate(methods.items()):
        sisa = method.startswith("SISA")
        style = {"color": f"C{number}", "ls": "--" if sisa else "-", "marker": "s" if sisa else "o"}
        style["label"] = f"{method} ({100 * found['share']['sample_passes']:.0f} %)"
        shift = (number - len(methods) / 2) * 0.006 * max(steps)  # intervals beside each other
        for axis, name in ((left, "value"), (right, "difference")):
            if name == "difference" and method == result["reference"]:
                axis.axhline(0, color=style["color"], lw=1)
                continue
            points = [point[name] for point in found["at"]]
            axis.errorbar(
                [step + shift for step in steps],
                [scale * point["mean"] for point in points],
                yerr=[scale * (point["half"] or 0) for point in points],
                capsize=2,
                lw=1.2,
                ms=4,
                **style,
            )
    unit = "accuracy, %" if scale == 100 else "perplexity"
    left.set(xlabel="deletions, without retraining", ylabel=unit, title="public test data")
    right.set(xlabel="deletions, without retraining", ylabel=unit.replace("%", "points"))
    right.set_title(f"paired difference to {result['reference']}")
    left.legend(fontsize=7, title="share of cyclic's sample passes", title_fontsize=7)
