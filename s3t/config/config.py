"""All of a run's configuration, and what is impossible across its sections."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import Field

from s3t.config.aggregation import AggregationConfig
from s3t.config.data import DataConfig
from s3t.config.model import LoraConfig, ModelConfig, PromptConfig
from s3t.config.operation import ReceiptsConfig, RepairConfig, StoreConfig
from s3t.config.partition import PartitionConfig, SequencesConfig
from s3t.config.section import Natural, Section
from s3t.config.serve import ServeConfig
from s3t.config.training import StageConfig, TrainingConfig

__all__ = ["Config", "Task"]

Task = Literal["image-classification", "text-classification", "causal-lm"]

_GENERATES = {"image-classification": False, "text-classification": False, "causal-lm": True}
_OF_IMAGES = {"image-classification": True, "text-classification": False, "causal-lm": False}


class Config(Section):
    """All of a run's configuration."""

    name: str = Field("run", description="name of the run, shown by the service")
    output: str | None = Field(None, description="run directory; default: runs/NAME")
    task: Task = Field(description="what the model answers: a class, or text")
    seed: Natural = Field(0, description="seed of everything that is drawn")
    data: DataConfig
    model: ModelConfig
    partition: PartitionConfig = PartitionConfig()
    sequences: SequencesConfig = SequencesConfig()
    lora: LoraConfig = LoraConfig()
    prompt: PromptConfig = PromptConfig()
    stage: StageConfig = StageConfig()
    aggregation: AggregationConfig = AggregationConfig()
    training: TrainingConfig = TrainingConfig()
    store: StoreConfig = StoreConfig()
    repair: RepairConfig = RepairConfig()
    receipts: ReceiptsConfig = ReceiptsConfig()
    ledger: str | None = Field(
        None,
        description="URL of a PostgreSQL database (or schema) of this run alone, such as "
        "postgresql+psycopg://s3t@host/run; default: ledger.db in the run, on SQLite",
    )
    serve: ServeConfig = ServeConfig()

    @property
    def run_dir(self) -> Path:
        """Where the run lies."""
        return Path(self.output) if self.output else Path("runs") / self.name

    @property
    def budget(self) -> int:
        """B, what each shard may spend, in ``sequences.unit``."""
        if self.sequences.explicit is not None and self.sequences.unit == "sequences":
            return len(self.sequences.explicit)
        return self.sequences.budget or self.partition.slices

    @property
    def generates(self) -> bool:
        """Whether the run continues texts; else it classifies."""
        return _GENERATES[self.task]

    @property
    def of_images(self) -> bool:
        """Whether its rows are images; else they are texts."""
        return _OF_IMAGES[self.task]

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of a row after the last stage, 0 where layers are adapted."""
        return self.prompt.tokens * self.partition.slices if self.stage.prompts else 0

    @property
    def input_columns(self) -> dict[str, str]:
        """Names of the columns that are read as input, by the config key that gives each."""
        columns = self.data.columns
        if self.of_images:
            return {"data.columns.image": columns.image}
        if columns.messages is not None:
            return {"data.columns.messages": columns.messages}
        if columns.prompt is not None and columns.completion is not None:
            return {
                "data.columns.prompt": columns.prompt,
                "data.columns.completion": columns.completion,
            }
        pair = {} if columns.text_pair is None else {"data.columns.text_pair": columns.text_pair}
        return {"data.columns.text": columns.text} | pair

    def problems(self, spoilt: Collection[str] = ()) -> list[str]:
        """What is impossible across sections, one sentence each.

        Args:
            spoilt: sections that hold nothing to judge by, since values of theirs were wrong.
        """
        found = []
        if not {"sequences", "partition"} & {*spoilt}:
            found += self._sequence_problems()
        if not {"data", "partition"} & {*spoilt}:
            found += self._risk_problems()
        if not {"data", "partition", "aggregation"} & {*spoilt}:
            found += self._cluster_problems()
        if not {"task", "data", "model", "aggregation"} & {*spoilt}:
            found += self._task_problems()
        if not {"stage", "partition"} & {*spoilt}:
            found += self._epoch_problems()
        if not {"task", "data", "stage"} & {*spoilt}:
            found += self._text_problems()
        if not {"task", "data", "partition"} & {*spoilt}:
            found += self._person_problems()
        if not {"lora", "training"} & {*spoilt}:
            found += self._training_problems()
        if not {"training", "model", "stage"} & {*spoilt}:
            found += self._portable_problems()
        if not {"stage", "training", "model"} & {*spoilt}:
            found += self._process_problems()
        if not {"store", "training"} & {*spoilt}:
            found += self._sealing_problems()
        if not {"stage", "prompt", "aggregation"} & {*spoilt}:
            found += self._prompt_problems()
        return found

    def _risk_problems(self) -> list[str]:
        risk = self.partition.risk
        if risk is None or not risk.quantiles or self.data.adapts:
            return []
        return [
            "partition.risk.quantiles needs data.public.adapt, of whose rows they are: "
            "name that source, or give partition.risk.thresholds"
        ]

    def _cluster_problems(self) -> list[str]:
        clusters, found = self.partition.clusters, []
        if clusters is not None and not self.data.adapts:
            found.append(
                "partition.clusters needs data.public.adapt, of whose rows the prototypes are "
                "made: name that source, or leave clusters out"
            )
        if clusters is None and self.aggregation.method == "route":
            found.append(
                "aggregation.method 'route' asks the shard whose prototype is nearest to the "
                "input: give partition.clusters, or another method"
            )
        return found

    def _epoch_problems(self) -> list[str]:
        epochs, slices = self.stage.epochs, self.partition.slices
        if isinstance(epochs, int) or len(epochs) <= slices:
            return []
        return [
            f"stage.epochs has {len(epochs)} numbers, and {slices} slices give as many stages: "
            "give a number for each stage at most"
        ]

    def _sequence_problems(self) -> list[str]:
        found, slices = [], self.partition.slices
        explicit, budget = self.sequences.explicit, self.sequences.budget
        counted, utility = self.sequences.unit == "sequences", self.sequences.utility
        if utility is not None and len(utility) != slices + 1:
            found.append(
                f"sequences.utility has {len(utility)} values: give {slices + 1}, for prefixes of "
                f"0 to {slices} slices"
            )
        if self.sequences.strategy == "explicit":
            if not explicit:
                found.append("sequences.explicit is empty: list at least one sequence")
            elif counted and budget is not None and budget != len(explicit):
                found.append(
                    f"sequences.budget {budget} is not the number of explicit sequences "
                    f"({len(explicit)}): leave it out"
                )
        elif explicit is not None:
            found.append("sequences.explicit needs sequences.strategy=explicit")
        elif counted and slices <= 20 and self.budget > math.factorial(slices):
            found.append(
                f"sequences.budget {self.budget} is over the {math.factorial(slices)} "
                f"permutations of {slices} slices: lower it or add slices"
            )
        for number, sequence in enumerate(explicit or ()):
            if len(set(sequence)) < len(sequence) or not sequence:
                found.append(
                    f"sequences.explicit[{number}] {list(sequence)} is empty or repeats a slice"
                )
            elif max(sequence) >= slices:
                found.append(
                    f"sequences.explicit[{number}] {list(sequence)} names slice {max(sequence)}: "
                    f"there are {slices}, numbered from 0"
                )
        if explicit and len(set(explicit)) < len(explicit):
            found.append("sequences.explicit holds the same sequence twice")
        return found

    def _text_problems(self) -> list[str]:
        found = []
        if self.data.columns.instructs and not self.generates:
            found.append(
                f"data.columns.prompt, .completion and .messages do not fit task {self.task!r}: "
                "they are of causal-lm"
            )
        if self.data.columns.text_pair is not None and self.task != "text-classification":
            found.append(
                f"data.columns.text_pair does not fit task {self.task!r}: it is of "
                "text-classification"
            )
        if self.stage.group_by_length and self.of_images:
            found.append("stage.group_by_length does not fit images, which are of one size")
        return found

    def _person_problems(self) -> list[str]:
        subject = self.partition.subject
        return [
            f"partition.subject {subject!r} is {key}, what is learnt: name the column that says "
            "whose row it is, or leave subject out"
            for key, name in self.input_columns.items()
            if name == subject
        ]

    def _training_problems(self) -> list[str]:
        if not self.training.gradient_checkpointing or not self.lora.dropout:
            return []
        return [
            f"training.gradient_checkpointing does not fit lora.dropout {self.lora.dropout}, which "
            "would be drawn again when a layer is run again: set one of them to false or 0"
        ]

    def _portable_problems(self) -> list[str]:
        """What has no portable arithmetic: its kernels are written for the processor at hand."""
        if self.training.arithmetic != "portable":
            return []
        found = []
        if self.model.dtype != "float32":
            found.append(
                f"model.dtype {self.model.dtype!r} does not fit training.arithmetic=portable, "
                "whose products are of float32: use float32, or native"
            )
        if self.model.quantization:
            found.append(
                f"model.quantization {self.model.quantization!r} does not fit training.arithmetic="
                "portable, since bitsandbytes chooses its kernels by the processor: use native"
            )
        return found

    def _prompt_problems(self) -> list[str]:
        if not self.stage.prompts:
            if self.prompt == PromptConfig():
                return []
            return ["prompt is given, and nothing is prompted: set stage.adapter=prompt"]
        found = []
        if self.aggregation.method == "mean-adapters":
            found.append(
                "aggregation.method 'mean-adapters' does not fit stage.adapter=prompt: prompts of "
                "shards have no common order, so their mean is none; use another method"
            )
        return found

    def _process_problems(self) -> list[str]:
        """What several processes of a node cannot do, and what a quantized base cannot."""
        found, stage, model = [], self.stage, self.model
        if stage.processes > 1 and self.training.workers not in ("auto", 1):
            found.append(
                f"training.workers {self.training.workers} does not fit stage.processes "
                f"{stage.processes}, which are started by accelerate: leave workers out"
            )
        if stage.processes > 1 and self.training.trunk_cache == "disk":
            found.append(
                "training.trunk_cache=disk does not fit stage.processes, of which each keeps its "
                "own: use auto, memory or off"
            )
        if model.quantization and stage.sharded:
            found.append(
                "model.quantization does not fit stage.parallel=fsdp, which divides plain weights: "
                "use ddp, or leave quantization out"
            )
        if model.quantization and (model.adapt or model.base.startswith("make:")):
            found.append(
                "model.quantization is of a base that is loaded as it is: train the base without "
                "it first, and name its folder (RUN/base) as model.base"
            )
        return found

    def _sealing_problems(self) -> list[str]:
        """What would leave beside sealed nodes what they are sealed for, or sealed with."""
        found, keys = [], self.store.keys
        if self.store.encrypt and self.training.trunk_cache == "disk":
            found.append(
                "training.trunk_cache=disk writes hidden states plain, and does not fit "
                "store.encrypt: use auto, memory or off"
            )
        if keys and not self.store.hooked:
            path = Path(os.path.abspath(os.path.expanduser(keys)))
            if path.is_relative_to(os.path.abspath(self.run_dir)):
                found.append(
                    f"store.keys {keys} lies in the run directory {self.run_dir}, so a backup of "
                    "it would hold the data keys too: name a file elsewhere"
                )
        return found

    def _task_problems(self) -> list[str]:
        found = []
        base, image = self.model.base, self.of_images
        if base.startswith("make:") and image != (base == "make:vit"):
            found.append(f"model.base {base!r} does not fit task {self.task!r}")
        if self.generates and base in ("make:bert", "make:roberta"):
            found.append(f"model.base {base!r} is an encoder: task causal-lm needs a decoder")
        if self.stage.starts_public and self.generates:
            found.append("stage.head=public does not fit task causal-lm: its head is the base's")
        elif self.stage.starts_public and not self.data.adapts:
            found.append("stage.head=public needs data.public.adapt, on which it is trained")
        if self.model.adapt and not self.data.adapts:
            found.append("model.adapt needs data.public.adapt")
        if (
            self.model.adapt
            and (self.model.adapt.rotations or self.model.adapt.shift)
            and not image
        ):
            found.append("model.adapt.rotations and .shift need task image-classification")
        if self.generates and self.aggregation.method == "vote":
            found.append("aggregation.method 'vote' does not fit task causal-lm")
        if not self.generates and self.aggregation.tokens != "none":
            found.append(
                f"aggregation.tokens {self.aggregation.tokens!r} does not fit task {self.task!r}: "
                "it is of causal-lm"
            )
        if self.aggregation.falls_back and not self.generates and not self.data.adapts:
            found.append(
                "aggregation.on_exhausted=base needs data.public.adapt, "
                "on which the fallback's head is trained"
            )
        return found
