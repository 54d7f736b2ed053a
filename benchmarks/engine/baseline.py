"""The other side of the training benchmarks: node after node, one peft model each.

    Trainer   Hugging Face's Trainer over a peft model, as the paper's authors train
              (github.com/brcsomnath/S3T)
    loop      the same model, batches and optimizer in a plain PyTorch loop

A node is the base with the LoRA of its lineage: that of its block and the head are trained,
everything else is frozen. It is tuned where that is fair: adapters on the layers of the lineage
alone, one model object per stage into which the tensors of each node are written, fused AdamW,
batches cut from tensors in memory and trimmed to their longest text, no worker processes for
loading, no saving, no logging, no evaluation, no pooler that nobody reads, and what lies in memory
kept out of the garbage collection with which the Trainer begins (0.2 s a node).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.engine.runs import fresh_base
from s3t.model.determinism import one_thread
from s3t.plan.trie import Node
from s3t.run import RunDir
from s3t.training.node.optimizer import learning_rate
from s3t.training.node.rows import LabelledSet
from s3t.training.prepare.load import load_prepared
from s3t.training.prepare.prepared import Prepared
from s3t.training.work.worker_state import steps_of
from s3t.types import NodeKey

__all__ = ["Baseline", "TrainedChains", "chains", "opened"]

_TRIM = 8
"""Texts of a batch are padded to a multiple of this, as the authors do."""

_SCORE_ROWS = 32


@dataclass(frozen=True)
class TrainedChains:
    """Some of a plan's chains, trained.

    Attributes:
        nodes: number of nodes trained.
        seconds: by stage, wall time of those nodes.
        steps: by stage, their optimizer steps.
        plan_seconds: what all nodes of the plan take: by stage, seconds per step × steps of all.
        plan_cpu: the same in CPU seconds.
        score_by_key: validation scores of the nodes.
    """

    nodes: int
    seconds: dict[int, float]
    steps: dict[int, int]
    plan_seconds: float
    plan_cpu: float
    score_by_key: dict[NodeKey, float]


def chains(material: Prepared, count: int | None) -> list[Node]:
    """Leaves whose lineages are trained: ``count`` of them spread over shards, or all."""
    parents = {node.parent for node in material.plan.forest}
    leaves = [node for node in material.plan.forest if node.key not in parents]
    if count is None or count >= len(leaves):
        return leaves
    stride = len(leaves) // material.config.partition.shards + 1  # another one in each shard
    return [leaves[at * stride % len(leaves)] for at in range(count)]


class Baseline:
    """Trains nodes of a plan one by one.

    Args:
        material: of a prepared run; its base is loaded anew, as transformers gives it.
        scratch: a folder for what the Trainer insists on naming.
    """

    def __init__(self, material: Prepared, scratch: Path) -> None:
        self.material, self.scratch = material, scratch
        self.forest = material.plan.forest
        self._models = {
            stage: _Model(material, stage) for stage in {node.stage for node in self.forest}
        }

    def train(self, leaves: Iterable[Node], way: str, threads: int) -> TrainedChains:
        """Train the lineages of some leaves, node after node; a shared node once.

        Args:
            leaves: see ``chains``.
            way: ``trainer`` or ``loop``.
            threads: of torch, for all products.
        """
        train = {"trainer": self._with_trainer, "loop": self._in_a_loop}[way]
        stages = sorted(self._models)
        seconds, cpu = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0.0)
        steps = dict.fromkeys(stages, 0)
        tensors: dict[NodeKey, dict[str, Tensor]] = {}
        scores: dict[NodeKey, float] = {}
        with _tuned(threads):
            for leaf in leaves:
                for node in self.forest.lineage(leaf.key):
                    if node.key in tensors:
                        continue
                    started, started_cpu = time.perf_counter(), time.process_time()
                    model = self._models[node.stage]
                    model.fill(self._inherited(node, tensors), seed=len(tensors))
                    train(model, node)
                    tensors[node.key] = model.taken()
                    seconds[node.stage] += time.perf_counter() - started
                    cpu[node.stage] += time.process_time() - started_cpu
                    steps[node.stage] += self._steps(node)
                    scores[node.key] = model.score(self.material.validation)
        whole, whole_cpu = (
            math.fsum(spent[n.stage] / steps[n.stage] * self._steps(n) for n in self.forest)
            for spent in (seconds, cpu)
        )
        return TrainedChains(len(tensors), seconds, steps, whole, whole_cpu, scores)

    def _steps(self, node: Node) -> int:
        return steps_of(node, self.material.config.stage)

    def _inherited(
        self, node: Node, tensors: Mapping[NodeKey, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Adapters of the lineage, and the parent's head."""
        found = {f"head.{name.split('.')[-1]}": t for name, t in self.material.head.items()}
        for ancestor in self.forest.lineage(node.key)[:-1]:
            found.update(tensors[ancestor.key])
        return found

    def _rows(self, node: Node) -> Tensor:
        members = self.material.members[node.shard]
        return torch.cat([members[part] for part in node.prefix]).sort().values

    def _with_trainer(self, model: _Model, node: Node) -> None:
        stage = self.material.config.stage
        arguments = TrainingArguments(
            output_dir=str(self.scratch),
            per_device_train_batch_size=stage.batch_size,
            num_train_epochs=stage.epochs,
            learning_rate=stage.learning_rate,
            lr_scheduler_type=stage.schedule,
            warmup_steps=round(stage.warmup * self._steps(node)),
            weight_decay=stage.weight_decay,
            max_grad_norm=stage.max_grad_norm or 0.0,
            optim="adamw_torch_fused",
            seed=node.shard,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=_Rows(self.material.private, self._rows(node)),
            data_collator=_as_it_is,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    def _in_a_loop(self, model: _Model, node: Node) -> None:
        stage, steps = self.material.config.stage, self._steps(node)
        data = _Rows(self.material.private, self._rows(node))
        generator = torch.Generator().manual_seed(node.shard)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=stage.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(stage, steps))
        model.train()
        for _ in range(stage.epochs):
            order = torch.randperm(len(data), generator=generator)
            for chosen in order.split(stage.batch_size):
                model(**data.batch(chosen))["loss"].backward()
                if stage.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(trained, stage.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def opened(run: RunDir, scratch: Path) -> tuple[Baseline, float]:
    """The baseline of a prepared run, and the seconds that its set-up took."""
    started, device = time.perf_counter(), torch.device("cpu")
    with one_thread(device):
        baseline = Baseline(load_prepared(run, device), scratch)
    return baseline, time.perf_counter() - started


class _Model(nn.Module):
    """The peft model of one stage, with a head of its own for classification."""

    def __init__(self, material: Prepared, stage: int) -> None:
        super().__init__()
        config = material.config
        self.language_model = config.task == "causal-lm"
        base, layers = fresh_base(material)
        if not self.language_model:
            base.pooler = None
        self._pooling = material.base.pooling
        lo, hi = material.plan.recipe["blocks"][stage - 1]
        targets = [target for target in material.base.targets if target.layer >= lo]
        places = {f"{layers}.{target.layer}.{target.path}": target for target in targets}
        self.peft = get_peft_model(
            base,
            LoraConfig(
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # divided by r
                lora_dropout=config.lora.dropout,
                target_modules=list(places),
                bias="none",
            ),
        )
        self.head = nn.Linear(material.base.hidden_size, material.classes or 1)
        self._own: dict[str, Tensor] = {}
        self._halves: dict[str, Tensor] = {}
        for path, target in places.items():
            module = base.get_submodule(path)
            pair = (module.lora_A["default"].weight, module.lora_B["default"].weight)
            for name, weight in zip((target.a, target.b), pair, strict=True):
                self._halves[name] = weight
                weight.requires_grad_(target.layer < hi)
                if target.layer < hi:
                    self._own[name] = weight
        self.head.requires_grad_(not self.language_model)
        if not self.language_model:
            self._own |= {f"head.{name}": p for name, p in self.head.named_parameters()}
            self._halves |= {name: p for name, p in self._own.items() if name.startswith("head.")}

    @torch.no_grad()
    def fill(self, inherited: Mapping[str, Tensor], seed: int) -> None:
        """Write what a node inherits into the model, and draw the rest anew."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self._halves.items():
            if name in inherited:
                weight.copy_(inherited[name])
            elif name == "head.weight":
                weight.normal_(0.0, 0.02, generator=generator)
            elif name.endswith("lora_A"):
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            else:
                weight.zero_()

    def taken(self) -> dict[str, Tensor]:
        """A copy of what was trained."""
        return {name: weight.detach().clone() for name, weight in self._own.items()}

    def forward(self, labels: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        if self.language_model:
            out = self.peft(**inputs, labels=labels)
            return {"loss": out.loss, "logits": out.logits}
        hidden = self.peft(**inputs)[0]
        logits = self.head(self._pooled(hidden, inputs.get("attention_mask")))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    @torch.no_grad()
    def score(self, rows: LabelledSet) -> float:
        """Accuracy, or minus the mean loss per token, as the engine scores its nodes."""
        self.eval()
        data, gained, counted = _Rows(rows, torch.arange(len(rows))), 0.0, 0
        for chosen in torch.arange(len(rows)).split(_SCORE_ROWS):
            batch = data.batch(chosen)
            out = self(**batch)
            if self.language_model:
                real = int((batch["labels"][:, 1:] != -100).sum())
                gained, counted = gained - float(out["loss"]) * real, counted + real
            else:
                gained += float((out["logits"].argmax(1) == batch["labels"]).sum())
                counted += len(chosen)
        return gained / counted

    def _pooled(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if self._pooling == "first":
            return hidden[:, 0]
        if mask is None:
            return hidden[:, -1] if self._pooling == "last" else hidden.mean(dim=1)
        if self._pooling == "last":
            return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
        return (hidden * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class _Rows(Dataset[Any]):
    """Some rows of a set; a batch is cut from the tensors at once."""

    def __init__(self, rows: LabelledSet, index: Tensor) -> None:
        values, mask = rows.rows.values[index], rows.rows.mask
        self._values, self._mask = values, None if mask is None else mask[index]
        self._labels = None if rows.labels is None else rows.labels[index]

    def __len__(self) -> int:
        return len(self._values)

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return self.batch(torch.tensor(numbers))

    def batch(self, chosen: Tensor) -> dict[str, Tensor]:
        """The rows as a model takes them, texts trimmed to the longest of them."""
        values = self._values[chosen]
        if self._mask is None:
            assert self._labels is not None
            return {"pixel_values": values, "labels": self._labels[chosen]}
        mask = self._mask[chosen]
        longest = -(-int(mask.sum(dim=1).max()) // _TRIM) * _TRIM
        values, mask = values[:, :longest], mask[:, :longest]
        labels = (
            values.masked_fill(mask == 0, -100) if self._labels is None else self._labels[chosen]
        )
        return {"input_ids": values, "attention_mask": mask, "labels": labels}


@contextmanager
def _tuned(threads: int) -> Iterator[None]:
    """So many threads, and no garbage collection of what has been there before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(before)


def _as_it_is(batch: Any) -> Any:
    return batch
