"""Nested and residual stages, served with public weights: audited and attacked.

    python -m benchmarks.leakage.isolations [--output DIR] [--quick]

Each task is trained in one shard. At least 400 rows are deleted at once (all of some slices). Then
the run is attacked, by membership and by two snapshots, purged, and audited with ``--retrain all``
and ``--from-scratch``. Tasks that need ../shared/data (S3T_SHARED_DATA) are skipped without it.
What was measured is kept beside its run, and not measured again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import table, write_json
from benchmarks.leakage import OUTPUT
from benchmarks.prepared_data import ROOT
from benchmarks.reports import Report, main
from benchmarks.utility.tasks import TASKS
from s3t import S3T, load_config
from s3t.audit.audit import audit
from s3t.audit.leakage.leakage import leakage
from s3t.audit.leakage.report import Leakage
from s3t.config import Config, dump_config
from s3t.run import RunDir
from s3t.run.purge import purge
from s3t.training.prepare.recipe import ENGINE
from s3t.training.work.train import train
from s3t.types import digest

__all__ = ["run"]

ISOLATIONS = ("nested", "residual")


@dataclass(frozen=True)
class _Task:
    """A task of ``benchmarks.utility``, in one shard.

    Attributes:
        words: overrides of its config, so that it learns its rows well.
        slices: those whose samples are all deleted; a prefix survives them.
    """

    words: tuple[str, ...]
    slices: tuple[int, ...]


_TREE = "{strategy: explicit, explicit: [[0, 1, 2, 3], [2, 3]]}"
_TASKS = {
    "digits": _Task(
        ("partition.slices=4", f"sequences={_TREE}", "stage.epochs=40", "lora.targets=auto"), (0, 1)
    ),
    "banking77": _Task(
        (
            "sequences={strategy: explicit, explicit: [[0, 1, 2], [2, 0]]}",
            "stage.epochs=4",
            "data.private.split=train[:65%]",
        ),
        (2,),
    ),
    "shakespeare": _Task(
        (
            "partition.slices=4",
            f"sequences={_TREE}",
            "stage.epochs=6",
            "data.private.split=train[:17%]",
        ),
        (2, 3),
    ),
}


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    found: dict[str, dict[str, Any]] = {}
    for name, task in _TASKS.items():
        if missing := TASKS[name].missing():
            print(f"{name}: skipped, {missing}", flush=True)
            continue
        for isolation in ISOLATIONS:
            title = f"{name}, {isolation}"
            found[title] = _kept(_config(output, name, task, isolation, quick), task.slices)
            print(f"{title}: {found[title]['seconds']} s", flush=True)
    rows = [[title, *row] for title, one in found.items() for row in _rows(one)]
    head = ["", "deleted", "audit", "attack", "before", "deleted", "control", "two snapshots"]
    print(table(head, rows), flush=True)
    return Report("isolations", output).finish({"runs": found}, lambda figure: _draw(figure, found))


def _config(output: Path, name: str, task: _Task, isolation: str, quick: bool) -> Config:
    shared = TASKS[name]
    prepared = shared.prepared(output / "data" / name, 0, quick)
    words = (
        *shared.words,
        *prepared.words,
        *task.words,
        *(("stage.epochs=1",) if quick else ()),
        "partition.shards=1",
        f"stage.isolation={isolation}",
        "aggregation.weights=public",
        "training.workers=1",
        f"output={output / 'runs' / f'{name}-{isolation}'}",
    )
    return load_config(ROOT / "configs" / f"{shared.config}.yaml", words)


def _kept(config: Config, slices: tuple[int, ...]) -> dict[str, Any]:
    """What was measured of this config, or is measured now."""
    root = config.run_dir
    path = root.parent / f"{root.name}-{digest([ENGINE, dump_config(config), *slices])[:8]}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    write_json(path, measured := _measured(config, slices))
    return measured


def _measured(config: Config, slices: tuple[int, ...]) -> dict[str, Any]:
    """Train, delete, attack, purge and audit one run."""
    started, run = time.monotonic(), RunDir(config.run_dir)
    shutil.rmtree(run.root, ignore_errors=True)
    train(config)
    with run.ledger() as ledger:
        ids = [str(one.sample_id) for part in slices for one in ledger.samples(slot=(0, part))]
    with S3T.load(run.root) as service:
        before = service.evaluate().to_dict()
        service.deactivate(ids)
        after = service.evaluate().to_dict()
    attacked = leakage(run)
    purge(run)
    judged = audit(run.root, retrain="all", from_scratch=True)
    return {
        "deleted_samples": len(ids),
        "served": {"before": before, "after": after},
        "audit": judged.to_dict(),
        "leakage": attacked.to_dict(),
        "rows": list(_cells(attacked)),
        "seconds": round(time.monotonic() - started, 1),
    }


def _cells(found: Leakage) -> Iterator[list[str]]:
    """Per attack: its name, and the figures before, after the deletion, of the control, and of who
    holds both snapshots."""
    assert found.after is not None
    states = (found.before, found.after, found.control)
    for at, one in enumerate(found.before.attacks):
        cells = [
            f"{state.attacks[at].auc:.3f} ({state.attacks[at].auc_low:.2f}–"
            f"{state.attacks[at].auc_high:.2f})"
            for state in states
        ]
        both = found.snapshots.strangers if found.snapshots is not None and not at else None
        last = "" if both is None else f"{both.auc:.3f} ({both.auc_low:.2f}–{both.auc_high:.2f})"
        verdict = found.verdicts[at]
        yield [one.name, *cells, last, "" if verdict.indistinguishable else "TOLD APART"]


def _rows(one: dict[str, Any]) -> Iterator[list[str]]:
    claims = one["audit"]["claims"]
    holds = sum(claim["status"] == "holds" for claim in claims)
    audited = f"{holds} of {len(claims)} hold" + ("" if one["audit"]["holds"] else ", BROKEN")
    for number, (name, *cells, told) in enumerate(one["rows"]):
        first = [str(one["deleted_samples"]), audited] if not number else ["", ""]
        yield [*first, f"{name} {told}".strip(), *cells]


def _draw(figure: Any, found: dict[str, dict[str, Any]]) -> None:
    axes = figure.subplots()
    for at, title in enumerate(found):
        states = found[title]["leakage"]
        for place, state in enumerate(("before", "after", "control")):
            attack = states[state]["attacks"][0]
            low, high = attack["auc"] - attack["auc_low"], attack["auc_high"] - attack["auc"]
            axes.errorbar(
                at + 0.2 * (place - 1),
                attack["auc"],
                [[low], [high]],
                fmt="o",
                capsize=3,
                color=("tab:red", "tab:blue", "tab:gray")[place],
                label=None if at else state,
            )
    axes.axhline(0.5, color="black", linewidth=0.5)
    axes.set(ylim=(0, 1.02), ylabel="AUC of membership inference, by loss")
    axes.set_xticks(range(len(found)))
    axes.set_xticklabels(found, rotation=20)
    axes.legend()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
