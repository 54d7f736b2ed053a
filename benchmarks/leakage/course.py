"""The course of a run: trained, hit by deletions, attacked, purged, repaired, attacked again.

                 deleted ───────────────► purged ──► repaired
    attacked     before │ after │ control            repaired │ (before)
    dead nodes   there                    gone

Invariant: what is attacked after the repair is held against the control that was trained from
nothing at the first attack: on a run repaired exactly all figures are the same to the last digit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import table
from benchmarks.reports import Report
from s3t import S3T
from s3t.audit.audited_run import AuditedRun
from s3t.audit.leakage.leakage import leakage
from s3t.audit.leakage.membership import Attack
from s3t.audit.leakage.report import Leakage, ModelLeakage
from s3t.audit.leakage.snapshots import dead_nodes
from s3t.config import Config
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train

__all__ = ["Course", "follow"]

_NAMES = ("before", "deleted", "repaired", "control")
_COLOURS = ("tab:red", "tab:blue", "tab:green", "tab:gray")


@dataclass(frozen=True)
class Course:
    """What is done to a run.

    Attributes:
        name: of the task.
        what: what is trained on what, in a sentence.
        config: of the run.
        slices: those of shard 0 whose samples are deleted; a prefix must survive them.
        spared: samples of each of them that are left, as neighbours of the deleted.
    """

    name: str
    what: str
    config: Config
    slices: tuple[int, ...]
    spared: int


def follow(course: Course, output: Path) -> dict[str, Any]:
    """Go through it, print the table, draw; returns what the JSON holds."""
    report, started = Report(course.name, output), time.monotonic()
    print(course.what, flush=True)
    run = RunDir(course.config.run_dir)
    shutil.rmtree(run.root, ignore_errors=True)
    train(course.config)
    values, ids = [], _asking(run, course)
    with S3T.load(run.root) as service:
        values.append(service.evaluate().to_dict())
        service.deactivate(ids)
        values.append(service.evaluate().to_dict())
    deleted = leakage(run, on_step=_say)
    there = len(dead_nodes(AuditedRun(run)))
    purge(run)
    left = len(dead_nodes(AuditedRun(run)))
    train(course.config, replan=Replan())
    with S3T.load(run.root) as service:
        values.append(service.evaluate().to_dict())
    repaired = leakage(run, on_step=_say)
    states = _states(deleted, repaired)
    same = _figures(states["repaired"]) == _figures(states["control"])
    result = {
        "what": course.what,
        "deleted_samples": len(ids),
        "served": dict(zip(("before", "deleted", "repaired"), values, strict=True)),
        "deleted": deleted.to_dict(),
        "repaired": repaired.to_dict(),
        "repaired_is_control": same,
        "dead_nodes": {"before_purge": there, "after_purge": left},
        "seconds": round(time.monotonic() - started, 1),
    }
    _show(states, deleted, repaired)
    print(f"the repaired run's figures are the control's to the last digit: {same}")
    print(f"dead nodes in the store: {there} before s3t purge, {left} after it", flush=True)
    return report.finish(result, lambda figure: _draw(figure, states))


def _asking(run: RunDir, course: Course) -> list[str]:
    """Ids of the samples that are deleted, all in one request."""
    ids: list[str] = []
    with run.ledger() as ledger:
        for part in course.slices:
            held = [str(entry.sample_id) for entry in ledger.samples(slot=(0, part))]
            ids += held[course.spared :]
    return ids


def _states(deleted: Leakage, repaired: Leakage) -> Mapping[str, ModelLeakage]:
    assert deleted.after is not None and repaired.after is not None
    found = (deleted.before, deleted.after, repaired.after, deleted.control)
    return dict(zip(_NAMES, found, strict=True))


def _figures(state: ModelLeakage) -> dict[str, Any]:
    """All but the words."""
    return {key: value for key, value in state.to_dict().items() if key not in ("name", "what")}


def _show(states: Mapping[str, ModelLeakage], deleted: Leakage, repaired: Leakage) -> None:
    measures = [one.name for one in deleted.before.attacks]
    rows = [
        [name, *(_cell(state.attacks[at]) for state in states.values())]
        for at, name in enumerate(measures)
    ]
    if deleted.window:
        rows.append(["verbatim", *(_share(state) for state in states.values())])
    print(table(["AUC, and TPR at 1 % FPR", *states], rows))
    print(f"by chance: AUC 0.500, TPR {deleted.before.attacks[0].tpr_by_chance:.3f}")
    for name, found in (("deleted", deleted), ("repaired", repaired)):
        both = found.snapshots
        assert both is not None
        near = "" if both.neighbours is None else f", neighbours {_cell(both.neighbours)}"
        more = "" if both.verbatim is None else f", verbatim {both.verbatim.share:.2f}"
        print(f"two snapshots, before and {name}: strangers {_cell(both.strangers)}{near}{more}")
        print(f"{name}: indistinguishable by {', '.join(_passed(found))}")
        for note in found.notes:
            print(f"note: {note}")


def _passed(found: Leakage) -> Iterator[str]:
    """The measures, with those that tell a difference marked."""
    for verdict in found.verdicts:
        yield verdict.measure if verdict.indistinguishable else f"{verdict.measure} (NOT)"


def _cell(attack: Attack) -> str:
    return f"{attack.auc:.3f} [{attack.auc_low:.2f}, {attack.auc_high:.2f}], {attack.tpr:.2f}"


def _share(state: ModelLeakage) -> str:
    rate = state.verbatim
    return "none is long enough" if rate is None else f"{rate.hits} of {rate.trials}"


def _draw(figure: Any, states: Mapping[str, ModelLeakage]) -> None:
    axes = figure.subplots()
    for place, (name, state) in enumerate(states.items()):
        for at, attack in enumerate(state.attacks):
            axes.errorbar(
                at + 0.15 * (place - 1.5),
                attack.auc,
                [[attack.auc - attack.auc_low], [attack.auc_high - attack.auc]],
                fmt="o",
                capsize=3,
                color=_COLOURS[place],
                label=None if at else name,
            )
    axes.axhline(0.5, color="black", linewidth=0.5)
    axes.set(ylim=(0, 1.02), ylabel="AUC of membership inference")
    axes.set_xticks(range(len(states["before"].attacks)))
    axes.set_xticklabels([attack.name for attack in states["before"].attacks])
    axes.legend(loc="lower left")


def _say(sentence: str) -> None:
    print(f"… {sentence}", flush=True)
