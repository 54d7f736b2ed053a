"""The comparison as a table and a picture."""

from __future__ import annotations

from typing import Any

from benchmarks.environment import table

__all__ = ["draw", "show"]

_HEADER = (
    "method",
    "nodes",
    "weights",
    "of these per deletion",
    "of the whole model",
    "passes of its training",
    "of one LoRA's",
    "seconds of its training",
    "of one LoRA's ",
    "accuracy",
    "after 16",
    "half gone",
    "repaired",
)


def show(result: dict[str, Any]) -> None:
    """Print the table: what a random deletion makes necessary again, and accuracies."""
    rows = []
    for name, found in result["methods"].items():
        each, halved = found["per_deletion"], found["halved"]
        by_step = dict(zip(found["steps"], found["accuracy"], strict=True))
        rows.append(
            (
                name,
                found["nodes"],
                f"{found['trainable']:,}",
                f"{each['share_of_trainable']:.1%}",
                f"{each['share_of_model']:.2%}",
                f"{each['passes_of_own']:.1%}",
                f"{each['passes_of_one_lora']:.1%}",
                f"{each['seconds_of_own']:.1%}",
                f"{each['seconds_of_one_lora']:.1%}",
                f"{by_step[0]:.3f}",
                f"{by_step[16]:.3f}",
                f"{halved['without_repair']:.3f}",
                f"{halved['repaired']:.3f}",
            )
        )
    print(table(_HEADER, rows))
    alone = f"accuracy {result['base_accuracy']:.3f} with a head of public data"
    print(
        f"base, which answers where nothing else does: {result['base_numbers']:,} weights, {alone}"
    )


def draw(figure: Any, result: dict[str, Any]) -> None:
    """Left: accuracy along deletions, nothing retrained, and repaired. Right: what one costs."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    methods = result["methods"]
    for name, found in methods.items():
        steps = [max(step, 0.5) for step in found["steps"]]
        (line,) = left.plot(steps, found["accuracy"], marker="o", markersize=3, label=name)
        left.plot(steps[-1], found["halved"]["repaired"], "*", color=line.get_color(), markersize=9)
    left.set_xscale("log")
    ticks = next(iter(methods.values()))["steps"]
    left.set_xticks([max(step, 0.5) for step in ticks], [str(step) for step in ticks])
    left.minorticks_off()
    left.set_xlabel("deletions, nothing retrained; ★ half of all deleted, then repaired")
    left.set_ylabel("accuracy")
    left.legend(fontsize="small")
    names, high = list(methods), 0.4
    for at, (key, label) in enumerate(
        (("passes_of_own", "of its own training"), ("passes_of_one_lora", "of one LoRA's"))
    ):
        shares = [100 * methods[name]["per_deletion"][key] for name in names]
        right.barh(
            [row + (at - 0.5) * high for row in range(len(names))], shares, high, label=label
        )
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_xlabel("sample passes to repair one random deletion, %")
    right.legend(fontsize="small")
