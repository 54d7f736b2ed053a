"""How close training comes to what the machine's matrix product reaches.

    python -m benchmarks.engine.limit [--output DIR] [--quick] [--only TASK ...] [--repeats N]

    share = operations that the plan needs at least / what one core's matrix product reaches / time

One process of one thread; time is that of the nodes (set-up apart). The operations are counted by
``operations.py``; scoring the nodes on the validation set, which the engine does within that time,
is counted apart and gives a second share. What the matrix product reaches is measured in the same
run, right before and after each training: on the shapes of the model's own linear maps, weighted by
their operations, with the rows of one batch and of eight, the better of the two; and on 1,024³.
That is measured in CPU seconds: others who take the core away then make us look worse, never
better, and the share in our own CPU seconds tells how much of it was their doing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.operations import LayerShape, Work, plan_operations, scoring_operations
from benchmarks.engine.runs import Timed, fresh_base, prepared, scores_by_stage, trained_anew
from benchmarks.engine.tasks import NAMES, each_task, options
from benchmarks.environment import table
from benchmarks.reports import Report, shown, spread
from s3t.config import Config
from s3t.model.determinism import one_thread
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.prepared import Prepared

__all__ = ["main", "run"]

TARGETS = {"vit": 0.60, "bert": 0.85}
SQUARE = 1024
SECONDS = 0.15
"""Of one measurement of one matrix product."""


def run(
    output: Path, quick: bool, names: Sequence[str] = NAMES, repeats: int | None = None
) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    report = Report("limit", output)
    repeats = repeats or (1 if quick else 3)
    found = each_task(names, quick, lambda name, config, _: _measure(name, config, repeats))
    measured = {name: one for name, one in found.items() if "skipped" not in one}
    print(f"\n{_table(measured)}")
    result = {"quick": quick, "repeats": repeats, "tasks": found}
    return report.finish(result, lambda figure: _draw(figure, measured), (9, 4))


def _measure(name: str, config: Config, repeats: int) -> dict[str, Any]:
    run, _ = prepared(config)
    with one_thread(torch.device("cpu")):
        material = load_prepared(run, torch.device("cpu"))
        work, operations = _operations(material)
        shapes = list(_products(work, config.stage.batch_size))
        del material
        trainings = []
        for _ in range(repeats):
            before = _rates(shapes)
            timed = trained_anew(config, 1)
            after = _rates(shapes)
            trainings.append(_training(operations, timed, before, after))
    found = {
        "operations": operations,
        "work": {"tokens": work.tokens, "blocks": list(work.blocks), "shape": asdict(work.shape)},
        "nodes": len(run.plan().forest),
        "score_by_stage": scores_by_stage(run),
        "trainings": trainings,
        "target": TARGETS.get(name),
        **{
            key: spread([one[key] for one in trainings])
            for key in ("seconds", "share", "share_with_scores", "share_of_cpu", "share_of_square")
        },
    }
    print(_sentence(name, found), flush=True)
    return found


def _operations(material: Prepared) -> tuple[Work, dict[str, int]]:
    """What one sample costs, and the operations of the whole plan and of scoring its nodes."""
    config, base = material.config, material.base
    with torch.no_grad():
        tokens = int(base.start(material.private.rows.rows(slice(0, 1))).shape[1])
    frozen_head = base.lm_head is not None
    classes = int(base.model.config.vocab_size) if frozen_head else material.classes
    model, layers = fresh_base(material)
    adapted = {target.path for target in base.targets}
    work = Work(
        shape=LayerShape.of(
            model.get_submodule(f"{layers}.0"), adapted, config.lora.rank, base.causal
        ),
        blocks=[tuple(block) for block in material.plan.recipe["blocks"]],
        depth=base.depth,
        tokens=tokens,
        one_position=not frozen_head and base.pooling != "mean",
        head=base.hidden_size * classes,
        frozen_head=frozen_head,
    )
    nodes = material.plan.forest.nodes
    found = plan_operations(work, nodes, len(material.private), config.stage.epochs)
    return work, found | {"scores": scoring_operations(work, nodes, len(material.validation))}


def _training(
    operations: dict[str, int], timed: Timed, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """One training: the rates of the machine are means of those before and after it."""
    rates = {kind: (before[kind] + after[kind]) / 2 for kind in before}
    needed, seconds = operations["all"], timed.nodes
    return {
        "seconds": seconds,
        "cpu_seconds": timed.nodes_cpu,
        "setup_seconds": timed.setup,
        "gigaflops_reached": needed / seconds / 1e9,
        "gigaflops_model": rates["model"] / 1e9,
        "gigaflops_square": rates["square"] / 1e9,
        "share": needed / rates["model"] / seconds,
        "share_with_scores": (needed + operations["scores"]) / rates["model"] / seconds,
        "share_of_cpu": needed / rates["model"] / timed.nodes_cpu,
        "share_of_square": needed / rates["square"] / seconds,
    }


# ── what the machine reaches ─────────────────────────────────────────────────────────────────


Product = tuple[int, int, int]
"""Rows, inputs and outputs."""


def _products(work: Work, batch: int) -> Iterator[Product]:
    """The products of one layer with the rows of one batch."""
    for one in work.shape.linears:
        yield (batch * work.tokens, one.inputs, one.outputs)


def _rates(products: Sequence[Product]) -> dict[str, float]:
    """Operations per second of the model's products, and of a large square one."""
    square = (SQUARE, SQUARE, SQUARE)
    model = max(_rate([(rows * times, *sizes) for rows, *sizes in products]) for times in (1, 8))
    return {"model": model, "square": _rate([square])}


def _rate(products: Sequence[tuple[int, ...]]) -> float:
    """Operations over time of some products, each as often as the others."""
    needed, seconds = 0, 0.0
    timed: dict[tuple[int, ...], float] = {}
    for product in products:
        if product not in timed:
            timed[product] = _seconds(*product)
        needed += 2 * product[0] * product[1] * product[2]
        seconds += timed[product]
    return needed / seconds


def _seconds(rows: int, inputs: int, outputs: int) -> float:
    """CPU seconds of one ``torch.mm``, the fastest of three series."""
    a, b = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    out = torch.mm(a, b)
    best = float("inf")
    for _ in range(3):
        count, started = 0, time.process_time()
        while time.process_time() - started < SECONDS / 3:
            torch.mm(a, b, out=out)
            count += 1
        best = min(best, (time.process_time() - started) / count)
    return best


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _sentence(name: str, found: dict[str, Any]) -> str:
    share, seconds, target = found["share"], found["seconds"], found["target"]
    wanted = f", target {100 * target:.0f} %" if target else ""
    return (
        f"{name}: {found['nodes']} nodes in {seconds['median']:.1f} s on one process, "
        f"{found['operations']['all'] / 1e9:,.0f} GFLOP needed: "
        f"{100 * share['median']:.0f} % of the limit{wanted}"
    )


def _table(measured: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in measured.items():
        last = found["trainings"][-1]
        rows.append(
            [
                name,
                f"{found['operations']['all'] / 1e9:,.0f}",
                f"{last['gigaflops_model']:.0f}",
                f"{last['gigaflops_square']:.0f}",
                shown(found["seconds"], ".1f"),
                shown(found["share"], ".0f", 100),
                shown(found["share_with_scores"], ".0f", 100),
                shown(found["share_of_cpu"], ".0f", 100),
                shown(found["share_of_square"], ".0f", 100),
                f"{100 * found['target']:.0f}" if found["target"] else "",
            ]
        )
    header = ["task", "GFLOP", "GFLOP/s", "square", "nodes, s", "share %", "with scores %"]
    return table([*header, "in CPU s %", "of square %", "target %"], rows)


def _draw(figure: Any, measured: dict[str, dict[str, Any]]) -> None:
    panel = figure.subplots()
    names = list(measured)
    at = range(len(names))
    for offset, key, label in (
        (-0.2, "share", "of the matrix product on the model's shapes"),
        (0.2, "share_of_square", f"of the product of {SQUARE}³"),
    ):
        values = [100 * measured[name][key]["median"] for name in names]
        panel.bar([x + offset for x in at], values, 0.38, label=label)
    for x, name in enumerate(names):
        if measured[name]["target"]:
            level = 100 * measured[name]["target"]
            panel.plot([x - 0.4, x + 0.4], [level, level], "k--", label="target" if x == 0 else "")
    panel.set_xticks(list(at), names)
    panel.set(ylabel="% of the limit", title="operations needed / machine's rate / time, one core")
    panel.set_ylim(0, 100)
    panel.legend(fontsize=8)


def main() -> int:
    """Run the benchmark."""
    asked = options(__doc__, NAMES).parse_args()
    run(asked.output, asked.quick, asked.only, asked.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
