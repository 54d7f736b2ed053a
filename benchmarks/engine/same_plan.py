"""The same plan trained in the authors' way and by the engine.

    python -m benchmarks.engine.same_plan [--output DIR] [--quick] [--full] [--only TASK ...]

    trainer    Hugging Face's Trainer + peft, one model per node, node after node, one thread
    threads    the same with as many torch threads as there are cores
    loop       the same models in a plain PyTorch loop, one thread
    engine 1   ``s3t train`` with training.workers=1
    engine     ``s3t train`` with training.workers=auto, a worker for each core

All sides train on the same rows, with the same batches per step, steps, rates and adapters, over
one base, and take turns in one run; ratios are within one turn, figures are medians of turns. Time
is that of the nodes; set-up (imports, loading, starting workers, building models) is told apart.
CPU seconds show what others on the machine, who slow down waiting threads most, did to a ratio.
The engine scores every node on the validation set within its time, the others do not.

To stay in time the peft sides train the nodes of a fixed sample of sequences, one node per stage
each, and count: seconds per step of a stage × steps of all its nodes. With ``--full`` they train
all nodes. Scores of those nodes on both sides show that they learn the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.baseline import TrainedChains, chains, opened
from benchmarks.engine.runs import CORES, import_seconds, prepared, trained_anew
from benchmarks.engine.tasks import NAMES, each_task, options
from benchmarks.environment import load_average, table
from benchmarks.reports import Report, shown, spread
from s3t.config import Config
from s3t.run import RunDir
from s3t.types import NodeKey

__all__ = ["main", "run"]

TARGETS = {"vit": 5.0, "bert": 3.5, "demo": 9.0}
"""Trainer + peft on one core over the engine on two."""

LABELS = {
    "trainer": "Trainer + peft, 1 thread",
    "threads": f"Trainer + peft, {CORES} threads",
    "loop": "plain loop + peft, 1 thread",
    "engine 1": "engine, 1 worker",
    "engine": f"engine, {CORES} workers",
}
PEFT_SIDES = {"trainer": ("trainer", 1), "threads": ("trainer", CORES), "loop": ("loop", 1)}
ENGINE_SIDES: Mapping[str, int | str] = {"engine 1": 1, "engine": "auto"}
RATIOS = {
    "trainer / engine": ("trainer", "engine"),
    "threads / engine": ("threads", "engine"),
    "trainer / engine 1": ("trainer", "engine 1"),
    "loop / engine 1": ("loop", "engine 1"),
    "loop / engine": ("loop", "engine"),
}
IMPORTS = {
    "peft": "import torch, peft; from transformers import AutoModel, Trainer, TrainingArguments",
    "engine": "from s3t.config import load_config; from s3t.training.work.train import train",
}


def run(
    output: Path,
    quick: bool,
    names: Sequence[str] = NAMES,
    repeats: int | None = None,
    full: bool = False,
) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("same_plan", output)
    repeats = repeats or (1 if quick else 3)
    sample = None if full else 1 if quick else 2
    imports = {side: import_seconds(statement) for side, statement in IMPORTS.items()}
    found = each_task(
        names,
        quick,
        lambda name, config, folder: _measure(name, config, folder, repeats, sample),
    )
    measured = {name: one for name, one in found.items() if "skipped" not in one}
    print(f"\n{_table(measured)}\n\n{_details(measured, imports, sample)}")
    result = {
        "quick": quick,
        "repeats": repeats,
        "cores": CORES,
        "sampled_sequences": sample or "all",
        "import_seconds": imports,
        "tasks": found,
    }
    return report.finish(result, lambda figure: _draw(figure, measured), (11, 4))


def _measure(
    name: str, config: Config, folder: Path, repeats: int, sample: int | None
) -> dict[str, Any]:
    plan_run, prepare_seconds = prepared(config)
    baseline, peft_setup = opened(plan_run, folder / "scratch")
    leaves = chains(baseline.material, sample)
    turns = []
    for _ in range(repeats):
        turn: dict[str, Any] = {"load_average": load_average()}
        turn |= {"seconds": {}, "cpu_seconds": {}, "setup": {}}
        for side, workers in ENGINE_SIDES.items():
            timed = trained_anew(config, workers)
            turn["seconds"][side], turn["setup"][side] = timed.nodes, timed.setup
            turn["cpu_seconds"][side] = timed.nodes_cpu if timed.workers == 1 else None
        for side, (way, threads) in PEFT_SIDES.items():
            trained = baseline.train(leaves, way, threads)
            turn["seconds"][side], turn["setup"][side] = trained.plan_seconds, peft_setup
            turn["cpu_seconds"][side] = trained.plan_cpu
            turn[side] = _sampled(trained, plan_run)
        turns.append(turn)
    found = {
        "nodes": len(plan_run.plan().forest),
        "sampled_nodes": turns[0]["trainer"]["nodes"],
        "prepare_seconds": prepare_seconds,
        "turns": turns,
        "seconds": {
            side: spread([turn["seconds"][side] for turn in turns])
            for side in (*PEFT_SIDES, *ENGINE_SIDES)
        },
        "ratios": {
            ratio: spread([turn["seconds"][slow] / turn["seconds"][fast] for turn in turns])
            for ratio, (slow, fast) in RATIOS.items()
        },
        "ratio_with_setup": spread(
            [_whole(turn, "trainer") / _whole(turn, "engine") for turn in turns]
        ),
        "ratio_in_cpu_seconds": spread(
            [turn["cpu_seconds"]["trainer"] / turn["cpu_seconds"]["engine 1"] for turn in turns]
        ),
        "target": TARGETS.get(name),
    }
    print(_sentence(name, found), flush=True)
    return found


def _whole(turn: Mapping[str, Any], side: str) -> float:
    """Seconds of set-up (imports apart) and nodes."""
    return float(turn["setup"][side] + turn["seconds"][side])


def _sampled(trained: TrainedChains, plan_run: RunDir) -> dict[str, Any]:
    """What a peft side trained in truth, and the scores of those nodes on both sides."""
    last = max(trained.steps)

    def mean(scores: Mapping[NodeKey, float]) -> float:
        return sum(scores.values()) / len(scores)

    forest, store = plan_run.plan().forest, plan_run.store
    theirs = trained.score_by_key
    whole = {key: score for key, score in theirs.items() if forest[key].stage == last}
    return {
        "nodes": trained.nodes,
        "seconds_by_stage": trained.seconds,
        "steps_by_stage": trained.steps,
        "score": mean(theirs),
        "engine_score": mean({key: store.meta(key).score for key in theirs}),
        "last_stage_score": mean(whole),
        "engine_last_stage_score": mean({key: store.meta(key).score for key in whole}),
    }


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _sentence(name: str, found: Mapping[str, Any]) -> str:
    ratio, target = found["ratios"]["trainer / engine"], found["target"]
    wanted = f", target {target:g}" if target else ""
    return f"{name}: {found['nodes']} nodes, Trainer / engine {shown(ratio, '.1f')}{wanted}"


def _table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, found in measured.items():
        seconds = [shown(found["seconds"][side], ".1f") for side in (*PEFT_SIDES, *ENGINE_SIDES)]
        ratios = [shown(found["ratios"][ratio], ".2f") for ratio in RATIOS]
        target = f"{found['target']:g}" if found["target"] else ""
        rows.append([name, *seconds, *ratios, target])
    sides = [f"{side}, s" for side in (*PEFT_SIDES, *ENGINE_SIDES)]
    return table(["task", *sides, *RATIOS, "target"], rows)


def _details(
    measured: Mapping[str, Mapping[str, Any]], imports: Mapping[str, float], sample: int | None
) -> str:
    lines = [
        f"{CORES} cores; imports: peft sides {imports['peft']:.1f} s, engine "
        f"{imports['engine']:.1f} s (each worker too); "
        + (f"peft sides trained {sample} sequences, counted up by steps" if sample else "in full")
    ]
    for name, found in measured.items():
        turn = found["turns"][-1]
        scores = turn["trainer"]
        lines.append(
            f"{name}: preparing {found['prepare_seconds']:.1f} s; set-up peft "
            f"{turn['setup']['trainer']:.1f} s, engine {turn['setup']['engine']:.1f} s (1 worker "
            f"{turn['setup']['engine 1']:.1f} s); ratio with set-up "
            f"{shown(found['ratio_with_setup'], '.2f')}, one core in CPU seconds "
            f"{shown(found['ratio_in_cpu_seconds'], '.2f')}; score of {scores['nodes']} nodes: "
            f"Trainer {scores['score']:.3f}, engine {scores['engine_score']:.3f}; of the last "
            f"stage {scores['last_stage_score']:.3f}, {scores['engine_last_stage_score']:.3f}"
        )
    return "\n".join(lines)


def _draw(figure: Any, measured: Mapping[str, Mapping[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    names, sides = list(measured), (*PEFT_SIDES, *ENGINE_SIDES)
    width = 0.8 / len(sides)
    for number, side in enumerate(sides):
        values = [
            measured[name]["seconds"][side]["median"]
            / measured[name]["seconds"]["trainer"]["median"]
            for name in names
        ]
        left.bar(
            [at + number * width for at in range(len(names))], values, width, label=LABELS[side]
        )
    left.set_xticks([at + 0.4 - width / 2 for at in range(len(names))], names)
    left.set(ylabel="time of the nodes, Trainer = 1", title="64 nodes, one plan")
    left.legend(fontsize=7)
    for at, name in enumerate(names):
        ratio, target = measured[name]["ratios"]["trainer / engine"], measured[name]["target"]
        error = [[ratio["median"] - ratio["min"]], [ratio["max"] - ratio["median"]]]
        right.bar(at, ratio["median"], 0.6, yerr=error, color="C0")
        if target:
            right.plot([at - 0.4, at + 0.4], [target, target], "k--")
    right.set_xticks(range(len(names)), names)
    right.set(ylabel="times as fast", title=f"engine on {CORES} cores : Trainer + peft on one")


def main() -> int:
    """Run the benchmark."""
    parser = options(__doc__, NAMES)
    parser.add_argument("--full", action="store_true", help="the peft sides train all nodes")
    asked = parser.parse_args()
    run(asked.output, asked.quick, asked.only, asked.repeats, asked.full)
    return 0


if __name__ == "__main__":
    sys.exit(main())
