"""All methods on one task: trained, asked to forget, measured before and after.

    base ─► LoRA on all rows ─► each approximate method, on a copy
        ─► LoRA on the rest, seed 1: the control        seed 2: the full retrain
        ─► SISA ─► delete           ─► S3T ─► deactivate

    training   of one core, before any deletion
    deletion   from the request until nothing answers any more with what has seen the rows; of an
               approximate method with its chosen setting, the search not counted
    halted     what cannot answer meanwhile, unless with weights that have seen the rows
    persons    who can be deleted before all must be trained again: S3T's forecast, median (p5–p95);
               SISA trains some stages again for each; the approximate methods promise nothing

Invariant: every row of the table is measured on the same rows, against the same control.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.forgetting.learner import Learner, fit
from benchmarks.forgetting.measures import Figures, Reference, measured, reference_of
from benchmarks.forgetting.methods import METHODS, Method
from benchmarks.forgetting.rows import Task
from benchmarks.forgetting.served import Served
from benchmarks.forgetting.sisa import Sisa
from benchmarks.forgetting.tuning import tuned
from benchmarks.reports import Report

__all__ = ["compare"]

_ALL, _CONTROL, _AGAIN = 0, 1, 2
"""Seeds of the fine-tunes: of all rows, of the rest, and of the rest once more."""

Result = dict[str, Any]


def compare(task: Task, output: Path, quick: bool) -> dict[str, Any]:
    """Run all methods on a task, print the table, write JSON and picture.

    Args:
        task: what to compare on.
        output: folder of the results.
        quick: fewer settings for the approximate methods.
    """
    report = Report(task.name, output)
    print(f"{task.name}: {task.what}", flush=True)
    learner = Learner(task.base, task.recipe)
    control_seconds = _trained(learner, task, _CONTROL)
    reference = reference_of(learner.logits, task)
    results = [
        _result(
            "never-trained control", "is the control", measured(learner.logits, task, reference)
        )
        | {"training_seconds": control_seconds}
    ]
    results += _monolithic(learner, task, reference, quick)
    results += [_sisa(learner, task, reference), _s3t(task, reference)]
    print(f"\n{_table(task, results)}\n", flush=True)
    found = {"quick": quick, "task": _described(task), "results": results}
    return report.finish(found, lambda figure: _draw(figure, task, results), (15, 5))


# ── methods ──────────────────────────────────────────────────────────────────────────────────


def _monolithic(learner: Learner, task: Task, reference: Reference, quick: bool) -> list[Result]:
    """One adapter for all rows: before, retrained, and changed by each approximate method."""
    training = _trained(learner, task, _ALL)
    before, state = measured(learner.logits, task, reference), learner.state()
    results = [_result("LoRA on all rows", "nothing forgotten", before)]
    results[0]["training_seconds"] = training
    seconds = _trained(learner, task, _AGAIN)
    after = measured(learner.logits, task, reference)
    retrained = _result("full retrain", "exact", after, before, seconds, halted="yes", served="0")
    results.append(retrained | {"training_seconds": training})
    for method in METHODS:
        result = _approximate(method, learner, state, before, task, reference, quick)
        results.append(result | {"training_seconds": training})
    return results


def _approximate(
    method: Method,
    learner: Learner,
    state: Mapping[str, Any],
    before: Figures,
    task: Task,
    reference: Reference,
    quick: bool,
) -> Result:
    settings = method.quick if quick else method.grid
    chosen = tuned(method, learner, state, task, settings)
    learner.load(chosen.state)
    after = measured(learner.logits, task, reference)
    result = _result(method.label, "none", after, before, chosen.seconds, halted="yes")
    return result | {
        "source": method.source,
        "setting": dict(chosen.setting),
        "grid": [dict(setting) for setting in settings],
        "search_seconds": chosen.search_seconds,
        "distance": chosen.distance,
    }


def _sisa(learner: Learner, task: Task, reference: Reference) -> Result:
    started = time.perf_counter()
    shards = Sisa(learner, task)
    training = time.perf_counter() - started
    before = measured(shards.logits, task, reference)
    started = time.perf_counter()
    stages = shards.delete(task.deleted)
    seconds = time.perf_counter() - started
    after = measured(shards.logits, task, reference)
    halted, served = "shards hit", "each retrains"
    return _result("SISA with PEFT", "exact", after, before, seconds, halted, served) | {
        "source": "arXiv 1912.03817",
        "stages_retrained": stages,
        "training_seconds": training,
    }


def _s3t(task: Task, reference: Reference) -> Result:
    with tempfile.TemporaryDirectory(prefix="s3t-forgetting-") as folder:
        started = time.perf_counter()
        served = Served(task, Path(folder))
        training = time.perf_counter() - started
        try:
            outlook, prefixes = served.outlook(), served.prefixes()
            before = measured(served.logits, task, reference)
            receipt = served.delete(task.deleted)
            after, left = measured(served.logits, task, reference), served.prefixes()
        finally:
            served.close()
    assert outlook is not None
    persons = f"{outlook.p50:.0f} ({outlook.p5:.0f}–{outlook.p95:.0f})"
    return _result("S3T", "exact", after, before, receipt.seconds, "no", persons) | {
        "source": "arXiv 2406.16257",
        "prefixes_before": prefixes,
        "prefixes_after": left,
        "nodes_dead": len(receipt.nodes_dead),
        "persons_until_exhausted": outlook.to_dict(None)["requests"],
        "training_seconds": training,
    }


def _trained(learner: Learner, task: Task, seed: int) -> float:
    """Fine-tune a fresh adapter, on all rows or on the rest; returns the seconds."""
    rows = task.private if seed == _ALL else task.rest
    started = time.perf_counter()
    learner.fresh(seed)
    fit(learner, rows, task.recipe, seed)
    return time.perf_counter() - started


def _result(
    label: str,
    guarantee: str,
    after: Figures,
    before: Figures | None = None,
    seconds: float | None = None,
    halted: str = "–",
    served: str = "–",
) -> Result:
    print(f"  {label}: {'' if seconds is None else f'{seconds:.3g} s'}", flush=True)
    return {
        "method": label,
        "guarantee": guarantee,
        "before": before and before.to_dict(),
        "after": after.to_dict(),
        "seconds": seconds,
        "halted": halted,
        "persons_until_full_retrain": served,
    }


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _table(task: Task, results: list[Result]) -> str:
    header = [
        "method",
        "exact",
        f"verbatim {task.prompt}→{task.answer}, %",
        "unseen, %",
        "AUC, loss",
        "AUC, against control",
        "accuracy, %",
        "test loss",
        "rest loss",
        "training, s",
        "deletion, s",
        "persons until full retrain",
        "halted",
    ]
    return table(header, [_cells(result) for result in results])


def _cells(result: Result) -> list[object]:
    after, before = result["after"], result["before"]

    def moved(value: Callable[[Mapping[str, Any]], float], form: str) -> str:
        now = f"{value(after):{form}}"
        return now if before is None else f"{value(before):{form}} → {now}"

    return [
        result["method"],
        {"exact": "yes", "none": "no"}.get(result["guarantee"], "–"),
        moved(_extracted, ".0f"),
        f"{100 * after['verbatim_others']['share']:.0f}",
        _area(after["loss"]),
        _area(after["reference"]),
        moved(_accurate, ".1f"),
        f"{after['test_loss']:.2f}",
        f"{after['rest_loss']:.2f}",
        _seconds(result["training_seconds"]),
        _seconds(result["seconds"]),
        result["persons_until_full_retrain"],
        result["halted"],
    ]


def _seconds(value: float | None) -> str:
    """Two digits, or all before the point."""
    return "–" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _extracted(figures: Mapping[str, Any]) -> float:
    """Deleted rows that come out verbatim, %."""
    return 100.0 * float(figures["verbatim"]["share"])


def _accurate(figures: Mapping[str, Any]) -> float:
    """Accuracy on public rows, %."""
    return 100.0 * float(figures["accuracy"])


def _area(found: Mapping[str, Any]) -> str:
    return f"{found['auc']:.2f} ({found['auc_low']:.2f}–{found['auc_high']:.2f})"


def _described(task: Task) -> dict[str, Any]:
    """The task as JSON values."""
    return {
        "name": task.name,
        "what": task.what,
        "rows": {
            "private": len(task.private),
            "deleted": len(task.forget),
            "others": len(task.others),
            "test": len(task.test),
        },
        "persons": {"private": len({*task.private.persons}), "deleted": len(task.deleted)},
        "prompt": task.prompt,
        "answer": task.answer,
        "attacks_count": "persons" if task.by_person else "rows",
        "recipe": vars(task.recipe),
        "shape": vars(task.shape),
    }


def _draw(figure: Any, task: Task, results: list[Result]) -> None:
    """Four panels over the methods: verbatim, attack, accuracy, seconds."""
    left, middle, right, last = figure.subplots(1, 4, sharey=True)
    places = range(len(results), 0, -1)
    for place, result in zip(places, results, strict=True):
        after, before = result["after"], result["before"]
        colour = {"exact": "C0", "none": "C1"}.get(result["guarantee"], "0.5")
        for panel, value in ((left, _extracted), (right, _accurate)):
            if before is not None:
                panel.plot(value(before), place, "|", color="0.6", ms=14)
            panel.barh(place, value(after), 0.6, color=colour)
        found = after["loss"]
        reach = [[found["auc"] - found["auc_low"]], [found["auc_high"] - found["auc"]]]
        middle.errorbar(found["auc"], place, xerr=reach, fmt="o", color=colour, capsize=3)
        if result["seconds"]:
            last.plot(result["seconds"], place, "o", color=colour)
    middle.axvline(0.5, color="0.5", linestyle="--")
    middle.set(xlabel="AUC of the loss attack; 0.5: never trained", xlim=(0, 1))
    left.set(xlabel="deleted rows extracted verbatim, % (| before)", xlim=(0, 100))
    right.set(xlabel="accuracy on public rows, % (| before)", xlim=(0, 100))
    last.set(xlabel="seconds for the deletion", xscale="log")
    left.set_yticks([*places], [result["method"] for result in results])
    figure.suptitle(f"{task.name}: blue exact, orange approximate", fontsize=11)
