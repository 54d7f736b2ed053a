"""Shakespeare's speakers: persons of very uneven size; the largest are forgotten one by one.

    python -m benchmarks.language.shakespeare [--output DIR] [--quick]

    configs/tinyshakespeare.yaml ─► S3T   │ SISA: one sequence │ one LoRA of all speeches
    the largest speakers ask to go, each: perplexity of their own speeches before and after, of the
    public test; slices hit, nodes dead ─► what a repair trains │ the LoRA trained without them

The speeches are a part of the private ones, drawn evenly, so that all is trained in minutes.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import median, table
from benchmarks.language import OUTPUT
from benchmarks.language.model import Model
from benchmarks.prepared_data import ROOT, prepare, shared_data
from benchmarks.reports import Report, main
from s3t import S3T
from s3t.config import Config, load_config
from s3t.data import load_private
from s3t.run import RunDir
from s3t.training.prepare.replan import Replan
from s3t.training.work.train import train

__all__ = ["run"]

METHODS: Mapping[str, tuple[str, ...]] = {
    "s3t": (),
    "sisa": ("stage.isolation=snapshot", "sequences={strategy: cyclic, budget: 1}"),
    "full": (
        "stage.isolation=snapshot",
        "sequences={strategy: cyclic, budget: 1}",
        "partition.shards=1",
        "partition.slices=1",
    ),
}
_LABELS = {"s3t": "S3T", "sisa": "SISA, one sequence", "full": "one LoRA"}


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Measure, print, draw; returns what the JSON holds."""
    shared = shared_data()
    names = ("stories260k", "tinyshakespeare")
    if shared is None or not all((shared / name).is_dir() for name in names):
        why = f"it needs {' and '.join(names)} of ../shared/data (S3T_SHARED_DATA)"
        print(f"shakespeare: skipped, {why}", flush=True)
        return {"skipped": why}
    prepare(shared, output / "data")
    report, deletions = Report("shakespeare", output), 3 if quick else 10
    configs = {method: _config(shared, output, method, quick) for method in METHODS}
    largest = _largest(configs["s3t"])
    asking = [name for name, _ in largest[:deletions]]
    print(
        f"{sum(count for _, count in largest):,} speeches of {len(largest)} speakers; the "
        f"{deletions} largest ask to go, from {largest[0][1]} speeches ({largest[0][0]}) down to "
        f"{largest[deletions - 1][1]}",
        flush=True,
    )
    result: dict[str, Any] = {
        "speakers": len(largest),
        "speeches": sum(count for _, count in largest),
        "largest": largest[:deletions],
        "training_seconds": {name: _timed_training(config) for name, config in configs.items()},
        "before": {name: _figures(config) for name, config in configs.items()},
    }
    result["streams"] = {
        name: _forgotten(configs[name], asking, output) for name in ("s3t", "sisa")
    }
    result["repair"] = {name: _repaired(configs[name]) for name in ("s3t", "sisa")}
    result["retrained"] = _retrained(configs["full"], output, asking)
    print(_tables(result), flush=True)
    return report.finish(result, lambda figure: _draw(figure, result))


def _config(shared: Path, output: Path, method: str, quick: bool) -> Config:
    step = 5 if quick else 2
    some = "+".join(f"train[{at}%:{at + 1}%]" for at in range(0, 100, step))
    data = output / "data" / "tinyshakespeare"
    overrides = [
        f"output={output / 'runs' / method}",
        f"data.private.files={data / 'private.jsonl'}",
        f"data.public.adapt.files={data / 'adapt.jsonl'}",
        f"data.public.validation.files={data / 'validation.jsonl'}",
        f"data.public.test.files={data / 'test.jsonl'}",
        f"data.private.split={some}",
        f"model.base={shared / 'stories260k'}",
        "stage.group_by_length=true",
        *(("training.workers=1",) if quick else ()),
        *METHODS[method],
    ]
    return load_config(ROOT / "configs" / "tinyshakespeare.yaml", overrides)


def _largest(config: Config) -> list[tuple[str, int]]:
    """Speakers and how many speeches they have, the largest first."""
    counts = Counter(str(sample.subject) for sample in load_private(config, ()).samples)
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _speeches(config: Config) -> Mapping[str, list[str]]:
    private = load_private(config, ())
    found: dict[str, list[str]] = {}
    for sample, text in zip(private.samples, private.rows.inputs, strict=True):
        found.setdefault(str(sample.subject), []).append(text)
    return found


def _figures(config: Config) -> dict[str, Any]:
    with S3T.load(config.run_dir) as service:
        found = service.evaluate()
    return {"perplexity": found.value, "rows": found.samples}


def _forgotten(config: Config, asking: Sequence[str], output: Path) -> list[dict[str, Any]]:
    """One deletion after another; the run keeps them."""
    speeches, steps = _speeches(config), []
    run = RunDir(config.run_dir)
    nodes = len(run.plan().forest)
    for name in asking:
        own = speeches[name]
        before = Model(run).perplexity(own)
        with S3T.load(run.root) as service:
            service.generate(["Speak"], max_new_tokens=1)  # so that it includes the swap of views
            receipt = service.deactivate(subjects=[name])
            status, worth = service.status(), service.evaluate()
        hits = run.hits()
        steps.append(
            {
                "speaker": name,
                "speeches": len(own),
                "seconds": receipt.seconds,
                "before": before,
                "after": Model(run).perplexity(own),
                "test": worth.value,
                "slices_hit": len(hits),
                "dead_nodes": sum(node.is_hit(hits) for node in run.plan().forest),
                "nodes": nodes,
                "prefixes": [len(shard.prefix) for shard in status.shards],
                "exhausted": status.exhausted,
            }
        )
    return steps


def _repaired(config: Config) -> dict[str, Any]:
    started = time.perf_counter()
    report = train(config, replan=Replan())
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "trained": report.trained,
        "nodes": report.nodes,
        **_figures(config),
    }


def _retrained(config: Config, output: Path, asking: Sequence[str]) -> dict[str, Any]:
    """One LoRA without the speakers, from the start: what each deletion would cost it."""
    with S3T.load(config.run_dir) as service:
        service.deactivate(subjects=asking)
    report = _repaired(config)
    speeches = _speeches(config)
    own = [text for name in asking for text in speeches[name]]
    return {**report, "deleted_speeches": Model(RunDir(config.run_dir)).perplexity(own)}


def _timed_training(config: Config) -> float:
    shutil.rmtree(config.run_dir, ignore_errors=True)
    started = time.perf_counter()
    train(config)
    return time.perf_counter() - started


# ── showing ──────────────────────────────────────────────────────────────────────────────────


def _tables(result: Mapping[str, Any]) -> str:
    worth = [
        [
            _LABELS[name],
            f"{found['perplexity']:.2f}",
            f"{result['streams'][name][-1]['test']:.2f}" if name in result["streams"] else "–",
            f"{after['perplexity']:.2f}",
            f"{result['training_seconds'][name]:.0f}",
            f"{after['seconds']:.0f} ({after['trained']} of {after['nodes']} nodes)",
        ]
        for name, found in result["before"].items()
        for after in [result["repair"].get(name, result["retrained"])]
    ]
    count = len(result["streams"]["s3t"])
    header = ["test perplexity", "trained", f"{count} deleted", "repaired", "s to train"]
    seconds = median([step["seconds"] for step in result["streams"]["s3t"]])
    again = result["retrained"]["seconds"]
    steps = [
        [
            step["speaker"],
            step["speeches"],
            f"{step['before']:.2f} → {step['after']:.2f}",
            f"{step['test']:.2f}",
            step["slices_hit"],
            f"{step['dead_nodes']} of {step['nodes']}",
            " ".join(map(str, step["prefixes"])),
            f"{other['test']:.2f}" + ("*" if other["exhausted"] else ""),
        ]
        for step, other in zip(*result["streams"].values(), strict=True)
    ]
    columns = ["deleted", "speeches", "own perplexity", "test", "slices hit", "dead nodes"]
    return "\n\n".join(
        [
            table([*header, "s to repair"], worth),
            table([*columns, "prefixes", "test, SISA"], steps),
            f"a deletion takes S3T {seconds * 1000:.1f} ms (median), one LoRA trained again "
            f"{again:.0f} s: {again / seconds:,.0f} times as long; * the base alone answers\n"
            f"the LoRA that never saw them gives their speeches "
            f"{result['retrained']['deleted_speeches']:.2f}",
        ]
    )


def _draw(figure: Any, result: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    steps = result["streams"]["s3t"]
    places = range(1, len(steps) + 1)
    for when, colour in (("before", "tab:red"), ("after", "tab:blue")):
        label = f"{when} their deletion"
        left.plot(places, [step[when] for step in steps], "o-", color=colour, label=label)
    left.set(xlabel="speaker, largest first", ylabel="perplexity of the speaker's own speeches")
    left.legend()
    for (name, stream), colour in zip(
        result["streams"].items(), ("tab:blue", "tab:orange"), strict=True
    ):
        values = [result["before"][name]["perplexity"], *(step["test"] for step in stream)]
        right.plot(range(len(values)), values, "o-", color=colour, label=_LABELS[name])
        right.plot(len(stream), result["repair"][name]["perplexity"], "*", color=colour, ms=12)
    again = result["retrained"]["perplexity"]
    right.axhline(again, color="tab:gray", label="one LoRA, trained again without all of them")
    right.set(xlabel="speakers deleted (★ repaired)", ylabel="perplexity of the public test")
    right.legend()


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
