"""TOFU's figures as tables and a picture: worth, what is still known of the deleted, costs."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.environment import median, table

__all__ = ["draw", "tables"]

_WHEN = {"before": "before all deletions", "after": "after its author's"}


def tables(result: Mapping[str, Any]) -> str:
    worth = [
        ["LoRA, all authors", *_worth(result["before"]["lora"])],
        ["S3T, all authors", *_worth(result["before"]["s3t"])],
    ]
    for count, point in result["checkpoints"].items():
        worth.append([f"LoRA trained without {count}", *_worth(point["retrained"])])
        worth.append([f"S3T, {count} deleted", *_worth(point["s3t"])])
    worth.append(["S3T, repaired", *_worth(result["repaired"]["s3t"])])
    header = ["", "retain ppl", "retain p", "holdout ppl", "real authors", "world facts"]
    return "\n\n".join([table(header, worth), _forgetting(result), _costs(result)])


def _worth(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{found['retain']['perplexity']:.2f}",
        f"{found['retain']['probability']:.3f}",
        f"{found['holdout']['perplexity']:.2f}",
        *(f"{found[name]['true_option']:.3f}" for name in ("real_authors", "world_facts")),
    ]


def _forgetting(result: Mapping[str, Any]) -> str:
    before, repaired = result["known_before"], result["repaired"]
    rows = [
        ["LoRA, all authors", *_known(before["lora"]), "–", "–"],
        ["S3T, all authors", *_known(before["s3t"]), "–", "–"],
    ]
    for count, point in result["checkpoints"].items():
        ratio, quality = point["truth_ratio"], point["forget_quality"]
        rows += [
            [
                f"LoRA without {count}",
                *_known(point["known"]["retrained"]),
                f"{ratio['retrained']:.3f}",
                "1 (the control)",
            ],
            [
                f"LoRA, {count} not deleted",
                *"–––",
                f"{ratio['lora']:.3f}",
                f"{quality['lora']:.2g}",
            ],
            [
                f"S3T, {count} deleted",
                *_known(point["known"]["s3t"]),
                f"{ratio['s3t']:.3f}",
                f"{quality['s3t']:.2g}",
            ],
        ]
    quality = repaired["forget_quality"]["repaired"]
    rows.append(
        [
            "S3T, repaired",
            *_known(repaired["known"]["s3t"]),
            f"{repaired['truth_ratio']:.3f}",
            f"{quality:.2g} (its own control)",
        ]
    )
    return table(
        ["of the deleted", "verbatim", "ROUGE-L", "p", "truth ratio", "forget quality (KS p)"], rows
    )


def _known(found: Mapping[str, float]) -> list[str]:
    return [f"{found['verbatim']:.2f}", f"{found['rouge']:.2f}", f"{found['probability']:.3f}"]


def _costs(result: Mapping[str, Any]) -> str:
    seconds = median([step["seconds"] for step in result["deletions"]])
    again = fmean(point["retrain_seconds"] for point in result["checkpoints"].values())
    repaired, trained = result["repaired"], result["training_seconds"]
    same = "the same bytes" if repaired["equal_bytes"] else "OTHER BYTES"
    return (
        f"training: S3T {trained['s3t']:.0f} s, one LoRA {trained['lora']:.0f} s\n"
        f"a deletion: S3T {seconds * 1000:.1f} ms (median), LoRA trained again {again:.0f} s: "
        f"{again / seconds:,.0f} times as long\n"
        f"repair after {len(result['deletions'])} deletions: {repaired['trained_by_repair']} of "
        f"{repaired['nodes']} nodes in {repaired['repair_seconds']:.0f} s; from scratch without "
        f"them {repaired['scratch_seconds']:.0f} s: {same}"
    )


def draw(figure: Any, result: Mapping[str, Any]) -> None:
    left, middle, right = figure.subplots(1, 3)
    steps = result["deletions"]
    places = range(1, len(steps) + 1)
    for axes, name, label in (
        (left, "verbatim", "answers that come out, 8 tokens"),
        (middle, "probability", "probability of a token of the answers"),
    ):
        for when, colour in (("before", "tab:red"), ("after", "tab:blue")):
            values = [step[when][name] for step in steps]
            axes.plot(places, values, "o-", color=colour, label=_WHEN[when])
        axes.set(xlabel="deletion", ylabel=label, ylim=(0, None))
        axes.legend()
    counts = [int(count) for count in result["checkpoints"]]
    for name, colour in (("s3t", "tab:blue"), ("retrained", "tab:gray")):
        points = result["checkpoints"].values()
        values = [point[name]["retain"]["perplexity"] for point in points]
        label = "S3T, not repaired" if name == "s3t" else "LoRA, trained again"
        right.plot(counts, values, "o-", color=colour, label=label)
    right.plot(
        counts[-1], result["repaired"]["s3t"]["retain"]["perplexity"], "b*", label="repaired"
    )
    right.set(xlabel="authors deleted", ylabel="perplexity of the answers that stay")
    right.legend()
