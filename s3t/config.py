"""The typed config: one YAML file plus dotted overrides, read once at the edge.

    YAML ─┐
          ├─► merged tree ─► Config (frozen, unknown keys refused) ─► plain arguments inside
    a.b=c ┘

Invariant: a Config that exists is possible in itself. What depends on the data or on the base
model (empty slices, missing columns, number of layers) is checked where those are known, and is
reported in the same form: all problems together, before anything is written.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from s3t.errors import ConfigError

__all__ = [
    "AdaptConfig",
    "AggregationConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "LoraConfig",
    "ModelConfig",
    "PartitionConfig",
    "PublicConfig",
    "SequencesConfig",
    "SourceConfig",
    "StageConfig",
    "Task",
    "TrainingConfig",
    "dump_config",
    "load_config",
]

Task = Literal["image-classification", "text-classification", "causal-lm"]
DIGITS_SPLITS = ("public", "private", "test")
MADE_BASES = ("make:vit", "make:bert", "make:roberta", "make:gpt2", "make:llama")

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


class SourceConfig(_Section):
    """Where rows come from.

    ``format`` is one of ``digits`` (scikit-learn's 1,797 images, embedded), ``csv``, ``json``
    (JSON lines), ``parquet``, ``imagefolder`` and ``hub``. ``split`` takes Hugging Face split
    expressions such as ``train[:80%]``; ``digits`` has ``public``, ``private`` and ``test``.
    """

    format: Literal["digits", "csv", "json", "parquet", "imagefolder", "hub"]
    files: str | tuple[str, ...] | None = Field(None, description="path, glob or list (not hub)")
    name: str | None = Field(None, description="data set name on the hub, or a local data set")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str = "train"

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        if self.format == "hub" and not self.name:
            raise ValueError("format 'hub' needs name")
        if self.format in ("csv", "json", "parquet", "imagefolder") and not self.files:
            raise ValueError(f"format {self.format!r} needs files")
        if self.format == "digits" and self.split.partition("[")[0] not in DIGITS_SPLITS:
            raise ValueError(
                f"split {self.split!r} of digits does not exist: use public, private or test"
            )
        return self


class ColumnsConfig(_Section):
    """Names of the columns. ``id`` is optional: without it an id is a content digest."""

    text: str = "text"
    image: str = "image"
    label: str = "label"
    id: str | None = None


class PublicConfig(_Section):
    """Data that is never deletable: for adapting the base, choosing among prefixes, testing."""

    adapt: SourceConfig | None = None
    validation: SourceConfig
    test: SourceConfig


class DataConfig(_Section):
    """Private and public data, their columns, and how a row becomes a tensor."""

    private: SourceConfig
    public: PublicConfig
    columns: ColumnsConfig = ColumnsConfig()
    labels: tuple[str, ...] | None = Field(
        None, description="label names in order; without them the public data gives them"
    )
    max_length: Positive = Field(64, description="tokens per text, a multiple of 16")
    image_size: Positive | None = Field(None, description="pixels; by default the base's own")
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _multiple(self) -> DataConfig:
        if self.max_length % 16:
            raise ValueError(f"max_length {self.max_length} is not a multiple of 16")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            raise ValueError("labels holds a name twice")
        return self


class MakeConfig(_Section):
    """Shape of a small base that is made here (``model.base: make:…``)."""

    hidden: Positive = 64
    layers: Positive = 4
    heads: Positive = 4
    intermediate: Positive | None = Field(None, description="default 4 × hidden")
    patch: Positive = Field(2, description="pixels per patch side (ViT)")
    channels: Positive = Field(1, description="image channels (ViT)")
    init_scale: Annotated[float, Field(gt=0)] = Field(
        1.0, description="multiplies the initial weight matrices"
    )

    @model_validator(mode="after")
    def _divides(self) -> MakeConfig:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        return self


class AdaptConfig(_Section):
    """Training of the whole base on the public ``adapt`` data, before any private sample."""

    steps: Positive = 300
    batch_size: Positive = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1.5e-3
    rotations: bool = Field(
        False, description="images: show each only turned by 90, 180, 270°, as 3 × labels classes"
    )


class ModelConfig(_Section):
    """The frozen base: hub name, local path, or ``make:vit|bert|roberta|gpt2|llama``."""

    base: str
    revision: str | None = None
    make: MakeConfig = MakeConfig()
    adapt: AdaptConfig | None = None
    pooling: Literal["auto", "first", "mean", "last"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.base.startswith("make:") and self.base not in MADE_BASES:
            raise ValueError(f"base {self.base!r} cannot be made: use one of {list(MADE_BASES)}")
        return self


class PartitionConfig(_Section):
    """m shards of L slices; a sample's place is a keyed hash of its subject or content."""

    shards: Positive = 4
    slices: Positive = 4
    salt: str = "s3t"
    subject: str | None = Field(None, description="column that names the person of a row")


class SequencesConfig(_Section):
    """Which sequences of slices each shard trains (budget B)."""

    strategy: Literal["cyclic", "explicit"] = "cyclic"
    budget: Positive | None = Field(None, description="B; default: number of slices")
    explicit: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] | None = Field(
        None, description="slice numbers from 0, the same lists for every shard"
    )


class LoraConfig(_Section):
    """Low-rank adapters; ``targets: auto`` is the query and value projections."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    dropout: Fraction = 0.0


class StageConfig(_Section):
    """Recipe of one stage, the same for all.

    ``isolation: layers`` is S3T (stage i trains block i from the top); ``snapshot`` is SISA with
    LoRA (every node carries the whole adapter, continued from its parent's).
    """

    isolation: Literal["layers", "snapshot"] = "layers"
    epochs: Positive = 10
    batch_size: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = Field(0.0, description="share of the steps")
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    slices: Literal["cumulative", "current"] = "cumulative"


class AggregationConfig(_Section):
    """How the shards' answers become one, and what answers when no shard is left."""

    method: Literal["mean-probabilities", "mean-logits", "vote"] = "mean-probabilities"
    weights: Literal["uniform", "data"] = "uniform"
    on_exhausted: Literal["raise", "base"] = "raise"


class TrainingConfig(_Section):
    """How the work is spread. Nothing here changes a node's bytes."""

    workers: Literal["auto"] | Positive = "auto"
    group_bytes: Positive = Field(
        2 * 2**20, description="hidden states of one stacked step, about the size of a CPU cache"
    )
    trunk_cache_mb: Annotated[int, Field(ge=0)] = Field(
        4096, description="above this the frozen layers below a block run anew at each step"
    )
    trackers: tuple[str, ...] = Field((), description="accelerate trackers; public metrics only")


class Config(_Section):
    """All of a run's configuration."""

    name: str = "run"
    output: str | None = Field(None, description="run directory; default runs/<name>")
    task: Task
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    model: ModelConfig
    partition: PartitionConfig = PartitionConfig()
    sequences: SequencesConfig = SequencesConfig()
    lora: LoraConfig = LoraConfig()
    stage: StageConfig = StageConfig()
    aggregation: AggregationConfig = AggregationConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def run_dir(self) -> Path:
        """Where the run lies."""
        return Path(self.output) if self.output else Path("runs") / self.name

    @property
    def budget(self) -> int:
        """B, the number of sequences per shard."""
        if self.sequences.explicit is not None:
            return len(self.sequences.explicit)
        return self.sequences.budget or self.partition.slices

    def problems(self) -> list[str]:
        """What is impossible across sections, one sentence each."""
        return [*self._sequence_problems(), *self._task_problems()]

    def _sequence_problems(self) -> list[str]:
        found, slices = [], self.partition.slices
        explicit, budget = self.sequences.explicit, self.sequences.budget
        if self.sequences.strategy == "explicit":
            if not explicit:
                found.append("sequences.explicit is empty: list at least one sequence")
            elif budget is not None and budget != len(explicit):
                found.append(
                    f"sequences.budget {budget} is not the number of explicit sequences "
                    f"({len(explicit)}): leave it out"
                )
        elif explicit is not None:
            found.append("sequences.explicit needs sequences.strategy=explicit")
        elif slices <= 20 and self.budget > math.factorial(slices):
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

    def _task_problems(self) -> list[str]:
        found = []
        base, image = self.model.base, self.task == "image-classification"
        if base.startswith("make:") and image != (base == "make:vit"):
            found.append(f"model.base {base!r} does not fit task {self.task!r}")
        if self.task == "causal-lm" and base in ("make:bert", "make:roberta"):
            found.append(f"model.base {base!r} is an encoder: task causal-lm needs a decoder")
        if self.model.adapt and self.data.public.adapt is None:
            found.append("model.adapt needs data.public.adapt")
        if self.model.adapt and self.model.adapt.rotations and not image:
            found.append("model.adapt.rotations needs task image-classification")
        if self.task == "causal-lm" and self.aggregation.method == "vote":
            found.append("aggregation.method 'vote' does not fit task causal-lm")
        if (
            self.aggregation.on_exhausted == "base"
            and self.task != "causal-lm"
            and self.data.public.adapt is None
        ):
            found.append(
                "aggregation.on_exhausted=base needs data.public.adapt, "
                "on which the fallback's head is trained"
            )
        return found


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``a.b=value`` overrides, and validate the whole.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value``; the value is read as YAML.

    Raises:
        ConfigError: with every problem found.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot read it ({error}): give the path of a YAML file"
        raise ConfigError([problem], str(path)) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"is not YAML: {' '.join(str(error).split())}"], str(path)) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"holds a {type(tree).__name__}, expected keys and values"], str(path))
    tree.setdefault("name", path.stem)
    problems: list[str] = []
    for override in overrides:
        _apply(tree, override, problems)
    config = _validate(tree, problems)
    if config is not None:
        problems.extend(config.problems())
    if problems or config is None:
        raise ConfigError(problems, str(path))
    return config


def dump_config(config: Config) -> str:
    """The resolved config as YAML, with every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(tree: dict[str, Any], override: str, problems: list[str]) -> None:
    key, sep, text = override.partition("=")
    if not sep or not key:
        problems.append(f"override {override!r} is not of the form key=value")
        return
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"override {override!r}: the value is not YAML")
        return
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            if child is not None:
                problems.append(f"override {override!r}: {parent!r} is not a section")
                return
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _validate(tree: Mapping[str, Any], problems: list[str]) -> Config | None:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        for entry in error.errors():
            problems.append(_sentence(entry["loc"], entry["type"], entry["msg"], entry["input"]))
        return None


def _sentence(loc: tuple[int | str, ...], kind: str, message: str, value: Any) -> str:
    key = ".".join(str(part) for part in loc) or "config"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(loc[-1]), _keys(loc[:-1]), n=1)
        hint = f": did you mean {'.'.join([*map(str, loc[:-1]), close[0]])!r}?" if close else ""
        return f"unknown key {key!r}{hint or ': remove it'}"
    if kind == "missing":
        return f"{key} is missing"
    message = message.removeprefix("Value error, ")
    shown = "" if isinstance(value, dict) else f" (got {value!r})"
    return f"{key}: {message}{shown}"


def _keys(loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the section at ``loc``."""
    section: Any = Config
    for part in loc:
        field = section.model_fields.get(str(part)) if hasattr(section, "model_fields") else None
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if hasattr(o, "model_fields")), None)
    return list(section.model_fields) if section is not None else []
