"""The same protection, bought in the authors' way and in ours.

    python -m benchmarks.engine.same_protection [--output DIR] [--quick] [--full] [--only TASK ...]

    theirs   cyclic with B = L, every sequence trained apart: L · L nodes a shard; Trainer + peft,
             node after node, on one core
    ours     the set tree of the least budget (in slice passes) that serves at least as much data
             along the horizon; ``s3t train``, a worker for each core

What is served is exact, under uniform deletions: one request per slice along the horizon, each
hitting a slot at random, the longest surviving prefix of each shard. The two differ in what is
trained and in how, so the factor is that of the plan times that of the engine. Time is that of the
nodes; set-up is told apart. As in ``same_plan`` the sides take turns, and the Trainer trains some
sequences and counts up, with ``--full`` all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.engine.baseline import chains, opened
from benchmarks.engine.runs import CORES, prepared, trained_anew
from benchmarks.engine.tasks import each_task, options
from benchmarks.environment import load_average, table
from benchmarks.reports import Report, shown, spread
from s3t.config import Config
from s3t.plan import Sequences, cyclic, prefixes
from s3t.plan.budget.horizon import along
from s3t.plan.strategies.brief import Brief, spent
from s3t.plan.strategies.registry import sequences_for
from s3t.plan.survival.lengths import expected_utility, length_law, length_table
from s3t.run import RunDir

__all__ = ["main", "run"]

NAMES = ("vit", "bert", "demo")
TARGET = 8.0
MOMENTS = 9


def run(
    output: Path,
    quick: bool,
    names: Sequence[str] = NAMES,
    repeats: int | None = None,
    full: bool = False,
) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("same_protection", output)
    repeats = repeats or (1 if quick else 3)
    sample = None if full else 1 if quick else 2
    found = each_task(
        names, quick, lambda name, config, folder: _measure(name, config, folder, repeats, sample)
    )
    measured = {name: one for name, one in found.items() if "skipped" not in one}
    print(f"\n{_protection_table(measured)}\n\n{_table(measured)}")
    result = {
        "quick": quick,
        "repeats": repeats,
        "cores": CORES,
        "sampled_sequences": sample or "all",
        "target": TARGET,
        "tasks": found,
    }
    return report.finish(result, lambda figure: _draw(figure, measured), (11, 4))


def _measure(
    name: str, config: Config, folder: Path, repeats: int, sample: int | None
) -> dict[str, Any]:
    budget, protection = _protection(config)
    ours = config.model_copy(
        update={"sequences": _tree(config, budget), "output": str(folder / "t")}
    )
    cyclic_run, _ = prepared(config)
    tree_run, _ = prepared(ours)
    baseline, peft_setup = opened(cyclic_run, folder / "scratch")
    leaves = chains(baseline.material, sample)
    turns: list[dict[str, Any]] = []
    for _ in range(repeats):
        load = load_average()
        engine = trained_anew(ours, "auto")
        trainer = baseline.train(leaves, "trainer", 1)
        turns.append(
            {
                "load_average": load,
                "seconds": {"trainer": trainer.plan_seconds, "engine": engine.nodes},
                "setup": {"trainer": peft_setup, "engine": engine.setup},
                "ratio": trainer.plan_seconds / engine.nodes,
                "ratio_with_setup": (trainer.plan_seconds + peft_setup)
                / (engine.nodes + engine.setup),
            }
        )
    found: dict[str, Any] = {
        "budget": budget,
        "protection": protection,
        "nodes": {"cyclic": len(cyclic_run.plan().forest), "tree": len(tree_run.plan().forest)},
        "sample_passes": {"cyclic": _passes(cyclic_run), "tree": _passes(tree_run)},
        "turns": turns,
        "seconds": {
            side: spread([turn["seconds"][side] for turn in turns])
            for side in ("trainer", "engine")
        },
        **{key: spread([turn[key] for turn in turns]) for key in ("ratio", "ratio_with_setup")},
    }
    print(f"{name}: {shown(found['ratio'])} times as fast, target {TARGET:g}", flush=True)
    return found


# ── protection ───────────────────────────────────────────────────────────────────────────────


def _protection(config: Config) -> tuple[int, dict[str, Any]]:
    """The least budget of a tree that serves what cyclic B = L serves, and what both serve."""
    shards, slices = config.partition.shards, config.partition.slices
    paid = tuple(float(stage) for stage in range(1, slices + 1))
    brief = Brief(slices, budget=sum(paid) * slices, costs=paid)
    rotations = cyclic(slices, slices)
    target = _served(brief, rotations)
    budget = next(
        budget
        for budget in range(1, int(brief.budget) + 1)
        if _served(brief, sequences_for("tree", replace(brief, budget=budget))) >= target - 1e-12
    )
    tree = sequences_for("tree", replace(brief, budget=budget))
    total = shards * slices
    moments = sorted({round(total * part / (MOMENTS - 1)) for part in range(MOMENTS)})
    rates = (1.0,) * slices
    plans = {"cyclic": rotations, "tree": tree}
    return budget, {
        name: {
            "served_along_horizon": _served(brief, sequences),
            "slice_passes": spent(sequences, paid),
            "sequences": [list(sequence) for sequence in sequences],
            "moments": [asdict(m) for m in along(shards, rates, sequences, moments).moments],
        }
        for name, sequences in plans.items()
    }


def _served(brief: Brief, sequences: Sequences) -> float:
    """Share of the data behind the answers, averaged over the horizon; exact."""
    table_of_lengths = length_table(prefixes(sequences), brief.slices)
    return expected_utility(length_law(table_of_lengths, brief.law), brief.worth)


def _tree(config: Config, budget: int) -> Any:
    """The default strategy with that budget, as a config would name it."""
    return type(config.sequences)(strategy="tree", unit="slice-passes", budget=budget)


def _passes(found: RunDir) -> int:
    return sum(node.passes for node in found.plan().forest)


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _protection_table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """What serves along the horizon; the same for all tasks, which are cut alike."""
    protection = next(iter(measured.values()))["protection"]
    rows = []
    for name, plan in protection.items():
        served = [f"{moment['slices_served']:.2f}" for moment in plan["moments"]]
        whole = f"{100 * plan['served_along_horizon']:.2f}"
        rows.append([name, f"{plan['slice_passes']:.0f}", whole, *served])
    requests = [f"r = {moment['requests']}" for moment in protection["cyclic"]["moments"]]
    return (
        "data served along the horizon, %, and slices served per shard after r requests, exact\n"
        + table(["plan", "slice passes", "served, %", *requests], rows)
    )


def _table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            name,
            f"{found['nodes']['cyclic']} / {found['nodes']['tree']}",
            f"{100 * found['sample_passes']['tree'] / found['sample_passes']['cyclic']:.0f}",
            shown(found["seconds"]["trainer"]),
            shown(found["seconds"]["engine"]),
            shown(found["ratio"]),
            shown(found["ratio_with_setup"]),
            f"{TARGET:g}",
        ]
        for name, found in measured.items()
    ]
    header = ["task", "nodes", "passes %", "Trainer + peft, s", f"engine, {CORES} cores, s"]
    return table([*header, "times as fast", "with set-up", "target"], rows)


def _draw(figure: Any, measured: Mapping[str, Mapping[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    protection = next(iter(measured.values()))["protection"]
    for (name, plan), style in zip(protection.items(), ("o-", "s--"), strict=True):
        moments = plan["moments"]
        label = f"{name}, {plan['slice_passes']:.0f} slice passes"
        served = [100 * moment["data_served"] for moment in moments]
        left.plot([moment["requests"] for moment in moments], served, style, ms=4, label=label)
    left.set(xlabel="requests", ylabel="data served, %", title="protection")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    for at, found in enumerate(measured.values()):
        ratio = found["ratio"]
        error = [[ratio["median"] - ratio["min"]], [ratio["max"] - ratio["median"]]]
        right.bar(at, ratio["median"], 0.6, yerr=error, color="C0")
    right.axhline(TARGET, color="C3", linestyle="--", label="target")
    right.set_xticks(range(len(measured)), list(measured))
    right.set(ylabel="times as fast", title=f"set tree on {CORES} cores : Trainer + peft, cyclic")
    right.legend(fontsize=8)


def main() -> int:
    """Run the benchmark."""
    parser = options(__doc__, NAMES)
    parser.add_argument("--full", action="store_true", help="the Trainer trains all nodes")
    asked = parser.parse_args()
    run(asked.output, asked.quick, asked.only, asked.repeats, asked.full)
    return 0


if __name__ == "__main__":
    sys.exit(main())
