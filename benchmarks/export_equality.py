"""Exported adapters in plain transformers and peft: how far their logits are from those of S3T.

    python -m benchmarks.export_equality [--quick] [--output DIR]

One small run a task and family is trained, shards lose slices until their prefixes are of several
lengths, and the run is exported: an adapter a shard, and the average of all as one, exact and cut
to rank 8. Then each folder is loaded from its files alone, by AutoModel and
PeftModel.from_pretrained, and asked the rows of its probe; the head, if there is one, is applied by
hand. Told are the greatest difference from the run's own logits, how far the adapter moves the
base's (a check that could not tell would be none), what merging loses on the public test rows, and
the time of an export. stories260k and MiniLM are among the bases where the shared data is there.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import table
from benchmarks.prepared_data import ROOT, shared_data
from benchmarks.reports import Report, main

if TYPE_CHECKING:
    from torch import Tensor

    from s3t import S3T
    from s3t.config import Config

__all__ = ["run"]

OUTPUT = Path("runs/benchmarks/export_equality")
PEOPLE = 60
SHARDS, SLICES = 3, 4


@dataclass(frozen=True)
class Task:
    """What is trained: a task on a base."""

    name: str
    task: str
    base: str
    slices: int = SLICES


def run(output: Path, quick: bool) -> dict[str, Any]:
    """Run it; returns the figures."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    report, started, found = Report("export_equality", output), time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for task in _tasks(quick):
            place = Path(folder) / task.name
            place.mkdir()
            found[task.name] = _measured(task, place, quick)
            one = found[task.name]
            print(f"{task.name}: {one['greatest_difference']:.1e} at most", flush=True)
    print(f"\n{_table(found)}\n", flush=True)
    seconds = round(time.monotonic() - started, 1)
    return report.finish({"quick": quick, "tasks": found, "seconds": seconds})


def _tasks(quick: bool) -> Iterator[Task]:
    yield Task("ViT (digits)", "image-classification", "make:vit")
    yield Task("BERT", "text-classification", "make:bert")
    yield Task("RoBERTa", "text-classification", "make:roberta")
    yield Task("Llama", "causal-lm", "make:llama")
    yield Task("GPT-2", "causal-lm", "make:gpt2")
    shared = shared_data()
    if shared is not None:
        yield Task("stories260k", "causal-lm", str(shared / "stories260k"))
        if not quick:
            yield Task("MiniLM", "text-classification", str(shared / "minilm"), 3)


# ── a run with prefixes of several lengths ───────────────────────────────────────────────────


def _measured(task: Task, place: Path, quick: bool) -> dict[str, Any]:
    from s3t import S3T
    from s3t.training.work.train import train

    config = _config(task, place, quick)
    train(config)
    with S3T.load(config.run_dir) as service:
        _shorten(service, config)
        folders = {"shards": place / "out", "merged": place / "merged", "rank 8": place / "cut"}
        done = {
            "shards": service.export(folders["shards"]),
            "merged": service.export(folders["merged"], merge=True),
            "rank 8": service.export(folders["rank 8"], merge=True, rank=8),
        }
        again = service.export(folders["shards"])
    compared = {name: [*_compared(path)] for name, path in folders.items()}
    merged, cut = done["merged"].merge, done["rank 8"].merge
    assert merged is not None and cut is not None and not again.written
    return {
        "task": task.task,
        "prefix_lengths": [len(one["prefix"]) for one in done["shards"].adapters],
        "adapters": compared,
        "greatest_difference": max(one["difference"] for each in compared.values() for one in each),
        "least_moved": min(one["moved"] for each in compared.values() for one in each),
        "metric": merged.metric,
        "ensemble": merged.ensemble,
        "merged": merged.merged,
        "merged_rank": merged.rank,
        "rank_8": cut.merged,
        "rank_8_error": cut.error,
        "export_seconds": done["shards"].seconds,
        "export_again_seconds": again.seconds,
        "merge_seconds": done["merged"].seconds,
        "bytes": sum(path.stat().st_size for path in folders["shards"].rglob("*.safetensors")),
    }


def _shorten(service: S3T, config: Config) -> None:
    """Shard 0 keeps its prefix; each next one loses a slice more than the one before."""
    from s3t.run import RunDir

    with RunDir(config.run_dir).ledger() as ledger:
        for shard in range(1, config.partition.shards):
            for _ in range(min(shard, config.partition.slices - 1)):
                prefix = service.status().shards[shard].prefix
                if len(prefix) > 1:
                    first = next(iter(ledger.samples((shard, prefix[-1]), deleted=False)))
                    service.deactivate([str(first.sample_id)])


def _config(task: Task, place: Path, quick: bool) -> Config:
    from s3t.config import Config, load_config

    size = {"hidden": 16, "heads": 2} if quick else {"hidden": 64, "heads": 4}
    if task.task == "image-classification":
        words = {
            "output": place / "run",
            "model.make.hidden": size["hidden"],
            "model.make.heads": size["heads"],
            "model.adapt.steps": 5 if quick else 60,
            "stage.epochs": 1,
            "training.workers": 1,
        }
        overrides = [f"{name}={value}" for name, value in words.items()]
        return load_config(ROOT / "configs" / "digits.yaml", overrides)
    source = {"format": "csv", "files": str(_people(place / "people.csv"))}
    columns = {"id": "id"} if task.task != "causal-lm" else {"id": "id", "text": "text"}
    return Config.model_validate(
        {
            "output": str(place / "run"),
            "task": task.task,
            "data": {
                "private": source,
                "public": {"validation": source, "test": source},
                "columns": columns,
                "max_length": 32,
            },
            "model": {"base": task.base, "make": {**size, "layers": 4, "init_scale": 5}},
            "partition": {
                "shards": SHARDS,
                "slices": task.slices,
                "salt": "exports",
                "subject": "who",
            },
            "sequences": {"strategy": "cyclic"},
            "lora": {"rank": 4, "alpha": 8},
            "stage": {"epochs": 1 if quick else 2, "learning_rate": 1e-2},
            "training": {"workers": 1},
        }
    )


def _people(path: Path) -> Path:
    """A table of persons' texts, three rows each."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "who", "text", "label"])
        writer.writeheader()
        for person in range(PEOPLE):
            for number in range(3):
                row = {
                    "id": f"s{person:02d}{number}",
                    "who": f"p{person:02d}",
                    "text": f"person {person} says {number * 7 + person}",
                    "label": ("good", "bad")[(person + number) % 2],
                }
                writer.writerow(row)
    return path


# ── by transformers and peft alone ───────────────────────────────────────────────────────────


def _compared(folder: Path) -> Iterator[dict[str, Any]]:
    """Each adapter of a folder, against the run's logits in its probe."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForCausalLM

    manifest = json.loads((folder / "s3t-export.json").read_bytes())
    auto = AutoModelForCausalLM if manifest["task"] == "causal-lm" else AutoModel
    for one in manifest["adapters"]:
        place = folder / one["name"]
        probe = load_file(place / "probe" / "probe.safetensors")
        head_file = place / "head.safetensors"
        head = load_file(head_file) if head_file.exists() else None
        base = auto.from_pretrained(manifest["base"]["name"])
        model = PeftModel.from_pretrained(base, str(place)).eval()
        found = _logits(model, probe, head, one["pooling"])
        with model.disable_adapter():
            plain = _logits(model, probe, head, one["pooling"])
        yield {
            "shard": one["shard"],
            "prefix": one["prefix"],
            "rank": one["rank"],
            "difference": float((found - probe["logits"]).abs().max()),
            "moved": float((plain - found).abs().max()),
            "largest_logit": float(probe["logits"].abs().max()),
        }


def _logits(
    model: Any, probe: dict[str, Tensor], head: dict[str, Tensor] | None, pooling: str | None
) -> Tensor:
    import torch

    inputs, mask = probe["inputs"], probe.get("mask")
    with torch.inference_mode():
        if mask is None:
            out = model(pixel_values=inputs)
        else:
            out = model(input_ids=inputs, attention_mask=mask)
    if head is None:
        assert mask is not None
        logits: Tensor = out.logits[torch.arange(len(inputs)), mask.sum(dim=1) - 1]
        return logits
    hidden: Tensor = out.last_hidden_state
    if pooling == "mean":
        assert mask is not None
        features = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    else:
        assert pooling == "first"
        features = hidden[:, 0]
    return features @ head["weight"].t() + head["bias"]


def _table(found: dict[str, Any]) -> str:
    rows = []
    for name, one in found.items():
        each = one["adapters"]
        rows.append(
            (
                name,
                " ".join(map(str, one["prefix_lengths"])),
                *(f"{max(x['difference'] for x in each[kind]):.1e}" for kind in each),
                f"{one['least_moved']:.2f}",
                f"{one['ensemble']:.3f} / {one['merged']:.3f} / {one['rank_8']:.3f}",
                f"{one['rank_8_error']:.1%}",
                f"{one['export_seconds']:.2f} / {one['export_again_seconds']:.2f}",
            )
        )
    header = (
        "base",
        "slices",
        "shards Δ",
        "merged Δ",
        "rank 8 Δ",
        "moved by",
        "ensemble / merged / rank 8",
        "cut off",
        "seconds, again",
    )
    return table(header, rows)


if __name__ == "__main__":
    main(run, __doc__, OUTPUT)
